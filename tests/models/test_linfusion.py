"""LinFusion's module: golden, explicit weights, sizes, counts, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import linfusion, taps
from models.attends import Layout
from models.linfusion import LinFusion
from tests import parity_helper

GRID = Layout((2, 3), (2, 3))


def wave(shape, phase, amplitude=1.0):
  n = np.arange(1, np.prod(shape) + 1)
  wave = (amplitude * np.sin(0.7 * n + phase)).reshape(shape)
  return jnp.asarray(wave, jnp.float32)


def run(module, variables, x, layout=GRID):
  apply = lambda variables, x: module.apply(variables, x, layout)
  return jax.jit(apply)(variables, x)


def random_variables(module, width=8, seed=0):
  x = jax.ShapeDtypeStruct((1, 6, width), jnp.float32)
  init = functools.partial(module.init, layout=GRID)
  shapes = jax.eval_shape(init, jax.random.key(0), x)
  return parity_helper.randomise(shapes, seed)


def test_golden():
  """Of the sheet, which gives F(x) as it is."""
  module = LinFusion(2, update="identity", attention_bias=False)
  kernels = {
    name: {"kernel": wave((4, 4), c, 0.5).T.reshape(4, 2, 2)}
    for c, name in enumerate(("query", "key", "value"), 1)
  }
  out = {"kernel": wave((4, 4), 4, 0.5).T, "bias": wave((4,), 5, 0.1)}
  updates = {
    f"{name}_values": wave((1, 6, 4), phase, 0.2)
    for name, phase in zip(linfusion.UPDATES, (6, 7), strict=True)
  }
  variables = {"params": {**kernels, "out": out}}
  x = wave((1, 6, 4), 0)
  y, _ = taps.read(module, variables, x, layout=GRID, edit=updates)
  assert y.sum() == pytest.approx(0.607733815, rel=1e-5)
  np.testing.assert_allclose(
    y[0, 0],
    [-0.12094913, 0.0337414154, 0.0971567024, 0.0320515916],
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    y[0, 5],
    [-0.0988339068, 0.0162503903, 0.108002348, 0.0291045976],
    rtol=1e-5,
  )


@pytest.mark.parametrize(
  "fields",
  [{}, {"reduction": 4}, {"update": "identity"}, {"update": "none"}],
)
def test_explicit_weights_in_float64(fields):
  module = LinFusion(2, **fields)
  variables = random_variables(module)
  params = jax.tree.map(np.float64, variables["params"])
  x = 2 * np.random.default_rng(1).standard_normal((2, 6, 8))

  def update(name):
    if "update" in fields:
      return x if fields["update"] == "identity" else 0
    f = params[name]
    y = x @ f["shrink"]["kernel"] + f["shrink"]["bias"]
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(
      y.var(-1, keepdims=True) + 1e-5
    )
    y = y * f["norm"]["scale"] + f["norm"]["bias"]
    y = np.where(y > 0, y, 0.01 * y)
    return y @ f["expand"]["kernel"] + f["expand"]["bias"]

  def heads(name, y):
    kernel, bias = params[name]["kernel"], params[name]["bias"]
    return np.einsum("bnc,chd->bhnd", y, kernel) + bias[None, :, None]

  phi = lambda t: np.where(t > 0, t + 1, np.exp(np.minimum(t, 0)))
  q = phi(heads("query", x + update("query_update")))
  k = phi(heads("key", x + update("key_update")))
  weights = q @ k.swapaxes(2, 3)
  weights /= weights.sum(-1, keepdims=True) + 6 * 1e-4
  out = (weights @ heads("value", x)).swapaxes(1, 2).reshape(2, 6, 8)
  expected = out @ params["out"]["kernel"] + params["out"]["bias"]
  y = run(module, variables, jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(y, expected, rtol=0, atol=5e-6)

  name = "attention_weights"
  read = lambda v, x: taps.read(module, v, x, names=[name], layout=GRID)
  _, values = jax.jit(read)(variables, jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(values[name], weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize("times", [2, 4])
def test_pixels_that_are_repeated_change_nothing(times):
  """Weights sum to one: the output has no size in it."""
  module = LinFusion(2)
  variables = random_variables(module)
  x = jax.random.normal(jax.random.key(0), (2, 2, 3, 8))
  large = x.repeat(times, 1).repeat(times, 2)
  layout = Layout((2 * times, 3 * times), GRID.grid)
  y = run(module, variables, x.reshape(2, 6, 8)).reshape(x.shape)
  y_large = run(module, variables, large.reshape(2, -1, 8), layout)
  expected = y.repeat(times, 1).repeat(times, 2)
  np.testing.assert_allclose(
    y_large.reshape(large.shape), expected, rtol=0, atol=2e-6
  )


def test_parameters_of_stable_diffusion():
  """The sheet's totals, from the widths of the modules that are replaced."""

  def count(width, heads, reduction):
    module = LinFusion(heads, reduction=reduction, attention_bias=False)
    x = jax.ShapeDtypeStruct((1, 6, width), jnp.float32)
    init = functools.partial(module.init, layout=GRID)
    params = jax.eval_shape(init, jax.random.key(0), x)["params"]
    size = lambda tree: sum(np.prod(x.shape) for x in jax.tree.leaves(tree))
    updates = sum(size(params[name]) for name in linfusion.UPDATES)
    return np.array([size(params), updates])

  # Widths, and how many modules have them.
  sd15 = {320: 5, 640: 5, 1280: 6}
  total = sum(number * count(w, 8, 1) for w, number in sd15.items())
  assert tuple(total) == (99_235_520, 49_661_440)
  sdxl = {640: 10, 1280: 60}
  total = sum(number * count(w, w // 64, 16) for w, number in sdxl.items())
  assert tuple(total) == (435_480_800, 25_797_600)


def test_updates_do_not_begin_at_zero():
  module = linfusion.Update(8)
  x = jax.random.normal(jax.random.key(0), (1, 6, 8))
  variables = jax.jit(module.init)(jax.random.key(1), x)
  assert jnp.abs(module.apply(variables, x)).mean() > 0.1


def test_gradients_and_bfloat16():
  module = LinFusion(2, rotary_base=100.0)
  variables = random_variables(module)
  x = jax.random.normal(jax.random.key(0), (2, 6, 8))
  loss = lambda v, x: jnp.sum(jnp.sin(run(module, v, x)))
  gradients = jax.grad(loss)(variables, x)
  for leaf in jax.tree.leaves(gradients):
    assert jnp.isfinite(leaf).all()
    assert jnp.abs(leaf).max() > 0
  half = run(module.clone(dtype="bfloat16"), variables, x)
  assert half.dtype == jnp.bfloat16
  exact = run(module, variables, x)
  assert jnp.abs(half - exact).max() < 0.05 * jnp.abs(exact).max()


def test_errors_name_what_would_fit():
  for fields, message in (
    ({"heads": 3}, "heads is 3; it must divide the width, 8"),
    ({"heads": 2, "reduction": 0}, "reduction is 0; it must divide .* 8"),
    ({"heads": 2, "update": "no"}, "'no'; did you mean none|known"),
  ):
    with pytest.raises(ValueError, match=message):
      random_variables(LinFusion(**fields))
