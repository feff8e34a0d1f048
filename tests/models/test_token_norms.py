"""Norms that outliers are told of: oracles, identities, bounds and counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import normalization, taps, token_norms
from models.transformer import Transformer
from tests import parity_helper
from tests.models import language, test_transformer

WIDTH, RANK, EPSILON = 6, 3, 1e-2


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def _rms(x, params):
  mean_square = np.square(x).mean(-1, keepdims=True)
  return params["scale"] * x / np.sqrt(mean_square + EPSILON)


def _pre_affine(x, params):
  return _rms(params["before"]["scale"] * x, params)


def _tanh(x, params):
  inner = np.tanh(params["alpha"]["scale"] * x)
  return params["scale"] * inner + params["bias"]


def _gated(formula, x, params):
  y = formula(x, params["norm"])
  low = y @ params["down"]["kernel"]
  return y * _sigmoid((low * _sigmoid(low)) @ params["up"]["kernel"])


FORMULAS = {
  "pre_affine_rms_norm": _pre_affine,
  "gated_rms_norm": functools.partial(_gated, _rms),
  "dynamic_tanh": _tanh,
  "gated_dynamic_tanh": functools.partial(_gated, _tanh),
}


def _made(name, dtype=jnp.float32, **options):
  """A norm, random parameters of it, and what it shall normalise."""
  make = token_norms.of_tokens(
    name,
    **{"epsilon": EPSILON, "gate_rank": RANK, **options},
    dtype=dtype,
    param_dtype=jnp.float32,
  )
  x = np.random.default_rng(1).standard_normal((2, 3, WIDTH))
  x = (3 * x).astype(np.float32)
  module = make()
  shapes = jax.eval_shape(module.init, jax.random.key(0), x)
  return module, parity_helper.randomise(shapes["params"], 2), x


def _wide(tree):
  return jax.tree.map(lambda p: np.asarray(p, np.float64), tree)


@pytest.mark.parametrize("name", FORMULAS)
def test_values_and_gradients(name):
  module, params, x = _made(name)
  direction = np.random.default_rng(3).standard_normal(x.shape)

  @jax.jit
  def run(params, x, direction):
    def loss(params, x):
      out = module.apply({"params": params}, x)
      return (out * direction).sum(), out

    return jax.grad(loss, (0, 1), has_aux=True)(params, x)

  gradients, out = run(params, x, direction.astype(np.float32))
  exact = FORMULAS[name]
  np.testing.assert_allclose(out, exact(_wide(x), _wide(params)), atol=1e-6)
  # Each number's derivative by a difference of the formula.
  leaves, treedef = jax.tree.flatten((_wide(params), _wide(x)))

  def value(leaves):
    params, x = treedef.unflatten(leaves)
    return (exact(x, params) * direction).sum()

  for i, gradient in enumerate(jax.tree.leaves(gradients)):
    expected = np.zeros(leaves[i].shape)
    for place in np.ndindex(expected.shape):
      values = []
      for step in (1e-6, -1e-6):
        moved = [leaf.copy() for leaf in leaves]
        moved[i][place] += step
        values.append(value(moved))
      expected[place] = (values[0] - values[1]) / 2e-6
    assert np.abs(expected).max() > 1e-3
    tolerance = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(gradient, expected, atol=tolerance)


@pytest.mark.parametrize("name", FORMULAS)
def test_bfloat16(name):
  module, params, x = _made(name, jnp.bfloat16)
  short = jnp.asarray(x, jnp.bfloat16)
  out = module.apply({"params": params}, short)
  assert out.dtype == jnp.bfloat16
  expected = FORMULAS[name](np.asarray(short, np.float64), _wide(params))
  error = np.abs(np.asarray(out, np.float64) - expected).max()
  assert error < 0.02 * np.abs(expected).max()


def test_a_norm_s_gate_is_float32():
  module, params, x = _made("gated_rms_norm", jnp.bfloat16)
  _, values = taps.read(module, {"params": params}, x, names=["norm_gate"])
  assert values["norm_gate"].dtype == jnp.float32


def test_what_they_begin_with():
  """One for factors, alpha as told, and gates whose logits are small."""
  module, _, x = _made("pre_affine_rms_norm")
  plain, plain_params, _ = _made("rms_norm")
  out = module.apply(module.init(jax.random.key(0), x), x)
  ones = {"params": jax.tree.map(jnp.ones_like, plain_params)}
  np.testing.assert_array_equal(out, plain.apply(ones, x))
  module, _, x = _made("dynamic_tanh", alpha=0.7)
  out = module.apply(module.init(jax.random.key(0), x), x)
  np.testing.assert_allclose(out, np.tanh(0.7 * x), atol=1e-6)
  module, _, x = _made("gated_rms_norm")
  out = module.apply(module.init(jax.random.key(0), x), x)
  np.testing.assert_allclose(out, plain.apply(ones, x) / 2, atol=1e-2)


def test_identities():
  module, params, x = _made("gated_rms_norm", epsilon=0.0)
  out = module.apply({"params": params}, x)
  for factor in (1e-3, 7.0):
    scaled = module.apply({"params": params}, factor * x)
    np.testing.assert_allclose(scaled, out, atol=1e-5)
  params["up"]["kernel"] = np.zeros_like(params["up"]["kernel"])
  half = module.apply({"params": params}, x)
  plain, _, _ = _made("rms_norm", epsilon=0.0)
  whole = plain.apply({"params": params["norm"]}, x)
  np.testing.assert_array_equal(half, whole / 2)
  # One factor for all channels is none; one for a channel is no other factor
  # behind, since it moves the statistics.
  module, params, x = _made("pre_affine_rms_norm", epsilon=0.0)
  plain_params = {"params": {"scale": params["scale"]}}
  whole = plain.apply(plain_params, x)
  params["before"]["scale"] = np.full(WIDTH, 2.5, np.float32)
  out = module.apply({"params": params}, x)
  np.testing.assert_allclose(out, whole, atol=1e-5)
  params["before"]["scale"][2] = 100.0
  out = module.apply({"params": params}, x)
  factors = np.where(np.arange(WIDTH) == 2, 100.0, 2.5)
  means = [np.square(y).mean(-1, keepdims=True) for y in (x, factors * x)]
  expected = np.asarray(whole) * factors * np.sqrt(means[0] / means[1])
  np.testing.assert_allclose(out, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ("share", "bound"), [(0.5, 0.866040), (0.9, 0.435983), (0.99, 0.141414)]
)
def test_an_outlier_shrinks_the_others_as_the_bound_says(share, bound):
  """Appendix A.1: rms <= max|scale| sqrt(1 - r^2 + e^2 r^2), here equal."""
  width, small = 2048, 0.01
  x = np.random.default_rng(0).standard_normal(width)
  rest = np.sqrt(np.square(x[1:]).sum())
  x[0] = rest * share / np.sqrt(1 - share**2)
  scale = np.ones(width)
  scale[0] = small
  exact = np.sqrt((1 - share**2) + (small * share) ** 2)
  assert exact == pytest.approx(bound, abs=1e-6)
  norm = normalization.RMSNorm(epsilon=0.0)
  # The same by a factor of the channel before the statistics.
  pre = normalization.RMSNorm(epsilon=0.0, pre_affine=True)
  before = np.ones(width)
  before[0] = x[0]
  flat = np.concatenate([[1.0], x[1:]])
  for out in (
    norm.apply({"params": {"scale": scale}}, x[None]),
    pre.apply(
      {"params": {"scale": scale, "before": {"scale": before}}}, flat[None]
    ),
  ):
    measured = np.sqrt(np.square(np.asarray(out, np.float64)).mean())
    assert measured == pytest.approx(bound, abs=1e-5)


def _count(**fields):
  return test_transformer.count(
    Transformer(width=2048, depth=28, mlp="swiglu", **fields)
  )


def test_parameters():
  """3.7 million: 28 layers of two norms, rank 16, and no gate elsewhere."""
  plain = _count(qk_norm=True)
  assert _count(qk_norm=True, norm="gated_rms_norm") - plain == 3_670_016
  added = _count(qk_norm=True, norm="pre_affine_rms_norm") - plain
  assert added == 28 * 2 * 2048
  tanh = _count(norm="dynamic_tanh")
  # Of all norms, the final one too: alpha and the bias.
  assert tanh - _count() == 57 * (2048 + 1)
  assert _count(norm="gated_dynamic_tanh") - tanh == 3_670_016


def test_the_residual_stream_is_cut_off():
  model = language.model(depth=2, embedding_scale=3.0)
  variables, tokens = language.variables(model), language.tokens()

  def states(**fields):
    module = model.clone(**fields)
    names = ["embedded_state", "layer_*_state"]
    _, values = taps.read(module, variables, tokens, names=names)
    return values

  free, cut = states(), states(residual_clip=0.8)
  assert set(cut) == {
    "embedded_state",
    *(
      f"layer_{i}/{name}_state"
      for i in range(2)
      for name in ("input", "middle", "hidden")
    ),
  }
  for name, state in cut.items():
    assert np.abs(free[name]).max() > 1.0
    assert np.abs(state).max() == np.float32(0.8), name
  first = np.clip(free["embedded_state"], -0.8, 0.8)
  np.testing.assert_array_equal(cut["embedded_state"], first)
