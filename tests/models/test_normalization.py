"""Statistics in float64, Flax's layers, and what a mask leaves out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import normalization
from tests.models import small, test_halonet, test_resnet, test_u_halonet
from tests.training import test_train_step


def _draw(shape, mean=0.0, seed=0):
  rng = np.random.default_rng(seed)
  return (rng.standard_normal(shape) + mean).astype(np.float32)


def _exact(x, axes):
  x = x.astype(np.float64)
  mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
  return (x - mean) / np.sqrt(variance + 1e-6)


@pytest.mark.parametrize(
  ("layer", "axes"),
  [
    (normalization.LayerNorm(), (-1,)),
    (normalization.BatchNorm(epsilon=1e-6), (0, 1, 2)),
  ],
  ids=["layer", "batch"],
)
def test_a_mean_of_a_thousand_deviations(layer, axes):
  x = _draw((3, 5, 4, 32), mean=1000.0)
  options = {}
  if isinstance(layer, nn.BatchNorm):
    options = {"use_running_average": False}
  out, _ = layer.init_with_output(jax.random.key(0), x, **options)
  # Flax's own are off by 0.3.
  np.testing.assert_allclose(out, _exact(x, axes), atol=5e-4)


@pytest.mark.parametrize("fields", [{"use_scale": False}, {"use_bias": False}])
def test_batch_norm_without_a_factor_or_an_offset(fields):
  layer = normalization.BatchNorm(epsilon=1e-6, **fields)
  x = _draw((5, 3, 4), mean=2.0)
  out, variables = layer.init_with_output(
    jax.random.key(0), x, use_running_average=False
  )
  left = {"scale", "bias"} - {name.removeprefix("use_") for name in fields}
  assert set(variables["params"]) == left
  np.testing.assert_allclose(out, _exact(x, (0, 1)), atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (7, 6)])
def test_batch_norm_is_flax_s(shape, dtype):
  x = jnp.asarray(_draw(shape, mean=0.5), dtype)
  ours, theirs = (
    cls(momentum=0.8, dtype=dtype)
    for cls in (normalization.BatchNorm, nn.BatchNorm)
  )
  variables = ours.init(jax.random.key(0), x, use_running_average=True)
  expected = theirs.init(jax.random.key(0), x, use_running_average=True)
  jax.tree.map(np.testing.assert_array_equal, variables, expected)
  variables = jax.tree.map(lambda v: v + _draw(v.shape, 2, 1), variables)

  def call(layer, average):
    def outputs(variables, x):
      out, new = layer.apply(
        variables, x, use_running_average=average, mutable=["batch_stats"]
      )
      out = out.astype(jnp.float32)
      return (out * _draw(shape, seed=2)).sum(), (out, new)

    # Gradients of the gradient's norm, too: the shift is a constant there.
    def norm(x):
      gradient = jax.grad(outputs, 1, has_aux=True)(variables, x)[0]
      return jnp.square(gradient.astype(jnp.float32)).sum()

    first = jax.jit(jax.value_and_grad(outputs, (0, 1), has_aux=True))
    return first(variables, x), jax.jit(jax.grad(norm))(x)

  tolerance = 1e-4 if dtype == jnp.float32 else 0.1
  for average in (False, True):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(
        np.asarray(a, np.float32),
        np.asarray(b, np.float32),
        rtol=tolerance,
        atol=tolerance,
      ),
      call(ours, average),
      call(theirs, average),
    )


@pytest.mark.parametrize("masked", [[1], [0, 3], [0, 1, 2], []])
def test_masked_examples_are_not_in_the_statistics(masked):
  x = _draw((4, 2, 3, 5), mean=3)
  mask = np.ones((4, 1, 1, 1), np.float32)
  mask[masked] = 0
  kept = mask[:, 0, 0, 0] > 0
  expected = normalization.batch_statistics(jnp.asarray(x[kept]))
  x[~kept] = np.nan
  statistics = normalization.batch_statistics(jnp.asarray(x), mask)
  np.testing.assert_allclose(statistics, expected, rtol=1e-5)
  np.testing.assert_allclose(expected[1], x[kept].var((0, 1, 2)), rtol=1e-5)
  with pytest.raises(ValueError, match=r"mask has shape \(4,\); for x"):
    normalization.batch_statistics(jnp.asarray(x), mask[:, 0, 0, 0])


MODELS = {
  "maxvit": small.model(widths=(16,), depths=(1,), layout=("mbconv",)),
  "maxvit remat": small.model(
    widths=(16,), depths=(1,), layout=("mbconv",), remat=True
  ),
  "resnet": test_resnet.small_model(widths=(8,), depths=(1,)),
  "halonet": test_halonet._model(
    layout=(("halo",),),
    widths=(16,),
    bottleneck_widths=(8,),
    strides=(1,),
    heads=(2,),
    final_width=8,
  ),
  "u_halonet": test_u_halonet._model(**test_u_halonet.TWO_STAGES),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_masked_image_acts_on_no_other(name):
  task = test_train_step.make_task(MODELS[name], num_classes=5)
  images = _draw((4, 16, 16, 3))
  label = np.array([1, 2, 3, 4])
  batch = {
    "image": images,
    "target": np.eye(5, dtype=np.float32)[label],
    "label": label,
    "mask": np.array([1, 0, 1, 1], np.float32),
    "unlabelled": np.zeros(4, np.float32),
    "damaged": np.zeros(4, bool),
  }
  variables = jax.eval_shape(MODELS[name].init, jax.random.key(0), images)
  variables = jax.tree.map(lambda s: 0.1 * _draw(s.shape, 3), variables)
  loss = jax.jit(task.loss)
  results = []
  for garbage in (0, 50 * _draw((16, 16, 3)), np.nan):
    images[1] = garbage
    results.append(loss(variables, batch, jax.random.key(0)))
  assert np.isfinite(results[0][0])
  for result in results[1:]:
    jax.tree.map(np.testing.assert_array_equal, result, results[0])
