"""Samples of diffusion as arrays and pictures, and what a person may ask."""

import dataclasses
import inspect
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import generation
from generation import methods
from tasks import diffusion_options, diffusion_sampling, image_decoding
from training import sharding

PATH = generation.flow()
SAMPLING = {"steps": 4, "guidance": 1.0, "solver": "ddim"}
PIXELS = types.SimpleNamespace(latent_shape=None)


class Known(nn.Module):
  """Its velocity leads to the mean class in tenths, or stays the noise."""

  sample_shape: tuple[int, ...] = (2, 3)
  channels: int = 1
  num_classes: int = 10
  label_tokens: int = 1
  text_width: int = 0
  patch_size: tuple[int, ...] = (1, 1)
  noisy: float = 0.0

  @nn.compact
  def __call__(
    self, x, time, label=None, text=None, text_length=None, train=False
  ):
    if text is not None:
      real = jnp.arange(text.shape[1])[None] < text_length[:, None]
      value = jnp.where(real, text.mean(-1), 0).sum(1) / text_length
    else:
      value = label.reshape(len(x), -1).mean(1) / 10
    shape = (-1,) + (1,) * (x.ndim - 1)
    clean = value.reshape(shape) + self.noisy * x
    return (x - clean) / time.reshape(shape) * 1000


VIDEO = Known(sample_shape=(3, 4, 4), patch_size=(1, 2, 2), label_tokens=2)


def draw(tmp_path, model=None, **options):
  model = Known() if model is None else model
  given = {"out": str(tmp_path / "grid.png"), "sampling": SAMPLING} | options
  decode = image_decoding.create(model, {}, PIXELS)
  diffusion_sampling.draw(model, {}, PATH, decode, **given)
  return np.asarray(Image.open(tmp_path / "grid.png"))


def of_labels(labels, model=None, **options):
  given = {"label": np.asarray(labels, np.int32)}
  return diffusion_sampling.samples(
    Known() if model is None else model,
    {},
    PATH,
    given,
    rows=len(labels),
    **{"steps": 4} | options,
  )


def test_samples_are_what_they_shall_be_of():
  made = of_labels([3, 7, 0])
  assert made.shape == (3, 2, 3, 1)
  assert made.dtype == np.float32
  expected = np.broadcast_to(
    np.reshape([0.3, 0.7, 0], (3, 1, 1, 1)), made.shape
  )
  np.testing.assert_allclose(made, expected, atol=1e-6)
  # No class is the number 10: guidance goes away from it.
  guided = of_labels([3, 7, 0], guidance=2.0)
  np.testing.assert_allclose(guided, 2 * expected - 1, atol=1e-5)
  larger = of_labels([[3, 5]] * 2, VIDEO, size=(5, 2, 2))
  assert larger.shape == (2, 5, 2, 2, 1)
  np.testing.assert_allclose(larger, 0.4, atol=1e-6)


def test_a_row_is_a_function_of_the_seed_and_its_number():
  model = Known(noisy=0.5)
  labels = np.arange(7) % 3
  whole = of_labels(labels, model, seed=3)
  assert len(np.unique(whole.round(4), axis=0)) == 7
  for size in (3, 128):
    part = of_labels(labels, model, seed=3, batch_size=size)
    np.testing.assert_allclose(part, whole, atol=1e-6)
  assert np.abs(of_labels(labels, model, seed=4) - whole).min() > 1e-6
  noise = jax.random.normal(jax.random.fold_in(jax.random.key(3), 6), (2, 3, 1))
  one = of_labels(labels[6:], model, seed=3)
  assert np.abs(one[0] - whole[6]).max() > 1e-3
  ends = {"steps": 1, "seed": 3}
  np.testing.assert_allclose(
    of_labels(labels, model, **ends)[6], 0.5 * noise, atol=1e-6
  )


def test_a_method_says_which_model_takes_which_step(monkeypatch):
  def louder(model, steps, *, by=1.0):
    other = dataclasses.replace(model, noisy=by)
    return methods.Method((model, other), (0,) * (steps - 1) + (1,))

  monkeypatch.setitem(methods.METHODS, "louder", louder)
  options = {"method": "louder", "method_options": {"by": 0.25}, "steps": 2}
  made = of_labels([2], **options)
  # Half the way to 0.2 from the noise, then on to 0.2 and a quarter of x.
  noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), 0), (2, 3, 1))
  np.testing.assert_allclose(made[0], 0.2 + 0.25 * (0.1 + noise / 2), atol=1e-6)
  with pytest.raises(ValueError, match="no method 'quieter'"):
    of_labels([2], method="quieter")


def test_rows_go_to_the_devices_of_the_variables():
  model = Known(noisy=0.5)
  kinds = (jax.sharding.AxisType.Auto,) * 5
  mesh = jax.make_mesh((1, 2, 2, 1, 1), sharding.AXES, axis_types=kinds)
  there = jax.NamedSharding(mesh, jax.P())
  variables = {"params": {"unused": jax.device_put(np.ones(2), there)}}
  shards = []
  label = np.arange(6, dtype=np.int32)
  with jax.set_mesh(mesh):
    made = diffusion_sampling.samples(
      model,
      variables,
      PATH,
      {"label": label},
      rows=6,
      steps=2,
      watch=lambda x: shards.append(
        {s.data.shape[0] for s in x.addressable_shards}
      ),
    )
  # Of 6 samples, padded to 8.
  assert shards == [{2}, {2}]
  np.testing.assert_allclose(made, of_labels(label, model, steps=2), atol=1e-6)


def test_the_bar_is_one_over_all_batches():
  seen = []

  def progress(items, total):
    for item in items:
      seen.append((item, total))
      yield item
    seen.append("end")

  of_labels([1] * 5, batch_size=2, progress=progress)
  assert seen == [*((n, 12) for n in range(12)), "end"]


def test_a_row_of_the_picture_is_a_class(tmp_path):
  # 3 pixels are 63 in the picture, and 2 are 42.
  picture = draw(tmp_path, classes="3,5..6", num_samples=2)
  assert picture.shape == (3 * (42 + 2) + 2, 2 * (63 + 2) + 2)
  middles = picture[23::44][:, [33, 98]]
  wanted = np.round(127.5 * (1 + np.array([3, 5, 6]) / 10))
  np.testing.assert_array_equal(middles, np.stack([wanted] * 2, axis=1))
  assert draw(tmp_path).shape == (10 * 44 + 2, 10 * 65 + 2)


def test_an_animation_shows_how_images_came_out_of_noise(tmp_path, capsys):
  file = tmp_path / "steps.gif"
  picture = draw(
    tmp_path, Known(noisy=0.5), classes="3", num_samples=2, animation=str(file)
  )
  assert capsys.readouterr().out.endswith("a row each of classes 3\n")
  with Image.open(file) as animation:
    shown = []
    for n in range(animation.n_frames):
      animation.seek(n)
      shown.append(np.asarray(animation.convert("L")))
  assert len(shown) == 4
  np.testing.assert_array_equal(shown[-1], picture)
  spread = [frame[2:44, 2:65].std() for frame in shown]
  assert spread[0] > 2 * spread[-1]


def test_the_picture_of_a_video_has_its_frames(tmp_path):
  class Moving(Known):
    """The class is the brightness of the first frame; each next adds 0.1."""

    @nn.compact
    def __call__(self, x, time, label=None, **options):
      more = jnp.arange(x.shape[1]).reshape(1, -1, 1, 1, 1) / 10
      clean = label.mean(1).reshape(-1, 1, 1, 1, 1) / 10 + more
      return (x - clean) / time.reshape(-1, 1, 1, 1, 1) * 1000

  model = Moving(sample_shape=(3, 4, 4), label_tokens=2)
  file = tmp_path / "moves.gif"
  picture = draw(
    tmp_path, model, classes="2+4,0+2", num_samples=2, animation=str(file)
  )
  # Four videos of three frames of 64 pixels.
  assert picture.shape == (4 * 66 + 2, 3 * 66 + 2)
  tenths = np.array([[3, 4, 5], [3, 4, 5], [1, 2, 3], [1, 2, 3]]) / 10
  wanted = np.round(127.5 * (1 + tenths))
  np.testing.assert_array_equal(picture[34::66][:, 34::66], wanted)
  with Image.open(file) as animation:
    assert animation.n_frames == 3
    assert animation.info["duration"] == 120
    for n in range(3):
      animation.seek(n)
      frame = np.asarray(animation.convert("L"))
      assert frame.shape == (2 * 66 + 2, 2 * 66 + 2)
      expected = wanted[:, n].reshape(2, 2)
      np.testing.assert_array_equal(frame[34::66][:, 34::66], expected)


def test_a_row_of_the_picture_is_a_text(tmp_path):
  text = np.random.default_rng(0).uniform(-0.9, 0.9, (3, 4, 6))
  lengths = np.array([4, 1, 2])
  file = str(tmp_path / "text.npz")
  np.savez(file, text=text.astype(np.float32), lengths=lengths)
  model = Known(text_width=6, num_classes=0)
  made = draw(tmp_path, model, classes="2,1", text=file, num_samples=1)
  means = [text[2, :2].mean(), text[1, :1].mean()]
  wanted = np.round(127.5 * (1 + np.array(means)))
  np.testing.assert_array_equal(made[[22, 66], 32], wanted)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"classes": "11"}, "there is no class 11"),
    ({"guidance": "1,2"}, "guidance='1,2' must be one number"),
    ({"guidance": "much"}, "guidance='much' is no number"),
    ({"steps": -1}, "steps=-1"),
    ({"solver": "heun"}, "solver='heun' must be one of ddim"),
    ({"num_samples": -2}, "num_samples=-2"),
    ({"out": "grid.jpg"}, "must end in .png"),
    ({"animation": "x.mp4"}, "must end in .gif or .png"),
    ({"method": "fast"}, "no method 'fast'"),
    ({"method_options": "x=1"}, "no option of method 'full' 'x'"),
    ({"method_options": "1,2"}, "method_options='1,2' is not read"),
    ({"method_options": "a=b("}, "is not read"),
    ({"method_options": "a=f(1)"}, "is not read"),
    ({"method_options": "a=1).f(b=1"}, "is not read"),
    ({"method_options": "a=1,a=2"}, "is not read"),
    ({"method_options": "**{'a': 1}"}, "is not read"),
    ({"method_options": "a={1: 2}"}, "is not read"),
    ({"size": "16"}, "size='16' must be 2 numbers, as 2x3"),
    ({"size": "0x2"}, "size='0x2' must be 2"),
    ({"size": "axb"}, "size='axb' must be 2"),
  ],
)
def test_what_does_not_fit_is_refused_before_any_step(
  tmp_path, options, message
):
  def progress(items, total):
    pytest.fail("a step was done")

  with pytest.raises(ValueError, match=message):
    draw(tmp_path, progress=progress, **options)


def test_sets_of_classes():
  read = diffusion_options.parse_sums
  assert read("7+0, 3+3", 10, 2).tolist() == [[0, 7], [3, 3]]
  assert read("first", 10, 2).tolist()[:2] == [[0, 1], [1, 2]]
  assert read("all", 12, 3).shape == (12, 3)
  for wrong in ("3", "3+4+5", "3+10", "a+1", "", "3+-1"):
    with pytest.raises(ValueError, match=r"2 numbers from 0 to 9, as 0\+9"):
      read(wrong, 10, 2)


def test_options_and_sizes_are_read():
  assert diffusion_options.parse_options("") == {}
  assert diffusion_options.parse_options(
    "decay=-0.5,window=[2,2],kind=entropy,on=True,name='a b',most=None"
  ) == {"decay": -0.5, "window": (2, 2), "kind": "entropy", "on": True} | {
    "name": "a b",
    "most": None,
  }
  read = lambda size: diffusion_options.parse_size(size, VIDEO)
  assert read("") is None
  assert read("8x6") == (3, 8, 6)
  assert read("5x8x6") == (5, 8, 6)
  with pytest.raises(ValueError, match=r"7 is no multiple of 2; model\.patch"):
    read("8x7")


def test_options_of_the_program_are_those_of_draw():
  known = inspect.signature(diffusion_sampling.draw).parameters
  assert set(diffusion_sampling.OPTIONS) <= set(known)
  for name, (default, _) in diffusion_sampling.OPTIONS.items():
    assert known[name].default == default
