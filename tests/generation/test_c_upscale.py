"""Priors one by one, and sampling without them against plain loops."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import generation
from generation import c_upscale, c_upscale_checks
from models import taps
from models.diffusion_transformer import DiffusionTransformer
from models.dimr import DiMR

LABEL = np.array([1, 3])
SMALL = dict(
  sample_shape=(8, 8),
  channels=2,
  patch_size=(2, 2),
  width=16,
  depth=2,
  heads=2,
  num_classes=5,
  conditioning="cross",
  position_encoding="rotary",
)


@functools.cache
def start(**fields):
  """A model with random parameters, and images."""
  model = DiffusionTransformer(**SMALL, **fields)
  variables = jax.jit(model.init)(jax.random.key(0), **model.example_inputs())
  leaves, tree = jax.tree.flatten(variables)
  rng = np.random.default_rng(0)
  leaves = [
    jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32)
    for leaf in leaves
  ]
  x = jnp.asarray(rng.normal(size=(2, 8, 8, 2)), jnp.float32)
  return model, jax.tree.unflatten(tree, leaves), x


def upscaled(**options):
  model, variables, x = start()
  given = dict(
    condition={"label": LABEL},
    key=jax.random.key(1),
    steps=6,
    guidance=2.0,
    structure=0.0,
    gate=False,
  )
  return c_upscale.upscale(
    model, variables, x, generation.flow(), **given | options
  )


def test_without_priors_it_is_tiled_denoising():
  """A mean of tiles at each step, from one draw of noise, in plain loops."""
  model, variables, x = start()
  path = generation.flow()
  times = path.times(6)
  times = times[times <= 450]
  canvas = jax.image.resize(x, (2, 16, 16, 2), "cubic")
  noise = jax.random.normal(jax.random.key(1), canvas.shape)
  canvas = np.asarray(path.add_noise(canvas, noise, times[0]))
  apply = jax.jit(model.apply)
  for now, after in itertools.pairwise(times):
    total, counts = np.zeros(canvas.shape), np.zeros(canvas.shape)
    for row in (0, 4, 8):
      for column in (0, 4, 8):
        here = np.s_[:, row : row + 8, column : column + 8]
        time = jnp.full(2, now, jnp.float32)
        given, none = (
          np.asarray(apply(variables, canvas[here], time, jnp.asarray(label)))
          for label in (LABEL, np.array([5, 5]))
        )
        total[here] += none + 2 * (given - none)
        counts[here] += 1
    canvas = canvas + (after - now) / 1000 * (total / counts)
    canvas = canvas.astype(np.float32)
  np.testing.assert_allclose(upscaled(), canvas, atol=2e-4)


def test_pointwise_network_on_the_canvas():
  """Where a tile's prediction needs no neighbours, tiles change nothing."""
  x = start()[2]

  class Pointwise(DiffusionTransformer):
    def __call__(self, x, time, label=None, **options):
      return x * jnp.abs(x) + time.reshape(-1, 1, 1, 1) / 1000

  pointwise = Pointwise(**SMALL)
  path = generation.ddpm()
  made = c_upscale.upscale(
    pointwise,
    {},
    x,
    path,
    condition={"label": LABEL},
    key=jax.random.key(1),
    steps=7,
    structure=0.0,
    gate=False,
  )
  times = path.times(7)
  times = times[times <= 0.45 * 999]
  canvas = jax.image.resize(x, (2, 16, 16, 2), "cubic")
  noise = jax.random.normal(jax.random.key(1), canvas.shape)
  whole = lambda x, time, state: (x * jnp.abs(x) + time / 1000, state)
  expected = generation.sample(
    whole, path.add_noise(canvas, noise, times[0]), path, times=times
  )
  np.testing.assert_allclose(made, expected, rtol=1e-6, atol=1e-6)


def test_priors_of_no_weight_change_nothing():
  plain = np.asarray(upscaled())
  # One prompt for all tiles, mixed with itself.
  same = lambda tiles: {"label": np.broadcast_to(LABEL[None], (9, 2))}
  np.testing.assert_allclose(upscaled(mix=0.5, describe=same), plain, atol=1e-4)
  for options in (
    {"structure": 1.0},
    {"gate": True},
    {"mix": 0.5, "describe": lambda tiles: {"label": np.full((9, 2), 4)}},
  ):
    assert np.abs(upscaled(**options) - plain).max() > 1e-3, options


def test_describe_sees_the_tiles_of_the_resized_image():
  seen = []

  def describe(tiles):
    seen.append(tiles)
    return {"label": np.full((9, 2), 2)}

  upscaled(mix=0.5, describe=describe)
  resized = jax.image.resize(start()[2], (2, 16, 16, 2), "cubic")
  np.testing.assert_array_equal(seen[0][4], resized[:, 4:12, 4:12])


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 9)])
def test_exchange_of_low_frequencies(height, width):
  """With g = 1 the band is the other's, and what is above stays."""
  rng = np.random.default_rng(0)
  clean, low = rng.normal(size=(2, 3, height, width, 2)).astype(np.float32)
  made = c_upscale.exchange(jnp.asarray(clean), jnp.asarray(low), 1.0, 0.5)
  waves, of_clean, of_low = (
    np.fft.fft2(x, axes=(1, 2)) for x in (np.asarray(made), clean, low)
  )
  rows = abs(np.fft.fftfreq(height)) <= 0.25
  columns = abs(np.fft.fftfreq(width)) <= 0.25
  band = (rows[:, None] & columns[None])[None, ..., None]
  assert 0.1 < band.mean() < 0.5
  np.testing.assert_allclose(waves, np.where(band, of_low, of_clean), atol=1e-3)
  half = c_upscale.exchange(jnp.asarray(clean), jnp.asarray(low), 0.5, 0.5)
  np.testing.assert_allclose(half, (clean + made) / 2, atol=1e-5)
  np.testing.assert_allclose(c_upscale.low_pass(clean, 1.0), clean, atol=1e-5)
  mean = clean.mean(axis=(1, 2), keepdims=True)
  np.testing.assert_allclose(
    c_upscale.low_pass(clean, 0.0),
    np.broadcast_to(mean, clean.shape),
    atol=1e-5,
  )


def test_structure_holds_the_low_frequencies():
  """Of a step that is all exchange: the estimate has the small image's."""
  model, variables, x = start()
  path = generation.flow()
  low = jax.image.resize(x, (2, 16, 16, 2), "cubic")
  make = lambda structure: c_upscale.TiledDenoiser(
    model,
    variables,
    {"label": jnp.asarray(LABEL)[:, None]},
    None,
    low,
    jnp.float32(400.0),
    None,
    structure,
    path,
    c_upscale_checks.tiles_of(model, 2),
    False,
    0.5,
  )
  noisy = path.add_noise(
    low, jax.random.normal(jax.random.key(0), low.shape), 400.0
  )
  call = jax.jit(lambda d, *args: d(*args)[0])
  # At the first time the share is `structure`, at half of it the half.
  for time, share in ((400.0, 1.0), (200.0, 0.5)):
    plain = path.clean(call(make(None), noisy, time, {}), noisy, time)
    held = path.clean(call(make(1.0), noisy, time, {}), noisy, time)
    expected = c_upscale.exchange(plain, low, share, 0.5)
    np.testing.assert_allclose(held, expected, atol=1e-4)


def test_log_gate():
  seen = np.random.default_rng(0).uniform(size=(2, 3, 4, 3))
  seen[0, 1, 1, 1] = 1e-9
  # Of padding no place sees anything.
  unseen = np.concatenate([seen, 0 * seen[..., :1]], axis=-1)
  made = np.asarray(c_upscale.log_gate(jnp.asarray(unseen, jnp.float32)))
  assert not made[..., 3].any()
  made = np.asarray(c_upscale.log_gate(jnp.asarray(seen, jnp.float32)))
  np.testing.assert_array_equal(made[..., 0], np.zeros((2, 3, 4)))
  for row in range(2):
    for token in (1, 2):
      share = seen[row, ..., token] / seen[row, ..., token].max()
      np.testing.assert_allclose(
        made[row, ..., token], np.log(np.maximum(share, 1e-4)), atol=1e-5
      )
  assert made[0, 1, 1, 1] == np.float32(np.log(1e-4))


def test_gate_is_of_the_map_of_the_whole():
  """Where the canvas is one tile, of the model's own map at the same time."""
  model, variables, x = start()
  gated = model.clone(
    cross_attend="regional", cross_attend_options={"mix": 0.0}
  )
  denoise = c_upscale.TiledDenoiser(
    gated,
    variables,
    {"label": jnp.asarray(LABEL)[:, None]},
    None,
    x,
    jnp.float32(400.0),
    None,
    None,
    generation.flow(),
    c_upscale_checks.tiles_of(model, 1),
    True,
    1.0,
  )
  biases = denoise.tile_biases(x, 300.0)
  assert biases.shape == (1, 2, 16, 2)
  maps = taps.read(
    model,
    variables,
    x,
    jnp.full(2, 300.0),
    jnp.asarray(LABEL),
    names=["*/cross_attention/attention_weights"],
  )[1]
  assert len(maps) == 2
  seen = sum(np.asarray(m).mean(axis=1) for m in maps.values()) / 2
  expected = np.log(seen[..., 1] / seen[..., 1].max(axis=1, keepdims=True))
  np.testing.assert_allclose(biases[0, ..., 1], expected, atol=1e-5)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"scale": 1.5}, "scale is 1.5; it must be a whole number"),
    ({"overlap": 4}, "overlap is 4; it must be a tuple of whole numbers"),
    ({"overlap": (3, 4)}, r"overlap=\(3, 4\) must be multiples"),
    ({"overlap": (8, 4)}, r"overlap=\(8, 4\) must be from 0 to less"),
    ({"start": 0.0}, "start is 0.0; it must be a share, above 0"),
    ({"start": 0.1}, "start is 0.1, which leaves no step of steps=6"),
    ({"structure": 2.0}, "structure is 2.0; it must be a share"),
    ({"mix": 0.5}, "mix is 0.5, and there is no describe: prompts of"),
    ({"condition": {}}, 'it needs "label" or "text"'),
  ],
)
def test_refuses(options, message):
  with pytest.raises(ValueError, match=message):
    upscaled(**options)


def test_tiles_overlap_by_half_in_whole_patches():
  odd = DiffusionTransformer(**{**SMALL, "sample_shape": (6, 10)})
  tiles = c_upscale_checks.tiles_of(odd, 2)
  assert (tiles.shape, tiles.overlap) == ((12, 20), (2, 4))
  video = odd.clone(sample_shape=(3, 8, 8), patch_size=(1, 4, 2))
  assert c_upscale_checks.tiles_of(video, 3).overlap == (0, 4, 4)
  row = odd.clone(sample_shape=(8,), patch_size=(2,))
  with pytest.raises(ValueError, match=r"sample_shape of the model is \(8,\)"):
    c_upscale_checks.tiles_of(row, 2)


def test_refuses_a_model_without_cross_attention():
  model, variables, x = start()
  with pytest.raises(ValueError, match="of the model is 'adaptive': take"):
    c_upscale.upscale(
      model.clone(conditioning="adaptive"),
      variables,
      x,
      generation.flow(),
      condition={"label": LABEL},
      key=jax.random.key(0),
    )
  with pytest.raises(ValueError, match="of the model is None: take a model"):
    c_upscale_checks.plan(DiMR(), generation.flow(), condition={"label": LABEL})
  with pytest.raises(ValueError, match=r"x has sides \(8, 4\); the model has"):
    c_upscale.upscale(
      model,
      variables,
      x[:, :, :4],
      generation.flow(),
      condition={"label": LABEL},
      key=jax.random.key(0),
    )
