"""Grids of samples: where each image is, and what is refused."""

import inspect
import io
import re
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tasks import (
  autoencoders,
  image_decoding,
  image_grids,
  image_options,
  image_sampling,
)
from training import sharding


class Known(nn.Module):
  """Makes the class itself of any noise, in tenths; of a text, its mean.

  Where `noisy`, tokens stay the noise that they come from.
  """

  noisy: bool = False
  text_width: int = 0
  grid: tuple[int, int] = (2, 3)
  token_dim: int = 1
  num_classes: int = 10

  def condition(self, given, lengths=None):
    if not self.text_width:
      return given.astype(jnp.float32) / 10
    real = jnp.arange(given.shape[1])[None] < lengths[:, None]
    total = jnp.where(real, given.mean(-1), 0).sum(1)
    return total / jnp.maximum(lengths, 1)

  def encode_decode(self, condition, tokens, visible):
    z = condition[:, None, None]
    return jnp.broadcast_to(z, (*tokens.shape[:2], 1))

  def velocity(self, x_t, t, z):
    return (x_t - z) / t[..., None] * 1000 * (not self.noisy)

  @nn.nowrap
  def unpatchify(self, tokens):
    return tokens.reshape(-1, 2, 3, 1)


PIXELS = types.SimpleNamespace(latent_shape=None)
SAMPLING = {"steps": 4, "flow_steps": 2, "guidance": 1.0, "min_guidance": 1.0}


def pixels(model):
  return image_decoding.create(model, {}, PIXELS)


def draw(tmp_path, model=None, **options):
  model = Known() if model is None else model
  options = {"out": str(tmp_path / "grid.png"), "sampling": SAMPLING} | options
  image_sampling.draw(model, {}, pixels(model), **options)
  return np.asarray(Image.open(tmp_path / "grid.png"))


def test_a_row_of_the_picture_is_a_class(tmp_path):
  # 3 pixels are 63 in the picture, and 2 are 42.
  picture = draw(tmp_path, classes="3,7,5..6", num_samples=2, batch_size=3)
  assert picture.shape == (4 * (42 + 2) + 2, 2 * (63 + 2) + 2)
  cells = np.stack(
    [
      [picture[44 * r + 2 :, 65 * c + 2 :][:42, :63] for c in range(2)]
      for r in range(4)
    ]
  )
  wanted = np.round(127.5 * (1 + np.array([3, 7, 5, 6]) / 10))
  np.testing.assert_array_equal(
    cells, np.broadcast_to(wanted[:, None, None, None], cells.shape)
  )
  gaps = picture.copy()
  for r in range(4):
    for c in range(2):
      gaps[44 * r + 2 :, 65 * c + 2 :][:42, :63] = 255
  assert (gaps == 255).all()


def test_a_row_of_the_picture_is_a_text(tmp_path):
  text = np.random.default_rng(0).uniform(-0.9, 0.9, (3, 4, 6))
  lengths = np.array([4, 1, 2])
  file = str(tmp_path / "text.npz")
  np.savez(file, text=text.astype(np.float32), lengths=lengths)
  made = draw(
    tmp_path, Known(text_width=6), classes="2,1", text=file, num_samples=3
  )
  means = [text[2, :2].mean(), text[1, :1].mean()]
  have = made[[22, 66]][:, [32, 97, 162]]
  wanted = np.round(127.5 * (1 + np.array(means)))
  np.testing.assert_array_equal(have, np.stack([wanted] * 3, axis=1))


def test_images_do_not_depend_on_the_batch():
  model = Known(noisy=True)
  classes = np.arange(7) % 3
  options = {"seed": 3, **SAMPLING}
  made = [
    image_sampling.images(
      model, {}, classes, pixels(model), batch_size=n, **options
    )
    for n in (7, 3, 128)
  ]
  assert made[0].shape == (7, 2, 3, 1)
  assert len(np.unique(made[0].reshape(7, -1), axis=0)) == 7
  for other in made[1:]:
    np.testing.assert_array_equal(made[0], other)


def test_rows_go_to_the_devices_of_the_variables():
  model = Known(noisy=True)
  kinds = (jax.sharding.AxisType.Auto,) * 5
  mesh = jax.make_mesh((1, 2, 2, 1, 1), sharding.AXES, axis_types=kinds)
  there = jax.NamedSharding(mesh, jax.P())
  variables = {"params": {"unused": jax.device_put(np.ones(2), there)}}
  shards = []

  def decode(tokens):
    shards.append({s.data.shape[0] for s in tokens.addressable_shards})
    return image_decoding.create(model, variables, PIXELS)(tokens)

  args = np.arange(6), decode
  made = image_sampling.images(model, variables, *args, **SAMPLING)
  # Of 6 images, padded to 8.
  assert shards == [{2}]
  alone = image_sampling.images(model, {}, args[0], pixels(model), **SAMPLING)
  np.testing.assert_array_equal(made, alone)


def test_progress_is_one_over_all_batches():
  seen = []

  def progress(items, total):
    for item in items:
      seen.append((item, total))
      yield item
    seen.append("end")

  image_sampling.images(
    Known(),
    {},
    np.arange(5),
    pixels(Known()),
    batch_size=2,
    progress=progress,
    **SAMPLING,
  )
  # Three batches, and of four steps the first would make none of 6 tokens.
  assert seen == [*((i, 9) for i in range(9)), "end"]


def test_it_says_what_it_does(tmp_path, capsys, monkeypatch):
  bars = []

  def bar(items, name, total, **options):
    bars.append((name, total, options))
    return items

  monkeypatch.setattr(image_sampling.tqdm, "tqdm", bar)
  draw(tmp_path, classes="1,4", num_samples=1)
  # None: no bar where nobody watches.
  assert bars == [("sampling", 3, {"unit": "step", "disable": None})]
  said = f"{tmp_path / 'grid.png'}: a row each of classes 1, 4\n"
  assert capsys.readouterr() == (said, "")


@pytest.mark.parametrize("suffix", [".gif", ".png"])
def test_an_animation_shows_the_order(tmp_path, suffix):
  file = tmp_path / f"order{suffix}"
  grid = draw(tmp_path, classes="9", num_samples=1, animation=str(file))
  with Image.open(file) as animation:
    # Of 6 tokens in 4 steps the cosine leaves 6, 4, 2, 0.
    assert animation.n_frames == 4
    frames = []
    for i in range(4):
      animation.seek(i)
      frames.append(np.asarray(animation.convert("L")))
  shown = [(frame[2:-2, 2:-2] == 242).mean() for frame in frames]
  np.testing.assert_allclose(shown, np.array([0, 2, 4, 6]) / 6)
  np.testing.assert_array_equal(frames[-1], grid)


def test_frames_have_what_was_made_so_far():
  images = np.arange(1, 17, dtype=np.uint8).reshape(1, 1, 4, 4, 1)
  order = np.array([[[5, 0, 0, 9]]])
  frames = image_grids.frames(images, order, (2, 2))
  pictures = [frame[2:-2:16, 2:-2:16, 0] for frame in frames]
  whole = images[0, 0, :, :, 0]
  blank = np.full((4, 4), 112)
  wanted = [blank, blank.copy(), blank.copy(), whole]
  wanted[1][:2, 2:] = wanted[2][:2, 2:] = whole[:2, 2:]
  wanted[1][2:, :2] = wanted[2][2:, :2] = whole[2:, :2]
  wanted[2][:2, :2] = whole[:2, :2]
  np.testing.assert_array_equal(pictures, wanted)


@pytest.mark.parametrize("side", [1, 8, 28, 64, 256])
def test_small_images_are_enlarged(side):
  images = np.random.default_rng(0).integers(0, 255, (1, 2, side, side, 3))
  large = image_grids.enlarge(images.astype(np.uint8))
  factor = large.shape[2] // side
  assert large.shape == (1, 2, factor * side, factor * side, 3)
  assert factor == {1: 64, 8: 8, 28: 2, 64: 1, 256: 1}[side]
  np.testing.assert_array_equal(large[:, :, ::factor, ::factor], images)
  end = factor - 1
  np.testing.assert_array_equal(large[:, :, end::factor, end::factor], images)


def test_pixels_are_the_nearest():
  values = np.linspace(-1.5, 1.5, 1001, dtype=np.float32)
  wanted = np.clip(np.rint((values.astype(np.float64) + 1) * 127.5), 0, 255)
  have = image_decoding.to_pixels(jnp.asarray(values))
  assert have.dtype == jnp.uint8
  np.testing.assert_array_equal(have, wanted)


def test_latents_are_decoded_by_the_autoencoder_that_made_them(monkeypatch):
  class Repeats(nn.Module):
    def decode(self, latents):
      weight = self.variables["params"]["weight"]
      return weight * jnp.repeat(latents, 2, axis=1)

  def load(source, *, fingerprint):
    assert (source, fingerprint) == ("runs/autoencoder", "0123")
    variables = {"params": {"weight": jnp.float32(0.5)}}
    return types.SimpleNamespace(model=Repeats(), variables=variables)

  monkeypatch.setattr(autoencoders, "load", load)
  info = types.SimpleNamespace(
    latent_shape=(2, 3, 1),
    scale=4.0,
    autoencoder="runs/autoencoder",
    fingerprint="0123",
  )
  kinds = (jax.sharding.AxisType.Auto,) * 5
  mesh = jax.make_mesh((1, 2, 2, 1, 1), sharding.AXES, axis_types=kinds)
  place = lambda x, *axes: jax.device_put(
    x, jax.NamedSharding(mesh, jax.P(*axes))
  )
  tokens = np.random.default_rng(0).normal(size=(4, 6, 1)).astype(np.float32)
  decode = image_decoding.create(Known(), {"x": place(np.ones(1))}, info)
  images = decode(place(tokens, ("data", "fsdp")))
  latents = tokens.reshape(4, 2, 3, 1).repeat(2, axis=1) / 4
  wanted = np.clip(np.rint((0.5 * latents + 1) * 127.5), 0, 255)
  np.testing.assert_array_equal(images, wanted)


def test_lists_of_numbers():
  parse = lambda classes: image_options.parse_numbers(classes, 12, "class")
  assert parse("3,5") == [3, 5]
  assert parse(" 11, 0..2 ,5..5") == [11, 0, 1, 2, 5]
  assert parse("first") == list(range(10))
  assert parse("all") == list(range(12))
  assert image_options.parse_guidance("2.4") == 2.4
  assert image_options.parse_guidance("1, 2,.5") == [1, 2, 0.5]


def test_defaults_are_those_that_the_options_say():
  parameters = inspect.signature(image_sampling.draw).parameters
  for name, (default, _) in image_sampling.OPTIONS.items():
    assert parameters[name].default == default


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"classes": ""}, "classes='' is no list of numbers: ''"),
    ({"classes": "3,,5"}, "classes='3,,5' is no list of numbers: ''"),
    ({"classes": "three"}, "no list of numbers: 'three'; write it as"),
    ({"classes": "-1"}, "no list of numbers: '-1'"),
    ({"classes": "5..3"}, "no list of numbers: '5..3'"),
    ({"classes": "3,10"}, "there is no class 10; there are 10, from 0 to 9"),
    ({"classes": "0..999999999999"}, "there is no class 999999999999"),
    ({"guidance": "much"}, "guidance='much' is no number"),
    ({"guidance": "1,2"}, "guidance has 2 numbers; there are steps=4"),
    ({"guidance": "1,2,3,4", "steps": 5}, "has 4 numbers; there are steps=5"),
    ({"guidance": "-1"}, "guidance=-1.0 must be"),
    ({"num_samples": 0}, "num_samples=0 is not"),
    ({"steps": -1}, "steps=-1 is not"),
    ({"text": "texts.npz"}, "is for models of texts; this one has 10 classes"),
    ({"out": "grid.bmp"}, "out='grid.bmp' must end in .png"),
    ({"out": "no/where/grid.png"}, "the folder 'no/where' does not exist"),
    ({"animation": "order.mp4"}, "='order.mp4' must end in .gif or .png"),
    ({"animation": "no/order.gif"}, "animation='no/order.gif': the folder"),
  ],
)
def test_bad_input_makes_nothing(options, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  nothing = lambda *_: pytest.fail("An image was made.")
  options = {"out": "grid.png", "sampling": SAMPLING} | options
  with pytest.raises(ValueError, match=re.escape(message)):
    image_sampling.draw(Known(), {}, nothing, **options)
  assert not list(tmp_path.iterdir())


def test_a_model_of_texts_needs_some(tmp_path):
  model = Known(text_width=6)
  with pytest.raises(ValueError, match="text='' has no texts"):
    draw(tmp_path, model)
  file = str(tmp_path / "text.npz")
  np.savez(file, text=np.zeros((3, 4, 5), np.float32))
  with pytest.raises(ValueError, match="there is no text 3; there are 3"):
    draw(tmp_path, model, text=file, classes="3")
  with pytest.raises(ValueError, match=r"text has shape .* 6\]"):
    draw(tmp_path, model, text=file)


def test_an_encoded_picture_is_the_same():
  picture = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)
  data = image_grids.encode([picture], ".png")
  np.testing.assert_array_equal(Image.open(io.BytesIO(data)), picture)
