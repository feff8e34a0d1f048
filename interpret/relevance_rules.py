"""How relevance goes back through one layer: rules of arrays, without a model.

Layer-wise relevance propagation (LRP) hands what a layer's outputs were found
relevant back to its inputs, by what each has contributed. A rule of a layer
with weights is

    rule(product, x, weight, bias, relevance) -> relevance of x

where `product(x, weight)` is linear in both, as a matrix product or a
convolution, and the layer is product(x, weight) + bias, of shape
[batch, ..., outputs]; `bias` is [outputs] or None. Rules are transposes that
`jax.vjp` makes, so they jit, differentiate, and add up where windows overlap.
All compute in float32, and return float32. A rule conserves if the sums of the
relevance that comes in and goes out are equal; each says when it does.

Sources: Bach et al. (2015), "On Pixel-Wise Explanations for Non-Linear
Classifier Decisions by Layer-Wise Relevance Propagation", PLOS ONE 10(7);
Montavon et al., "Explaining Nonlinear Classification Decisions with Deep Taylor
Decomposition" (arXiv 1512.02479); "XAI for Transformers: Better Explanations
through Conservative Propagation" (2202.01935); "AttnLRP" (2402.05602).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Product = Callable[[jax.Array, jax.Array], jax.Array]
Rule = Callable[
  [Product, jax.Array, jax.Array, jax.Array | None, jax.Array], jax.Array
]


def zero(
  product: Product,
  x: jax.Array,
  weight: jax.Array,
  bias: jax.Array | None,
  relevance: jax.Array,
) -> jax.Array:
  """LRP-0: R_i = sum_k x_i w_ik R_k / z_k, with z the output, bias included.

  The bias keeps its share: of R_k what comes back is R_k (1 - b_k / z_k), so it
  conserves without biases only. Through a whole network of ReLU it is gradient
  x input: noisy, signed, without bounds where z is small.

  Args:
    product: linear in both arguments.
    x: input of the layer, [batch, ...].
    weight: of the layer, as `product` takes it.
    bias: [outputs], or None.
    relevance: of the output, [batch, ..., outputs].

  Returns:
    Relevance of `x`, float32. An output of exactly 0 gives nothing back.
  """
  return epsilon(product, x, weight, bias, relevance, epsilon=0.0)


def epsilon(
  product: Product,
  x: jax.Array,
  weight: jax.Array,
  bias: jax.Array | None,
  relevance: jax.Array,
  *,
  epsilon: float = 1e-2,
) -> jax.Array:
  """LRP-epsilon: as `zero`, of z + epsilon sign(z), where sign(0) is 1.

  Bach et al., equation 58. What epsilon and the bias take is lost, so it
  conserves as epsilon goes to 0, without biases.
  """
  x, weight, relevance = _float32(x, weight, relevance)
  z = _with_bias(product(x, weight), bias)
  return x * _back(product, x, weight, _ratio(relevance, z, epsilon))


def z_plus(
  product: Product,
  x: jax.Array,
  weight: jax.Array,
  bias: jax.Array | None,
  relevance: jax.Array,
) -> jax.Array:
  """z+: R_i = sum_k x_i v_ik R_k / sum_j x_j v_jk, with v = max(w, 0).

  It conserves for inputs that are not negative, wherever an input meets a
  positive weight; the bias takes no part. Of negative inputs it is not what
  Montavon et al. derived: use `z_box` for pixels, or `alpha_beta` with alpha 1,
  beta 0, which asks for the sign of the product.
  """
  del bias
  x, weight, relevance = _float32(x, weight, relevance)
  weight = jnp.maximum(weight, 0)
  quotient = _ratio(relevance, product(x, weight))
  return x * _back(product, x, weight, quotient)


def alpha_beta(
  product: Product,
  x: jax.Array,
  weight: jax.Array,
  bias: jax.Array | None,
  relevance: jax.Array,
  *,
  alpha: float = 2.0,
  beta: float = 1.0,
) -> jax.Array:
  """LRP-alpha-beta: positive and negative products x w are shared out apart.

  alpha R_k goes to the positive ones by their share, -beta R_k to the negative
  ones (Bach et al., equation 60). It conserves, for inputs of any sign; the
  bias takes no part. Where an output has products of one sign only, this gets
  all of R_k: ours, without which alpha - beta would not be kept there.

  Raises:
    ValueError: unless alpha - beta is 1, alpha at least 1.
  """
  if abs(alpha - beta - 1.0) > 1e-6 or beta < 0:
    raise ValueError(
      f"alpha is {alpha} and beta is {beta}; alpha - beta must be 1, and beta "
      "not negative, as 1 and 0 or 2 and 1"
    )
  del bias
  x, weight, relevance = _float32(x, weight, relevance)
  inputs = (jnp.maximum(x, 0), jnp.minimum(x, 0))
  weights = (jnp.maximum(weight, 0), jnp.minimum(weight, 0))
  pairs = {
    "for": tuple(zip(inputs, weights, strict=True)),
    "against": tuple(zip(inputs, weights[::-1], strict=True)),
  }
  z = {side: sum(product(*pair) for pair in pairs[side]) for side in pairs}
  share = {
    "for": jnp.where(z["against"] < 0, alpha, 1.0),
    "against": jnp.where(z["for"] > 0, -beta, 1.0),
  }
  return sum(
    part * _back(product, part, w, _ratio(share[side] * relevance, z[side]))
    for side in pairs
    for part, w in pairs[side]
  )


def z_box(
  product: Product,
  x: jax.Array,
  weight: jax.Array,
  bias: jax.Array | None,
  relevance: jax.Array,
  *,
  low: float | jax.Array,
  high: float | jax.Array,
) -> jax.Array:
  """z^B: for pixels, which lie between `low` and `high` and may be negative.

  Shares are of x w - low max(w, 0) - high min(w, 0), none of which is negative
  (Montavon et al., table 1). It conserves; the bias takes no part.

  Args:
    product: as of `zero`.
    x: as of `zero`.
    weight: as of `zero`.
    bias: not used.
    relevance: as of `zero`.
    low: smallest value that a pixel can have; broadcasts to `x`, as
      [1, 1, 1, channels] for pixels whose mean was subtracted.
    high: largest value.
  """
  del bias
  x, weight, relevance = _float32(x, weight, relevance)
  low, high = (jnp.broadcast_to(jnp.float32(e), x.shape) for e in (low, high))
  terms = (
    (x, weight),
    (-low, jnp.maximum(weight, 0)),
    (-high, jnp.minimum(weight, 0)),
  )
  quotient = _ratio(relevance, sum(product(a, w) for a, w in terms))
  return sum(a * _back(product, a, w, quotient) for a, w in terms)


def local(
  function: Callable[[jax.Array], jax.Array],
  x: jax.Array,
  relevance: jax.Array,
  *,
  epsilon: float = 0.0,
) -> jax.Array:
  """LRP-0 of any function, linearised here: x times vjp(R / function(x)).

  For layers without weights to choose a rule for: sums, means, and norms whose
  statistics `function` holds with `jax.lax.stop_gradient` (2202.01935, LN-rule;
  AttnLRP's of LayerNorm). It conserves where `function` is linear; what it adds
  keeps its share, as a bias.

  Args:
    function: maps arrays like `x` to those like `relevance`.
    x: its input.
    relevance: of its output.
    epsilon: as of `epsilon`.
  """
  x, relevance = _float32(x, relevance)
  z, back = jax.vjp(function, x)
  return x * back(_ratio(relevance, z, epsilon))[0]


def routed(
  function: Callable[[jax.Array], jax.Array],
  x: jax.Array,
  relevance: jax.Array,
) -> jax.Array:
  """Relevance goes where the values came from: of reshapes and max pools.

  It conserves. All of a maximum's goes to the winner, which is the first of
  equal ones; a winner of several overlapping windows gets the sum.

  Args:
    function: every output of it is one of its inputs.
    x: its input.
    relevance: of its output.
  """
  x, relevance = _float32(x, relevance)
  return jax.vjp(function, x)[1](relevance)[0]


def shared(
  parts: tuple[jax.Array, ...], relevance: jax.Array, *, epsilon: float = 0.0
) -> tuple[jax.Array, ...]:
  """Shares out by the parts of a sum: R part / sum of the parts.

  Of residual connections (AttnLRP, equation 8). It conserves but for epsilon.
  Shares have no bounds where parts nearly cancel.
  """
  *parts, relevance = _float32(*parts, relevance)
  quotient = _ratio(relevance, sum(parts), epsilon)
  return tuple(part * quotient for part in parts)


def softmax(
  scores: jax.Array, weights: jax.Array, relevance: jax.Array
) -> jax.Array:
  """AttnLRP's of softmax: R_i = x_i (R^out_i - s_i sum_j R^out_j).

  Proposition 3.1 of 2402.05602, a Taylor expansion at x whose constant term
  takes its share: it does not conserve.

  Args:
    scores: x, along the last axis; -inf where hidden, which gets 0.
    weights: s, softmax of `scores`.
    relevance: of `weights`, like them.
  """
  scores, weights, relevance = _float32(scores, weights, relevance)
  total = relevance.sum(-1, keepdims=True)
  scores = jnp.where(jnp.isneginf(scores), 0.0, scores)
  return scores * (relevance - weights * total)


def matrix_product(
  product: Product,
  left: jax.Array,
  right: jax.Array,
  relevance: jax.Array,
  *,
  epsilon: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """AttnLRP's of a product of two activations: each factor gets half.

  Proposition 3.3 of 2402.05602: R(a_ji) = sum_p a_ji b_ip R_jp / (2 o_jp). It
  conserves but for epsilon, which here has o's sign (theirs is positive).

  Args:
    product: linear in `left` and in `right`.
    left: the first factor.
    right: the second factor.
    relevance: of the product.
    epsilon: added to 2 o.
  """
  left, right, relevance = _float32(left, right, relevance)
  z, back = jax.vjp(product, left, right)
  of_left, of_right = back(_ratio(relevance, 2 * z, epsilon))
  return left * of_left, right * of_right


def attention(
  queries: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  relevance: jax.Array,
  *,
  epsilon: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """AttnLRP's of attention: both products by halves, and softmax between.

  The values keep half of the relevance. The other half goes through softmax,
  which does not conserve, to queries and keys.

  Args:
    queries: [batch, queries, heads, dim], scaled by dim**-0.5 here.
    keys: [batch, keys, heads, dim].
    values: [batch, keys, heads, dim].
    relevance: of the heads' outputs, [batch, queries, heads, dim].
    epsilon: of `matrix_product`.

  Returns:
    (queries', keys', values'), float32.
  """
  queries, keys, values = _float32(queries, keys, values)
  scores = _scores(queries, keys)
  weights = jax.nn.softmax(scores)
  of_weights, of_values = matrix_product(
    _mixed, weights, values, relevance, epsilon=epsilon
  )
  of_scores = softmax(scores, weights, of_weights)
  of_queries, of_keys = matrix_product(
    _scores, queries, keys, of_scores, epsilon=epsilon
  )
  return of_queries, of_keys, of_values


def attention_constant_weights(
  queries: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  relevance: jax.Array,
  *,
  epsilon: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The AH-rule of 2202.01935: weights are constants, values get everything.

  Arguments and results are those of `attention`; queries and keys get 0. It
  conserves but for epsilon.
  """
  queries, keys, values = _float32(queries, keys, values)
  weights = jax.nn.softmax(_scores(queries, keys))
  of_values = local(
    lambda values: _mixed(weights, values), values, relevance, epsilon=epsilon
  )
  return jnp.zeros_like(queries), jnp.zeros_like(keys), of_values


def _scores(queries, keys):
  scores = jnp.einsum("bqhd,bkhd->bhqk", queries, keys)
  return scores * queries.shape[-1] ** -0.5


def _mixed(weights, values):
  return jnp.einsum("bhqk,bkhd->bqhd", weights, values)


def _float32(*arrays):
  return tuple(array.astype(jnp.float32) for array in arrays)


def _with_bias(z, bias):
  if bias is None:
    return z
  return z + jnp.broadcast_to(bias.astype(z.dtype), z.shape)


def _back(product, x, weight, quotient):
  """The transpose of product(., weight), of an array like its output."""
  return jax.vjp(lambda x: product(x, weight), x)[1](quotient)[0]


def _ratio(relevance, z, epsilon=0.0):
  """R / (z + epsilon sign(z)), 0 where that is 0, with finite gradients."""
  z = z + jnp.where(z < 0, -epsilon, epsilon)
  there = z != 0
  return jnp.where(there, relevance / jnp.where(there, z, 1.0), 0.0)
