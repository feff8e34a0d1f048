"""Counts and golden numbers of U-HaloNet's released code, and its fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import models
from models import u_halonet
from tests.models import counting, small

# Parameters and batch statistics with 1000 classes, those that the released
# code makes as well.
COUNTS: dict[str, tuple[int, int]] = {
  "u_halonet_micro": (4_389_672, 768),
  "u_halonet_tiny": (31_523_176, 2_304),
  "u_halonet_small": (52_831_336, 2_304),
  "u_halonet_base": (93_327_336, 3_072),
}
FIELDS = {
  "widths": (8, 16, 32, 64),
  "depths": (1, 1, 2, 1),
  "head_dim": 8,
  "block_size": 2,
  "halo_size": 1,
  "num_classes": 5,
}
TWO_STAGES = {"widths": (8, 16), "depths": (1, 1)}
# What the released code computes of `_golden` with these fields: its logits,
# the sum of their gradient to the image and the sum of its absolute values.
GOLDEN_LOGITS = (-0.15067594, 0.07541171, 0.26603208, 0.33153336, 0.24110938)
GOLDEN_GRADIENT = (0.31249284, 42.476836)


def _model(**fields):
  return u_halonet.UHaloNet(**{**FIELDS, **fields})


def _shapes(model, size):
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)


def _golden(shapes):
  """Values that another program can make, by the order of the names."""
  flat = traverse_util.flatten_dict(shapes, sep="/")
  values = {}
  for i, path in enumerate(sorted(flat)):
    shape = flat[path].shape
    wave = np.sin(0.7 * np.arange(1, np.prod(shape) + 1) + i).reshape(shape)
    leaf = path.rpartition("/")[2]
    if leaf in ("scale", "var") or "layer_scale" in leaf:
      value = 1 + 0.3 * wave
    elif leaf == "kernel":
      outputs = shape[1:] if "/q/" in path or "/kv/" in path else shape[-1:]
      value = wave * np.sqrt(2 * np.prod(outputs) / np.prod(shape))
    else:
      value = 0.3 * wave
    values[path] = value.astype(np.float32)
  return traverse_util.unflatten_dict(values, sep="/")


def _golden_image():
  wave = np.sin(0.7 * np.arange(1, 64 * 64 * 3 + 1) ** 1.1)
  return wave.reshape(1, 64, 64, 3).astype(np.float32)


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
  model, size = models.create(name), models.image_size(name)
  # With all blocks: the last of a stage has a norm that the others lack.
  assert counting.count(model, size) == COUNTS[name]


def test_no_variant_is_uncounted():
  assert set(COUNTS) == set(u_halonet.VARIANTS)


# Traces or compiles whole networks.
@pytest.mark.slow
@pytest.mark.smoke
def test_golden_numbers_and_remat():
  model = _model()
  variables = jax.tree.map(jnp.asarray, _golden(_shapes(model, 64)))

  def logits_and_gradient(model):
    def loss(image):
      logits = model.apply(variables, image)
      return logits.sum(), logits

    gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(_golden_image())
    return logits[0], gradient

  logits, gradient = logits_and_gradient(model)
  np.testing.assert_allclose(logits, GOLDEN_LOGITS, rtol=1e-4, atol=1e-5)
  sums = gradient.sum(), jnp.abs(gradient).sum()
  np.testing.assert_allclose(sums, GOLDEN_GRADIENT, rtol=1e-3)
  _, again = logits_and_gradient(model.clone(remat=True))
  np.testing.assert_allclose(again, gradient, rtol=1e-4, atol=1e-5)


def test_any_size_and_the_pyramid():
  model = _model(**TWO_STAGES)
  variables = small.variables(model)
  images = small.images(batch=1, size=45)
  maps = small.apply(model, variables, images, method="features")
  assert [m.shape[1:] for m in maps] == [
    (23, 23, 4),
    (12, 12, 8),
    (6, 6, 16),
  ]
  assert jnp.isfinite(maps[-1]).all()


def test_headless_and_bfloat16():
  model = _model(**TWO_STAGES, num_classes=0)
  variables = small.variables(model)
  assert "head" not in variables["params"]
  images = small.images(batch=1, size=32)
  pooled = small.apply(model, variables, images)
  half = small.apply(model.clone(dtype=jnp.bfloat16), variables, images)
  assert pooled.shape == (1, 24)
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, pooled, atol=0.1)


def test_hidden_states_are_tapped():
  model = _model(**TWO_STAGES)
  variables = small.variables(model)
  _, tapped = small.apply(
    model,
    variables,
    small.images(batch=1, size=32),
    mutable=("intermediates",),
  )
  states = tapped["intermediates"]["stage_1"]["block_0"]["hidden_state"]
  assert states.shape == (1, 4, 4, 16)
  maps = [
    x
    for path, x in jax.tree_util.tree_leaves_with_path(tapped)
    if "attention_weights" in jax.tree_util.keystr(path)
  ]
  assert maps
  for weights in maps:
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)


def test_stochastic_depth_grows_to_the_last_block():
  stages = _model(stochastic_depth_rate=0.4).bind({}).stage
  rates = [rate for stage in stages for rate in stage.stochastic_depth_rates]
  np.testing.assert_allclose(rates, (0, 0.1, 0.2, 0.3, 0.4))


def test_depths_that_do_not_fit():
  with pytest.raises(ValueError, match=r"depths is \(1,\); widths"):
    _shapes(_model(depths=(1,)), 32)
