"""The attention of LINA: linear, in the decoder gated and with a convolution.

Gates of decoder layers are factors of keys and values, a number for each token
and head, learned and 1 at the start ("KV gate", arXiv 2601.22630). They belong
to places of the sequence, hence to one resolution.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import attention
from attention import features, linear_normalizers, masks
from models import layers, lina_layers, open_attention
from models.finite_mask import FiniteMask

ATTENTIONS = ("linear", "softmax")
# Name: feature map and normalizer. The second is InLine's.
NORMALIZERS = {
  "division": (features.relu_epsilon, linear_normalizers.division()),
  "subtraction": (features.relu, linear_normalizers.subtraction()),
}
# Name: the parameters that it has. "shared" is one gate for all heads, "split"
# has another gate of keys in the denominator, "data" is made of the tokens.
# In the authors' code "key_value" is kvscale1, and so on in this order.
GATES = {
  "key_value": ("key_gate", "value_gate"),
  "shared": ("key_gate", "value_gate"),
  "key": ("key_gate",),
  "value": ("value_gate",),
  "split": ("key_gate", "value_gate", "weight_gate"),
  "data": ("key_gate", "value_gate"),
  "none": (),
}
GATE_LEAVES = GATES["split"]
_KERNEL_SIZE = 5


class Gates(NamedTuple):
  """Factors [batch or 1, tokens, heads or 1], float32, None for one.

  Attributes:
    key: of phi(k).
    value: of v.
    weight: of phi(k) in the denominator, where that has a gate of its own.
  """

  key: jax.Array | None = None
  value: jax.Array | None = None
  weight: jax.Array | None = None


_NO_GATES = Gates()


class LinaAttention(nn.Module):
  """Projections to heads, attention among all tokens, convolution, output.

  Attributes:
    heads: number of heads.
    attention: one of ATTENTIONS.
    normalizer: a key of NORMALIZERS, of linear attention.
    gate: a key of GATES, of linear attention.
    grid: rows and columns of the image, whose tokens are the last ones, where
      its neighbourhoods of 5 x 5 are convolved too; None for no convolution.
    implementation: which implementation of the attention runs; see
      `attention.kernels.dispatch`.
    dtype: dtype of the computation; all between the projections is float32.
    param_dtype: dtype of the parameters.
  """

  heads: int
  attention: str = "linear"
  normalizer: str = "division"
  gate: str = "none"
  grid: tuple[int, int] | None = None
  implementation: str = "auto"
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, lengths: jax.Array | None = None
  ) -> jax.Array:
    """Maps [batch, tokens, width] to an array like it.

    Args:
      x: [batch, tokens, width].
      lengths: integers [batch]: how many tokens, the first ones, are no
        padding; all if None. Padding acts on no other token.
    """
    width = x.shape[-1]
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    q, k, v = (
      lina_layers.HeadsDense(self.heads, **dtypes, name=name)(x)
      for name in ("query", "key", "value")
    )
    out = self._attend(q, k, v, self._gates(x), lengths)
    out = out.reshape(x.shape)
    if self.grid is not None:
      out = out + self._convolved(x)
    return self._dense(width, width, "out")(out)

  def _attend(self, q, k, v, gates, lengths):
    if self.attention == "softmax":
      mask = None if lengths is None else FiniteMask(masks.padding(lengths))
      return open_attention.dot_product(
        self, q, k, v, implementation=self.implementation, mask=mask
      )

    attend = functools.partial(
      mix, gates=gates, normalizer=self.normalizer, lengths=lengths
    )
    return open_attention.linear(
      self, attend, q, k, v, implementation=self.implementation
    )

  def _gates(self, x: jax.Array) -> Gates:
    tokens, width = x.shape[1:]
    heads = 1 if self.gate == "shared" else self.heads
    found = {}
    for name in GATES[self.gate]:
      if self.gate == "data":
        logits = self._dense(heads, width, name)(x).astype(jnp.float32)
        value = jnp.exp(nn.log_sigmoid(logits) / 16)
      else:
        value = self._learned_gate(name, (tokens, heads))
      found[name.removesuffix("_gate")] = value
    return Gates(**found)

  def _learned_gate(self, name: str, shape: tuple[int, int]) -> jax.Array:
    if self.has_variable("params", name):
      have = self.get_variable("params", name).shape
      if have != shape:
        raise ValueError(
          f"{'/'.join((*self.path, name))} has shape {have}; this resolution "
          f"needs {shape}: pretrained.adapt(variables, model, "
          "resize_tables=True) starts such gates again at one"
        )
    value = self.param(name, nn.initializers.ones, shape, self.param_dtype)
    return value.astype(jnp.float32)[None]

  def _convolved(self, x: jax.Array) -> jax.Array:
    """Convolves the image of what the layer read; others are zeros."""
    batch, tokens, width = x.shape
    rows, columns = self.grid
    others = tokens - rows * columns
    init = lina_layers.uniform(_KERNEL_SIZE**2)
    # A kernel of attention may be asked for where the convolution has none.
    named = self.implementation.startswith(("xla", "tpu"))
    convolve = layers.DepthwiseConv(
      _KERNEL_SIZE,
      use_bias=True,
      kernel_init=init,
      bias_init=init,
      implementation=self.implementation if named else "auto",
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="convolution",
    )
    image = convolve(x[:, others:].reshape(batch, rows, columns, width))
    image = image.reshape(batch, rows * columns, width)
    return jnp.pad(image, ((0, 0), (others, 0), (0, 0)))

  def _dense(self, out, fan_in: int, name: str) -> nn.Module:
    return lina_layers.dense(
      out, fan_in, dtype=self.dtype, param_dtype=self.param_dtype, name=name
    )


def mix(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  gates: Gates = _NO_GATES,
  normalizer: str = "division",
  lengths: jax.Array | None = None,
  *,
  implementation: str = "auto",
) -> jax.Array:
  """Linear attention, gated.

  sum_j phi(q_i) . phi(k_j) g_j h_j v_j / (sum_j phi(q_i) . phi(k_j) w_j +
  N 1e-6) by division, with gates g of keys, h of values, and w of keys in the
  denominator, which is g where there is none.

  Args:
    q: [batch, tokens, heads, dim]; likewise k and v.
    k: keys.
    v: values.
    gates: factors of keys and values.
    normalizer: a key of NORMALIZERS.
    lengths: integers [batch]: how many keys are no padding; all if None.
    implementation: see `attention.kernels.dispatch`.

  Returns:
    [batch, tokens, heads, dim] in the dtype of `q`, computed in float32.
  """
  feature_map, made_normalizer = NORMALIZERS[normalizer]
  options = {
    "feature_map": feature_map,
    "lengths": lengths,
    "implementation": implementation,
  }
  if gates.weight is None:
    return attention.linear_attention(
      q,
      k,
      v,
      key_gate=gates.key,
      value_gate=gates.value,
      normalizer=made_normalizer,
      **options,
    )
  # The denominator's gate is a last value, so that both sums are of one pass.
  dtype = q.dtype
  q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
  weight = jnp.broadcast_to(gates.weight[..., None], (*v.shape[:3], 1))
  v = v * (gates.key * gates.value)[..., None]
  sums = attention.linear_attention(
    q,
    k,
    jnp.concatenate([v, weight], axis=-1),
    normalizer=linear_normalizers.identity(),
    **options,
  )
  count = k.shape[1] if lengths is None else lengths[:, None, None, None]
  return (sums[..., :-1] / (sums[..., -1:] + 1e-6 * count)).astype(dtype)
