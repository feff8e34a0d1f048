"""Whole images: padding, tiles and self-ensemble against the network itself."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks import whole_images
from training import sharding

RADIUS = 3


class Local(nn.Module):
  """Convolutions, so no value depends on pixels more than RADIUS away."""

  scale: int = 2
  size_multiple: int = 4
  # Adds the mean of the image, on which then all pixels depend.
  everywhere: bool = False

  @nn.compact
  def __call__(self, x, train=False):
    assert not train
    assert x.dtype == jnp.float32
    assert not any(n % self.size_multiple for n in x.shape[1:3])
    for width in (4, 4, 3 * self.scale**2):
      x = nn.gelu(nn.Conv(width, (3, 3))(x))
    if self.everywhere:
      x = x + x.mean((1, 2), keepdims=True)
    batch, height, width, _ = x.shape
    s = self.scale
    x = x.reshape(batch, height, width, s, s, 3).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, s * height, s * width, 3)


@pytest.fixture(scope="module")
def model():
  return Local()


@pytest.fixture(scope="module")
def variables(model):
  fresh = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
  return jax.tree.map(lambda x: x + 0.1, fresh)


@pytest.fixture(scope="module")
def step(model):
  return whole_images.jitted(model)


@pytest.fixture
def create(model, variables, step):
  def create(**options):
    return whole_images.ImageRestorer(model, variables, step=step, **options)

  return create


def image(height, width, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_an_image_is_padded_by_reflection_and_cropped(create, model, variables):
  given = image(17, 10)
  padded = np.empty((20, 12, 3), np.float32)
  # Without the edge itself: 16 17 would be 16, 15, 14 and 13.
  for row, column in np.ndindex(20, 12):
    source = (
      row if row < 17 else 32 - row,
      column if column < 10 else 18 - column,
    )
    padded[row, column] = given[source] / np.float32(255)
  expected = model.apply(variables, jnp.asarray(padded[None]))[0, :34, :20]
  made = create()(given)
  assert (made.shape, made.dtype) == ((34, 20, 3), np.float32)
  np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-6)


def test_a_side_shorter_than_its_padding(create):
  assert create()(image(1, 2)).shape == (2, 4, 3)


# 28 + 12 n ends with the image, the others with remainders of one to three
# multiples, thinner than the overlap.
@pytest.mark.parametrize("height", [26, 28, 30, 33, 37, 40])
def test_tiles_equal_the_whole_where_the_overlap_is_enough(create, height):
  given = image(height, 23)
  whole = create()(given)
  restorer = create(tile=20, overlap=2 * RADIUS, batch_size=3)
  calls = []
  made = restorer(given, lambda: calls.append(0))
  np.testing.assert_allclose(made, whole, rtol=1e-5, atol=1e-6)
  assert len(calls) == restorer.count(given.shape) > 1


def test_tiles_with_less_overlap_are_not_the_whole(create):
  """So the test above sees what is near an edge; and most is equal."""
  given = image(40, 40)
  whole = create()(given)
  off = np.abs(create(tile=20, overlap=0)(given) - whole).max(-1) > 1e-4
  assert 0 < off.mean() < 0.5
  # Only within reach of where tiles meet.
  rows = np.flatnonzero(off.any(1))
  assert not off[2 * (20 + RADIUS) :, 2 * (20 + RADIUS) :].any()
  assert rows.min() >= 0
  np.testing.assert_array_equal(
    np.flatnonzero(off[:, 20]),
    np.arange(2 * (20 - RADIUS), 2 * (20 + RADIUS)),
  )


def test_tiles_of_one_size_are_one_program(variables):
  traced = []

  class Traced(Local):
    @nn.compact
    def __call__(self, x, train=False):
      traced.append(x.shape)
      return Local.__call__(self, x, train)

  step = whole_images.jitted(Traced())
  restorer = whole_images.ImageRestorer(
    Traced(), variables, tile=8, overlap=4, batch_size=2, step=step
  )
  for height, width in ((17, 30), (44, 19), (9, 25)):
    assert restorer(image(height, width)).shape == (2 * height, 2 * width, 3)
  assert traced == [(2, 8, 8, 3)]


def test_tiles_are_split_over_devices(model, variables, create):
  mesh = jax.sharding.Mesh(
    np.array(jax.devices()[:4]).reshape(1, 4, 1, 1, 1), sharding.AXES
  )
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  placed = jax.device_put(variables, everywhere)
  restorer = whole_images.ImageRestorer(
    model, placed, tile=20, overlap=2 * RADIUS, batch_size=3
  )
  given = image(40, 33)
  np.testing.assert_allclose(
    restorer(given), create()(given), rtol=1e-5, atol=1e-6
  )


def test_the_self_ensemble_is_the_mean_of_eight(create):
  given = image(12, 8)
  restorer = create()
  total = np.zeros((24, 16, 3))
  for turns, mirrored in itertools.product(range(4), (False, True)):
    turned = np.rot90(given[:, ::-1] if mirrored else given, turns)
    back = np.rot90(restorer(np.ascontiguousarray(turned)), -turns)
    total += back[:, ::-1] if mirrored else back
  together = create(self_ensemble=True)
  made = together(given)
  assert made.dtype == np.float32
  np.testing.assert_allclose(made, total / 8, rtol=1e-5, atol=1e-6)
  # Far from what one of them gives.
  assert np.abs(made - restorer(given)).max() > 1e-2
  assert together.count(given.shape) == 8
  # An image and its mirror image are restored to the same, mirrored.
  np.testing.assert_allclose(
    together(given[:, ::-1]), made[:, ::-1], rtol=1e-5, atol=1e-6
  )


def test_an_ensemble_of_tiles(create):
  given = image(30, 22)
  whole = create(self_ensemble=True)(given)
  tiled = create(self_ensemble=True, tile=20, overlap=2 * RADIUS)
  np.testing.assert_allclose(tiled(given), whole, rtol=1e-5, atol=1e-6)
  calls = []
  tiled(given, lambda: calls.append(0))
  assert len(calls) == tiled.count(given.shape)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (np.zeros((4, 4), np.uint8), r"uint8 \[4, 4\]; it must be uint8"),
    (np.zeros((4, 4, 4), np.uint8), r"\[4, 4, 4\]; it must be"),
    (np.zeros((4, 4, 3), np.float32), "float32"),
    (np.zeros((0, 4, 3), np.uint8), "no pixels"),
  ],
)
def test_what_is_no_image(create, given, message):
  with pytest.raises(ValueError, match=message):
    create()(given)


@pytest.mark.parametrize(
  ("options", "advice"),
  [
    ({}, "for 1 times 12 x 8 pixels at a time. .* with --tile=256.$"),
    (
      {"tile": 8, "overlap": 0, "batch_size": 2},
      "for 2 times 8 x 8 .* a --tile below 8, or a .*eval_batch_size below 2.$",
    ),
  ],
)
def test_too_little_memory(model, variables, options, advice):
  def step(variables, rows):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

  restorer = whole_images.ImageRestorer(model, variables, step=step, **options)
  with pytest.raises(ValueError, match=advice):
    restorer(image(12, 8))


def test_tiles_that_do_not_fit_the_model(create):
  with pytest.raises(ValueError, match="tile=10 must be a multiple of 4"):
    create(tile=10, overlap=0)
  with pytest.raises(ValueError, match="overlap=32 must be from 0 to 28"):
    create(tile=32, overlap=32)
  with pytest.raises(ValueError, match="overlap=-1 must be 0 or more"):
    create(overlap=-1)
