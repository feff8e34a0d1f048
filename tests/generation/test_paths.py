"""Paths against the formulas of their papers, written anew."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import generation

PATHS = [
  path(prediction=prediction)
  for path, prediction in itertools.product(
    (generation.flow, generation.ddpm), ("noise", "velocity", "clean")
  )
]


def products(betas):
  return np.concatenate([[1.0], np.cumprod(1 - np.asarray(betas))])


def cosine_betas(steps):
  f = [
    np.cos((t / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    for t in range(steps + 1)
  ]
  return [min(1 - f[t + 1] / f[t], 0.999) for t in range(steps)]


@pytest.mark.parametrize(
  ("schedule", "steps", "betas"),
  [
    ("linear", 1000, np.linspace(1e-4, 0.02, 1000)),
    ("scaled_linear", 1000, np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
    ("cosine", 1000, cosine_betas(1000)),
    ("cosine", 37, cosine_betas(37)),
  ],
)
def test_ddpm_schedules(schedule, steps, betas):
  path = generation.ddpm(schedule, steps)
  times = np.arange(-1, steps)
  squared = products(betas)
  np.testing.assert_allclose(path.alpha(times) ** 2, squared, rtol=1e-11)
  np.testing.assert_allclose(
    path.sigma(times), np.sqrt(1 - squared), rtol=1e-10, atol=1e-12
  )
  on_device = jax.jit(path.sigma)(jnp.asarray(times, jnp.float32))
  np.testing.assert_allclose(on_device, path.sigma(times), rtol=2e-4)


def test_known_numbers():
  """abar of step 999 and of step 0, as public descriptions give them."""
  path = generation.ddpm("linear")
  assert path.alpha(999.0) ** 2 == pytest.approx(4.0358e-5, rel=1e-4)
  assert path.alpha(0.0) ** 2 == pytest.approx(0.9999)
  assert path.alpha(-1.0) == 1
  assert path.sigma(-1.0) == 0
  path = generation.ddpm("scaled_linear")
  assert path.alpha(999.0) ** 2 == pytest.approx(0.0046602, rel=1e-4)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_target_speaks_of_data_and_noise(path):
  rng = np.random.default_rng(0)
  clean, noise = rng.normal(size=(2, 4, 3, 2)).astype(np.float32)
  time = jnp.array([1.0, 250.0, 600.5, 900.0])
  x = path.add_noise(clean, noise, time)
  target = path.target(clean, noise, time)
  np.testing.assert_allclose(path.clean(target, x, time), clean, atol=2e-4)
  np.testing.assert_allclose(
    path.noise(target, x, time), noise, atol=1e-4 / path.sigma(1.0)
  )
  np.testing.assert_allclose(
    path.predict(clean, x, time), target, atol=1e-3, rtol=1e-3
  )
  for row in range(4):
    one = path.add_noise(clean[row], noise[row], float(time[row]))
    np.testing.assert_allclose(x[row], one, rtol=1e-5, atol=1e-6)


def test_velocities():
  """Of flow matching the slope of x; of DDPM that of arXiv 2202.00512."""
  clean, noise = np.float32([[0.3]]), np.float32([[-1.2]])
  velocity = generation.flow().target(clean, noise, 400.0)
  np.testing.assert_allclose(velocity, noise - clean)
  path = generation.ddpm(prediction="velocity")
  a, s = path.alpha(400.0), path.sigma(400.0)
  np.testing.assert_allclose(
    path.target(clean, noise, 400.0), a * noise - s * clean
  )


@pytest.mark.parametrize("path", PATHS[:1] + PATHS[3:4], ids=str)
def test_slopes(path):
  times = np.array([20.0, 500.0, 931.0])
  for value, slope in zip(
    (path.alpha, path.sigma), path.slopes(times), strict=True
  ):
    rise = (value(times + 1) - value(times - 1)) / 2
    np.testing.assert_allclose(slope, rise, rtol=1e-3)


@pytest.mark.parametrize("steps", [1, 7, 50, 333, 1000])
def test_times(steps):
  for end, last in (("clean", -1), ("first", 0)):
    times = generation.ddpm(end=end).times(steps)
    assert times.shape == (steps + 1,)
    assert times[0] == 999
    assert times[-1] == last
    assert (times == np.round(times)).all()
    # As equal as whole numbers can be.
    lengths = -np.diff(times)
    assert lengths.min() >= 0 if end == "first" else lengths.min() >= 1
    assert lengths.max() - lengths.min() <= 1
  assert generation.flow().times(steps)[0] == 1000
  assert generation.flow().times(steps)[-1] == 0


def test_times_are_the_nearest_steps():
  """Where seven steps do not divide the thousand."""
  expected = [999, 856, 713, 570, 428, 285, 142, -1]
  np.testing.assert_array_equal(generation.ddpm().times(7), expected)


def test_leading_times():
  """Of Stable Diffusion's DDIM: 980, 960 ... 0, then the end."""
  path = generation.ddpm(spacing="leading", end="first")
  expected = [20.0 * n for n in range(50)][::-1] + [0.0]
  np.testing.assert_array_equal(path.times(50), expected)
  # 1000 // 30 = 33.
  times = generation.ddpm(spacing="leading").times(30)
  np.testing.assert_array_equal(times[:2], [957, 924])
  np.testing.assert_array_equal(times[-2:], [0, -1])


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: generation.ddpm("square"), r"schedule='square' must be one of"),
    (lambda: generation.flow("x"), r"prediction='x' must be one of"),
    (lambda: generation.ddpm(spacing="even"), r"spacing='even' must be"),
    (lambda: generation.ddpm(end="zero"), r"end='zero' must be one of"),
    (lambda: generation.ddpm(steps=0), "steps is 0; it must be at least 1"),
    (lambda: generation.ddpm(last_beta=1.5), r"last_beta=1.5 must be more"),
    (lambda: generation.ddpm("cosine", last_beta=0.1), r"must be None"),
    (lambda: generation.ddpm().times(1001), r"steps=1001 are more than"),
    (lambda: generation.flow().times(2.5), "steps is 2.5; it must be a whole"),
  ],
)
def test_refuses(make, message):
  with pytest.raises(ValueError, match=message):
    make()
