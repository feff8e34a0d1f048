"""Counts, equality with a second statement, sizes, precision, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import models
from models import flowformer, pretrained, taps
from models.flowformer import Flowformer
from tests import parity_helper
from tests.models import counting, flowformer_torch

# Parameters with 1000 classes, as counted from the authors' modules.
COUNTS = {"flowformer_224": (43_311_304, 0)}
FIELDS = {
  "widths": (8, 12),
  "depths": (1, 2),
  "heads": 2,
  "image_size": 32,
  "num_classes": 5,
}


def _model(**fields):
  return Flowformer(**{**FIELDS, **fields})


def _logits(model, variables, images, **options):
  call = functools.partial(model.apply, **options)
  return jax.jit(call)(variables, images)


def test_counts():
  assert set(COUNTS) == set(flowformer.VARIANTS) == set(flowformer.IMAGE_SIZES)
  (name,) = COUNTS
  assert counting.count(models.create(name), 32) == COUNTS[name]
  # The sizes of the class, whose heads do not divide them there.
  sizes = {"widths": (64, 128, 256, 512), "depths": (2, 2, 10, 4), "heads": 8}
  assert counting.count(models.create(name, **sizes), 32) == (22_415_528, 0)


@pytest.mark.parity
@pytest.mark.parametrize(
  "fields",
  [{}, {"attention": "softmax"}, {"clip": 0.0, "outer_epsilon": 1e-2}],
)
def test_logits_and_gradients(fields):
  model = _model(**fields)
  variables = parity_helper.randomise(_shapes(model), seed=0)
  theirs = flowformer_torch.create(model)
  parity_helper.fill(theirs, pretrained.to_tensors(variables, model))
  images = parity_helper.random_images(2, 32)
  (logits, ours), (expected, gradients) = parity_helper.logits_and_gradients(
    model, variables, theirs.eval(), images
  )
  assert expected.std() > 0.1
  np.testing.assert_allclose(logits, expected, atol=1e-4)
  for name, gradient in gradients.items():
    error = np.abs(ours[name] - gradient).max()
    assert error < 2e-4 * np.abs(gradient).max() + 1e-6, name


def _shapes(model, size=32):
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)


def test_other_sizes_precision_and_remat():
  model = _model(depths=(1, 1))
  variables = parity_helper.randomise(_shapes(model), seed=0)
  wide = parity_helper.random_images(2, 32)[:, :24].repeat(2, 2)
  exact = _logits(model, variables, wide)
  assert exact.shape == (2, 5)
  half = _logits(model.clone(dtype="bfloat16"), variables, wide)
  assert half.dtype == jnp.float32
  assert 0 < jnp.abs(half - exact).max() < 0.1 * jnp.abs(exact).max()

  def gradient(remat):
    def loss(params):
      again = model.clone(remat=remat)
      return jnp.sum(jnp.sin(again.apply({"params": params}, wide)))

    return jax.jit(jax.grad(loss))(variables["params"])

  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
  jax.tree.map(close, gradient(False), gradient(True))


def test_features_and_head():
  model = _model(num_classes=0)
  image = jax.ShapeDtypeStruct((1, 64, 32, 3), jnp.float32)
  variables = _shapes(model)
  assert "logits" not in variables["params"]["head"]
  run = functools.partial(jax.eval_shape, model.apply, variables, image)
  maps = jax.eval_shape(
    functools.partial(model.apply, method="features"), variables, image
  )
  shapes = [(1, 16, 8, 8), (1, 16, 8, 8), (1, 8, 4, 12)]
  assert [x.shape for x in maps] == shapes
  assert run().shape == (1, 12)


def test_the_map_of_flows_is_read():
  model = _model()
  variables = parity_helper.randomise(_shapes(model), seed=0)
  images = parity_helper.random_images(2, 32)
  name = "stage_1/block_1/attention/attention_weights"
  logits, values = jax.jit(lambda v, x: taps.read(model, v, x, names=[name]))(
    variables, images
  )
  assert values[name].shape == (2, 2, 16, 16)
  expected = _logits(model, variables, images)
  np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_only_the_feed_forward_branch_begins_small():
  model = models.create("flowformer_224", widths=(24,), depths=(2,))
  names = traverse_util.flatten_dict(_shapes(model)["params"], sep="/")
  scales = [name for name in names if "layer_scale" in name]
  assert scales == [f"stage_0/block_{i}/ffn_layer_scale" for i in range(2)]
  assert model.layer_scale == 1e-5


def test_stochastic_depth_drops_images():
  model = _model(stochastic_depth_rate=0.9, depths=(1, 3))
  variables = parity_helper.randomise(_shapes(model), seed=0)
  images = np.repeat(parity_helper.random_images(1, 32), 16, axis=0)
  rngs = {"dropout": jax.random.key(0)}
  logits = _logits(model, variables, images, train=True, rngs=rngs)
  assert 1 < len(np.unique(np.asarray(logits)[:, 0])) < 16


def test_errors_say_what_would_fit():
  def init(shape=(1, 32, 32, 3), **fields):
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(_model(**fields).init, jax.random.key(0), image)

  with pytest.raises(ValueError, match=r"heads is 3, .* width 8 of"):
    init(heads=3)
  with pytest.raises(ValueError, match="attention 'flows'; did you mean flow"):
    init(attention="flows")
  with pytest.raises(ValueError, match=r"depths is \(1,\); widths"):
    init(depths=(1,))
  with pytest.raises(ValueError, match=r"image_size is 36; .* multiple of 8"):
    init(image_size=36)
  with pytest.raises(ValueError, match=r"x is 32 x 36; .* multiples of 8"):
    init(shape=(1, 32, 36, 3))
