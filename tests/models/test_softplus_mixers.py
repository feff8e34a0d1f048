"""LSSA and LSSAR as options of mixers, against their formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import masks, normalizers, scales
from models import normalization, sequence_mixers
from tests import parity_helper
from tests.models import language

OFFERED = {"heads": 2, "head_dim": 6, "qk_norm": "unit"}


def options(power):
  softplus = {"normalizer": "softplus"}
  sharp = {
    "normalizer": "reweighted_softplus",
    "normalizer_options": {"power": power},
  }
  return {"scale_by": "log_length", **(sharp if power else softplus)}


def formula(params, x, power):
  """Section 3 of the fact sheet, with all arrays whole."""
  q, k, v = (
    jnp.einsum("btw,whd->bthd", x, params[name]["kernel"])
    for name in ("query", "key", "value")
  )
  q, k = (y / jnp.linalg.norm(y, axis=-1, keepdims=True) for y in (q, k))
  n = jnp.arange(1, x.shape[1] + 1, dtype=jnp.float32)[None, None, :, None]
  s = np.log(6) * jnp.log(n) * jnp.einsum("bihd,bjhd->bhij", q, k)
  a = jnp.where(
    np.tri(x.shape[1], dtype=bool)[None, None], jax.nn.softplus(s), 0
  )
  a = a / (a.sum(-1, keepdims=True) + 1e-8)
  if power:
    free = (np.arange(x.shape[1]) < 3)[None, None, :, None]
    b = jax.nn.relu(n * a - jnp.where(free, 0.0, 1.0)) ** power
    a = b / (b.sum(-1, keepdims=True) + 1e-8)
  out = jnp.einsum("bhij,bjhd->bihd", a, v)
  return jnp.einsum("bihd,hdw->biw", out, params["out"]["kernel"])


def variables(module, x):
  shapes = jax.eval_shape(module.init, jax.random.key(0), x)
  return parity_helper.randomise(shapes, 0)


@pytest.mark.parametrize("power", [0.0, 3.0])
def test_values_and_gradients_are_those_of_the_formula(power):
  x = jax.random.normal(jax.random.key(0), (2, 9, 8))
  module = sequence_mixers.create("full", OFFERED, options(power))
  given = variables(module, x)

  @functools.partial(jax.jit, static_argnums=0)
  def run(function, params, x):
    loss = lambda params, x: jnp.sum(jnp.sin(3 * function(params, x)))
    return function(params, x), jax.grad(loss, (0, 1))(params, x)

  ours = lambda params, x: module.apply({"params": params}, x)[0]
  wanted = lambda params, x: formula(params, x, power)
  out, gradients = run(ours, given["params"], x)
  expected, expected_gradients = run(wanted, given["params"], x)
  np.testing.assert_allclose(out, expected, atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=2e-4),
    gradients,
    expected_gradients,
  )
  # A model's weights stay as they are in float16 and bfloat16.
  for dtype in (jnp.bfloat16, jnp.float16):
    narrow = sequence_mixers.create(
      "full", {**OFFERED, "dtype": dtype}, options(power)
    )
    near = jax.jit(narrow.apply)(given, x)[0]
    assert near.dtype == dtype
    # A threshold makes of a small change a larger one.
    off = np.abs(near.astype(out.dtype) - out)
    assert np.mean(off) < 0.03 * np.abs(out).max()


def test_keys_are_counted_by_segment_without_positions():
  x = jax.random.normal(jax.random.key(0), (2, 7, 8))
  module = sequence_mixers.create("full", OFFERED, options(3.0))
  given = variables(module, x)
  apply = jax.jit(module.apply)
  segments = jnp.asarray([[4, 4, 4, 4, 4, 1, 1], [0, 7, 7, 7, 2, 2, 2]])
  positions = jnp.asarray([[0, 1, 2, 3, 4, 0, 1], [0, 0, 1, 2, 0, 1, 2]])
  expected = apply(given, x, positions, segments)[0]
  np.testing.assert_allclose(
    apply(given, x, None, segments)[0], expected, atol=1e-6
  )
  # And the first three of each are free of the threshold.
  alone = apply(given, x[:1, :5])[0]
  np.testing.assert_allclose(expected[0, :5], alone[0], atol=1e-5)


def test_a_trained_lssa_model_is_evaluated_as_lssar():
  """The paper's use without fine-tuning: another config, the same weights."""
  lssa, lssar = (
    language.model(qk_norm="unit", mixer_options={"full": options(power)})
    for power in (0.0, 15.0)
  )
  trained, tokens = language.variables(lssa), language.tokens()
  shapes = jax.eval_shape(lssar.init, jax.random.key(0), tokens)
  assert jax.tree.map(jnp.shape, trained) == jax.tree.map(jnp.shape, shapes)
  plain, sharp = (jax.jit(m.apply)(trained, tokens) for m in (lssa, lssar))
  np.testing.assert_allclose(plain[:, 0], sharp[:, 0], atol=1e-5)
  assert np.abs(plain - sharp).max() > 0.1


def test_unit_norm_at_extremes():
  module = normalization.UnitNorm()
  x = jnp.asarray([[0.0, 0.0], [3e-8, 4e-8], [3e15, 4e15], [1.0, 0.0]])
  out, slope = jax.jvp(lambda x: module.apply({}, x), (x,), (jnp.ones_like(x),))
  expected = [[0, 0], [0.6, 0.8], [0.6, 0.8], [1, 0]]
  np.testing.assert_allclose(out, expected, rtol=1e-6)
  assert np.isfinite(slope).all()


@pytest.mark.parametrize(
  ("implementation", "dtype"),
  [("xla", jnp.float32), ("xla", jnp.bfloat16), ("tpu_interpret", jnp.float32)],
)
def test_a_dominating_key_among_8192(implementation, dtype):
  """n a is near n, and 8192^15 is beyond float32."""
  n, dim = 8192, 16
  k = -jnp.ones((1, n, 1, dim)) / np.sqrt(dim)
  k = k.at[0, 5000].multiply(-1)
  q = jnp.ones((1, 9, 1, dim)) / np.sqrt(dim)
  v = jax.random.normal(jax.random.key(0), (1, n, 1, dim))
  places = jnp.arange(n, dtype=jnp.int32)[None]
  last = jnp.broadcast_to(places[:, -1:], (1, 9))

  @jax.jit
  def run(q, k, v):
    def loss(q, k, v):
      out = attention.dot_product_attention(
        q,
        k,
        v,
        scale=scales.log_length(last[:, None] + 1, 64),
        mask=masks.positions(last, places),
        normalizer=normalizers.reweighted_softplus(15.0),
        implementation=implementation,
      )
      return out.astype(jnp.float32).sum(), out

    return jax.grad(loss, (0, 1, 2), has_aux=True)(q, k, v)

  gradients, out = run(*(x.astype(dtype) for x in (q, k, v)))
  for x in (*gradients, out):
    assert np.isfinite(x.astype(jnp.float32)).all()
  np.testing.assert_allclose(
    out[0, 0].astype(jnp.float32), v[0, 5000], atol=0.02
  )
