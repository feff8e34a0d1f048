"""FlashBias's proofs: three forms of one bias, exact factors, no bias array."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

import attention
from attention import masks, scores
from tests import parity_helper
from tests.attention import kernel_runs

# Ragged, as no tile divides them, and with a rank of the paper's benchmark.
Q, K, HEADS, DIM, RANK = 150, 133, 2, 16, 8
IMPLEMENTATIONS = ("xla", "tpu_interpret", "gpu_interpret")


def normal(seed, *shape):
  values = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(values, jnp.float32)


ARRAYS = {
  "q": normal(0, 1, Q, HEADS, DIM),
  "k": normal(1, 1, K, HEADS, DIM),
  "v": normal(2, 1, K, HEADS, DIM),
  "q_factor": normal(3, 1, Q, HEADS, RANK) * 0.5,
  # Heads share the keys' factors, as in the paper's model of points.
  "k_factor": normal(4, 1, K, 1, RANK) * 0.5,
}
OUT_BAR = normal(5, 1, Q, HEADS, DIM)


@functools.cache
def exact(causal):
  """Output and gradients of PyTorch, with the bias as a dense mask."""
  torch = parity_helper.import_torch()
  given = {
    name: torch.tensor(np.asarray(x), dtype=torch.float64, requires_grad=True)
    for name, x in ARRAYS.items()
  }
  q, k, v, q_factor, k_factor = given.values()
  bias = torch.einsum(
    "bqhr,bkhr->bhqk", q_factor, k_factor.expand(-1, -1, HEADS, -1)
  )
  if causal:
    hidden = torch.ones(Q, K, dtype=torch.bool).tril().logical_not()
    bias = bias.masked_fill(hidden, -math.inf)
  out = torch.nn.functional.scaled_dot_product_attention(
    *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=bias
  ).transpose(1, 2)
  out.backward(torch.tensor(np.asarray(OUT_BAR), dtype=torch.float64))
  gradients = {name: x.grad.numpy() for name, x in given.items()}
  return {"out": out.detach().numpy(), **gradients}


def two_products(implementation, causal, q, k, v, q_factor, k_factor):
  return attention.dot_product_attention(
    q,
    k,
    v,
    score_mods=scores.factored_bias(q_factor, k_factor),
    mask=masks.causal() if causal else None,
    implementation=implementation,
  )


def one_product(implementation, causal, q, k, v, q_factor, k_factor):
  """Scaled queries beside their factors, and no scale of the sum."""
  k_factor = jnp.broadcast_to(k_factor, (*k.shape[:3], RANK))
  return attention.dot_product_attention(
    jnp.concatenate([q * DIM**-0.5, q_factor], axis=-1),
    jnp.concatenate([k, k_factor], axis=-1),
    v,
    scale=1.0,
    mask=masks.causal() if causal else None,
    implementation=implementation,
  )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
  ("form", "implementation"),
  [(one_product, "xla"), *((two_products, name) for name in IMPLEMENTATIONS)],
)
def test_forms_are_the_dense_bias(form, implementation, causal):
  """The sheet's bounds: 2e-6 of the output, 1e-4 of all five gradients."""
  attend = functools.partial(form, implementation, causal)
  got = kernel_runs.with_gradients(attend)(ARRAYS, OUT_BAR)
  expected = exact(causal)
  np.testing.assert_allclose(got["out"], expected["out"], atol=2e-6)
  for name in ARRAYS:
    error = np.linalg.norm(got[name] - expected[name])
    assert error < 1e-4 * np.linalg.norm(expected[name]), name


def weights(mod, mask=None):
  return attention.attention_weights(
    ARRAYS["q"][:, :40], ARRAYS["k"][:, :40], score_mods=mod, mask=mask
  )


def test_factors_of_a_distance_of_nine_channels_five_and_four():
  """Equation 4, the released code's, and without what the softmax cancels."""
  x = normal(6, 40, 3)
  one, norm = jnp.ones((40, 1)), jnp.sum(x**2, -1, keepdims=True)
  each = jnp.ones_like(x)
  forms = [
    (jnp.concatenate(pair[0], -1), jnp.concatenate(pair[1], -1))
    for pair in (
      (([-(x**2), -each, 2 * x]), ([each, x**2, x])),
      (([2 * x, -norm, one]), ([x, one, -norm])),
      (([2 * x, one]), ([x, -norm])),
    )
  ]
  assert [q.shape[-1] for q, _ in forms] == [9, 5, 4]
  distance = np.asarray(x)[:, None] - np.asarray(x)[None]
  expected = weights(scores.bias(jnp.asarray(-(distance**2).sum(-1))))
  for q, k in forms:
    got = weights(scores.factored_bias(q[:, None], k[:, None]))
    np.testing.assert_allclose(got, expected, atol=2e-6)
  ours = weights(scores.squared_distance(x, x))
  np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_alibi_of_rank_one_where_it_is_causal():
  """What depends on the query alone cancels; both ways round it would not."""
  slopes = scores.alibi_slopes(HEADS)
  place = jnp.arange(40.0)[:, None, None]
  one = scores.factored_bias(
    jnp.broadcast_to(slopes[None, :, None], (40, HEADS, 1)), place
  )
  expected = weights(scores.alibi(slopes), masks.causal())
  np.testing.assert_allclose(weights(one, masks.causal()), expected, atol=2e-6)
  two = weights(scores.alibi_factors(slopes, 40, 40), masks.causal())
  np.testing.assert_allclose(two, expected, atol=2e-6)
  # The paper's demonstration has the other sign.
  wrong = weights(scores.alibi(-slopes), masks.causal())
  assert np.abs(wrong - expected).max() > 0.1


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
def test_no_array_has_a_number_for_each_score(implementation):
  """Forwards and backwards; the reference has several."""
  length = 1000

  def largest(implementation):
    def loss(q, factor):
      out = two_products(implementation, False, q, q, q, factor, factor)
      return jnp.sum(out**2)

    shapes = [(1, length, 1, 16), (1, length, 1, RANK)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    program = jax.make_jaxpr(jax.grad(loss, (0, 1)))(*arrays)
    return max(_sizes(program.jaxpr))

  assert largest("xla") >= length**2
  # Rows are padded to tiles of 128 lanes.
  assert largest(implementation) <= 1024 * 128 * 4


def _sizes(jaxpr):
  """Of what each equation makes, but for what stays within a kernel."""
  for equation in jaxpr.eqns:
    for x in equation.outvars:
      yield math.prod(x.aval.shape)
    if equation.primitive.name == "pallas_call":
      continue
    for inner in core.jaxprs_in_params(equation.params):
      yield from _sizes(inner)
