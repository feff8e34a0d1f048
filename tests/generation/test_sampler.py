"""The loop: which times, which denoiser, what state; and the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import generation
from generation import methods
from tests.generation import gaussian


def recording(seen, path, name="a"):
  """A denoiser that notes the times it is called at."""

  def denoise(x, time, state):
    jax.debug.callback(lambda t: seen.append((name, float(t))), time)
    return gaussian.denoiser(path)(x, time, state)

  return denoise


@pytest.mark.parametrize("steps", [1, 7, 30])
@pytest.mark.parametrize("solver", generation.SOLVERS)
def test_steps_are_pairs_of_one_list(steps, solver):
  """Also where the steps do not divide the thousand."""
  path, seen = generation.ddpm(), []
  x = jnp.ones((1, 3))
  generation.sample(recording(seen, path), x, path, steps=steps, solver=solver)
  jax.effects_barrier()
  assert [time for _, time in seen] == list(path.times(steps)[:-1])


@pytest.mark.parametrize("steps", [3, 7, 64])
def test_ends_where_it_says(steps):
  """Data that are one point are met by any number of steps."""
  path = generation.ddpm(prediction="clean")
  point = jnp.float32([[0.3, -2.0, 1.0]])
  x = jax.random.normal(jax.random.key(0), (1, 3))
  made = generation.sample(
    lambda x, time, state: (point, state), x, path, steps=steps
  )
  np.testing.assert_allclose(made, point, atol=1e-6)


def test_which_denoiser_and_state():
  path = generation.flow()
  x = jnp.ones((1, 3))

  def counting(add):
    def denoise(x, time, state):
      return jnp.full_like(x, state["sum"]), {"sum": 10 * state["sum"] + add}

    return denoise

  made = generation.sample(
    [counting(1), counting(2)],
    x,
    path,
    steps=4,
    which=(0, 1, 1, 0),
    state={"sum": jnp.float32(0)},
  )
  # Velocities 0, 1, 12, 122, a quarter of each.
  np.testing.assert_allclose(made, 1 - (0 + 1 + 12 + 122) / 4)


def test_begins_on_the_way_and_shows_it():
  path, shown = generation.flow(), []

  def progress(items, total):
    for item in items:
      shown.append((item, total))
      yield item

  denoise = gaussian.denoiser(path)
  x = jax.random.normal(jax.random.key(0), (2, 3))
  whole = generation.sample(denoise, x, path, steps=4, progress=progress)
  half = generation.sample(denoise, x, path, times=[1000, 750, 500])
  rest = generation.sample(denoise, half, path, times=[500, 250, 0])
  np.testing.assert_array_equal(whole, rest)
  assert shown == [(n, 4) for n in range(4)]


@pytest.mark.parametrize(
  "path", [generation.flow(), generation.ddpm()], ids=["flow", "ddpm"]
)
def test_inversion_goes_back(path):
  """A linear model: what is lost falls as steps are doubled."""
  denoise = gaussian.denoiser(path)
  data = gaussian.MEAN + gaussian.DEVIATION * np.float32([[1, -0.5, 2]])
  lost, off = [], []
  with jax.enable_x64(True):
    for steps in (50, 100, 200):
      times = path.times(steps)
      latents = generation.invert(denoise, jnp.asarray(data), path, steps=steps)
      assert latents.shape == (steps + 1, 1, 3)
      np.testing.assert_array_equal(latents[-1], data)
      back = generation.sample(denoise, latents[0], path, times=times)
      lost.append(np.abs(np.asarray(back) - data)[0])
      # Towards the noise that the exact flow leads to.
      exact = gaussian.solution(path, data, times[-1], times[0])
      off.append(np.abs(np.asarray(latents[0]) - exact)[0])
  assert lost[-1].max() < 0.05
  assert (lost[-1] < 0.65 * lost[-2]).all()
  assert (off[-1] < 0.75 * off[-2]).all()


def test_inversion_is_undone_where_predictions_stay():
  """Where the noise is the same all along, each step is undone."""
  path = generation.ddpm()
  noise = jax.random.normal(jax.random.key(0), (2, 3))
  denoise = lambda x, time, state: (noise, state)
  data = jnp.float32([[0.1, 2.0, -1.0], [0.0, 0.5, 3.0]])
  latents = generation.invert(denoise, data, path, steps=13)
  np.testing.assert_allclose(
    latents[4], path.add_noise(data, noise, path.times(13)[4]), atol=1e-5
  )
  back = generation.sample(denoise, latents[0], path, steps=13)
  np.testing.assert_allclose(back, data, atol=2e-4)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({}, "steps=None and times=None"),
    ({"steps": 2, "times": [1, 0]}, "one of them says where to go"),
    ({"times": [10, 20]}, "must fall, to no less than 0"),
    ({"times": [10, -1]}, "must fall, to no less than 0"),
    ({"times": [np.nan, 0]}, "must fall, to no less than 0"),
    ({"times": [1200, 0]}, "and from no more than 1000"),
    ({"times": []}, "must be two or more in a row"),
    ({"times": [[1, 0]]}, "must fall, to no less than 0"),
    ({"steps": np.nan}, "steps is nan; it must be a whole number"),
    ({"steps": 2, "which": (0, 0.5)}, "an entry of which is 0.5"),
    ({"steps": 2, "which": (0,)}, r"which=\(0,\) must have an index"),
    ({"steps": 2, "which": (0, 1)}, r"names denoiser 1; there are 1"),
    ({"steps": 2, "which": (0, -1)}, "0 or more, for each of 2 steps"),
  ],
)
def test_refuses(options, message):
  path = generation.flow()
  with pytest.raises(ValueError, match=message):
    generation.sample(
      gaussian.denoiser(path), jnp.ones((1, 3)), path, **options
    )


def test_what_does_not_fit_is_an_error_before_the_first_step():
  """Also of models that come late, and with the state that there will be."""
  path, done, traced = generation.flow(), [], []

  def first(x, time, state):
    traced.append("first")
    jax.debug.callback(lambda: done.append(1))
    return x, {"kept": jnp.ones(len(x))}

  def wrong(x, time, state):
    if state["kept"].shape != (1,):
      raise ValueError("kept is of another batch")
    return x, state

  options = {"path": path, "steps": 5, "which": (0, 0, 0, 0, 1)}
  with pytest.raises(ValueError, match="kept is of another batch"):
    generation.sample([first, wrong], jnp.ones((2, 3)), **options)
  assert not done
  # Without a state, and then with one; what was traced is not traced again.
  assert traced == ["first"] * 2
  traced.clear()
  generation.sample([first, wrong], jnp.ones((1, 3)), **options)
  jax.effects_barrier()
  assert len(done) == 4
  assert traced == ["first"] * 2


def test_methods():
  model = object()
  method = methods.create("full", model, 3, {})
  assert method.models == (model,)
  assert method.which == (0, 0, 0)
  other = object()
  method = methods.full_first(model, other, 5, 2)
  assert method.models == (model, other)
  assert method.which == (0, 0, 1, 1, 1)
  with pytest.raises(ValueError, match="there is no method 'fool'"):
    methods.create("fool", model, 3, {})
  with pytest.raises(ValueError, match="no option of method 'full' 'decay'"):
    methods.create("full", model, 3, {"decay": 1})
  with pytest.raises(ValueError, match="full_steps is 6; there are 5 steps"):
    methods.full_first(model, other, 5, 6)
