"""Gates and sums of values against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import finishes, masks

rng = np.random.default_rng(0)
B, Q, K, H, D = 2, 5, 7, 4, 3
attend = jax.jit(attention.dot_product_attention)


def normal(*shape, dtype=jnp.float32):
  return jnp.asarray(rng.standard_normal(shape), dtype)


def inputs():
  return normal(B, Q, H, 6), normal(B, K, 2, 6), normal(B, K, 2, D)


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


@pytest.mark.parametrize(
  "shape", [(B, Q, H), (B, Q, H, D), (1, 1, H), (B, Q, H, 1)]
)
def test_gate(shape):
  q, k, v = inputs()
  logits = normal(*shape)
  plain = attend(q, k, v)
  got = attend(q, k, v, finish=finishes.gate(logits))
  factor = sigmoid(logits[..., None] if logits.ndim == 3 else logits)
  np.testing.assert_allclose(got, plain * factor, atol=1e-6)


@pytest.mark.parametrize("operation", ["multiply", "add"])
@pytest.mark.parametrize(
  ("activation", "formula"),
  [
    ("half_sigmoid", lambda x: 0.5 + 0.5 * sigmoid(x)),
    ("silu", lambda x: np.asarray(x, np.float64) * sigmoid(x)),
    ("identity", lambda x: np.asarray(x, np.float64)),
  ],
)
def test_other_gates(activation, formula, operation):
  q, k, v = inputs()
  logits = normal(B, Q, H)
  plain = attend(q, k, v)
  gate = finishes.gate(logits, activation=activation, operation=operation)
  got = attend(q, k, v, finish=gate)
  value = formula(logits[..., None])
  expected = plain * value if operation == "multiply" else plain + value
  np.testing.assert_allclose(got, expected, atol=1e-6)


def test_open_and_half_open_gates():
  q, k, v = inputs()
  plain = attend(q, k, v)
  for logit, factor in ((jnp.inf, 1.0), (0.0, 0.5), (-jnp.inf, 0.0)):
    gate = finishes.gate(jnp.full((B, Q, H), logit))
    got = attend(q, k, v, finish=gate)
    np.testing.assert_array_equal(got, factor * plain)


def test_gate_is_computed_in_float32():
  """A gate of bfloat16 has no resolution near zero."""
  x = (x.astype(jnp.bfloat16) for x in inputs())
  logits = jnp.full((B, Q, H), -6.0, jnp.bfloat16)
  out = finishes.gate(logits).apply(jnp.ones((B, Q, H, D)), None)
  assert out.dtype == jnp.float32
  np.testing.assert_allclose(out, sigmoid(-6.0), rtol=1e-6)
  gated = attend(*x, finish=finishes.gate(logits))
  assert gated.dtype == jnp.bfloat16


MASKS = [
  (None, np.ones((B, H, Q, K), bool)),
  (masks.causal(1), np.tile(np.tri(Q, K, 1, dtype=bool), (B, H, 1, 1))),
  (
    masks.padding(jnp.array([0, 3])),
    np.tile(np.arange(K) < np.array([0, 3])[:, None, None, None], (1, H, Q, 1)),
  ),
]


@pytest.mark.parametrize(("mask", "visible"), MASKS)
def test_value_sum(mask, visible):
  q, k, v = inputs()
  weight = normal(B, Q, H)
  plain = attend(q, k, v, mask=mask)
  got = attend(q, k, v, mask=mask, finish=finishes.value_sum(weight))
  values = np.repeat(np.asarray(v, np.float64), H // 2, axis=2)
  total = np.einsum("bhij,bjhd->bihd", visible, values)
  expected = np.asarray(plain) + np.asarray(weight)[..., None] * total
  np.testing.assert_allclose(got, expected, atol=2e-6)


def test_finishes_are_applied_in_order():
  q, k, v = inputs()
  weight, logits = normal(B, Q, H), normal(B, Q, H, D)
  total, gate = finishes.value_sum(weight), finishes.gate(logits)
  plain = np.asarray(attend(q, k, v))
  added = np.asarray(attend(q, k, v, finish=[total]))
  got = attend(q, k, v, finish=[total, gate])
  np.testing.assert_allclose(got, added * sigmoid(logits), atol=1e-6)
  got = attend(q, k, v, finish=(gate, total))
  expected = plain * sigmoid(logits) + (added - plain)
  np.testing.assert_allclose(got, expected, atol=2e-6)


def test_gradients():
  q, k, v = inputs()
  weight, logits = normal(B, Q, H), normal(B, Q, H)

  def ours(v, weight, logits):
    return attention.dot_product_attention(
      q,
      k,
      v,
      mask=masks.causal(),
      finish=[finishes.gate(logits), finishes.value_sum(weight)],
    )

  def dense(v, weight, logits):
    weights = attention.attention_weights(q, k, mask=masks.causal())
    values = jnp.repeat(v, H // 2, axis=2)
    out = jnp.einsum("bhij,bjhd->bihd", weights, values)
    total = jnp.einsum("ij,bjhd->bihd", jnp.tri(Q, K), values)
    return out * jax.nn.sigmoid(logits)[..., None] + weight[..., None] * total

  def gradients(f):
    def loss(*arrays):
      return jnp.sum(jnp.sin(f(*arrays)))

    return jax.jit(jax.grad(loss, (0, 1, 2)))(v, weight, logits)

  got, expected = (gradients(f) for f in (ours, dense))
  for name, a, b in zip(("v", "weight", "logits"), got, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
  ("finish", "error"),
  [
    (
      lambda: finishes.gate(normal(B, Q, 3)),
      r"logits of the gate have shape \(2, 5, 3\); .*4\) or \(2, 5, 4, 3",
    ),
    (
      lambda: finishes.gate(normal(B, Q, H, 2)),
      r"have shape \(2, 5, 4, 2\)",
    ),
    (
      lambda: finishes.gate(normal(B, Q, H), activation="tanh"),
      "activation is 'tanh'; it must be one of sigmoid, half_sigmoid, silu",
    ),
    (
      lambda: finishes.gate(normal(B, Q, H), operation="times"),
      "operation is 'times'; it must be one of multiply, add",
    ),
    (
      lambda: finishes.value_sum(normal(B, H, Q)),
      r"weight of the value sum has shape \(2, 4, 5\); .* = \(2, 5, 4\)",
    ),
  ],
)
def test_errors_name_argument_and_value(finish, error):
  with pytest.raises(ValueError, match=error):
    attention.dot_product_attention(*inputs(), finish=finish())
