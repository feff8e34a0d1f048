"""The head that turns noise into a token: an MLP that gives a velocity."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import (
  dense,
  feed_forward_branch,
  feed_forward_tpu,
  layers,
  lina_layers,
  normalization,
)

# Of the norms without parameters.
_EPSILON = 1e-6
# The least for which the kernel of feed-forward layers is taken: its parameters
# are a quarter of those of a transformer's layer.
_TOKENS_OF_A_CHANNEL = 1
_ZEROS = {
  "kernel_init": nn.initializers.zeros,
  "bias_init": nn.initializers.zeros,
}


class FlowHead(nn.Module):
  """Velocity of a noisy token, given the time and what the token shall be of.

  Of MAR (arXiv 2406.11838): each token is one example to it, wherever it is.
  At the start the velocity is exactly zero.

  Attributes:
    width: channels of the hidden state.
    depth: number of blocks.
    feed_forward_implementation: see `FlowBlock`.
    dtype: dtype of the computation; the velocity is float32.
    param_dtype: dtype of the parameters.
  """

  width: int
  depth: int
  feed_forward_implementation: str = "auto"
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x_t: jax.Array, t: jax.Array, z: jax.Array) -> jax.Array:
    """Returns the velocity, noise minus token, as the head sees it.

    Args:
      x_t: noisy tokens [..., token_dim].
      t: times [...], from 0 (no noise) to 1000 (noise alone).
      z: what the transformer says of the tokens [..., width].

    Leading axes of `t` and `z` may be of size one where those of `x_t` are not.
    What is made of them alone is then computed once, not for each.

    Returns:
      [..., token_dim], float32.
    """
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    x = lina_layers.dense(
      self.width,
      x_t.shape[-1],
      bias_init=nn.initializers.zeros,
      name="patch_embed",
      **dtypes,
    )(x_t)
    mlp = lambda name, **options: lina_layers.Mlp(
      self.width, self.width, name=name, **options, **dtypes
    )
    time = mlp("time", kernel_init=nn.initializers.normal(0.02))
    condition = mlp("condition")(z) + time(time_features(t, self.dtype))
    condition = nn.silu(condition)
    for i in range(self.depth):
      block = FlowBlock(
        self.feed_forward_implementation, name=f"block_{i}", **dtypes
      )
      x = block(x, condition)
    statistics = _statistics(condition, 2 * self.width, dtypes)
    x = _modulated(x, *jnp.split(statistics, 2, axis=-1), dtypes)
    # In float32, since a sampler adds up many of them.
    return lina_layers.dense(
      x_t.shape[-1],
      self.width,
      dtype=jnp.float32,
      param_dtype=self.param_dtype,
      name="out",
      **_ZEROS,
    )(x.astype(jnp.float32))


class FlowBlock(nn.Module):
  """x + g LN(MLP(LN(x) (1 + s) + b)), with s, b, g of the condition.

  Attributes:
    feed_forward_implementation: which implementation runs of all but what makes
      s, b and g; see `feed_forward_branch.kernel`.
    dtype: dtype of the computation.
    param_dtype: dtype of the parameters.
  """

  feed_forward_implementation: str = "auto"
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
    """Maps [..., width], given SiLU(c) [..., width], to an array like `x`."""
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    width = x.shape[-1]
    run = None
    if not self.is_initializing():
      run = self._kernel(x, condition)
    if run is not None:
      return run(_in_rows(x), None).reshape(x.shape)
    statistics = _statistics(condition, 3 * width, dtypes)
    scale, shift, gate = jnp.split(statistics, 3, axis=-1)
    y = _modulated(x, scale, shift, dtypes)
    y = lina_layers.Mlp(width, width, name="mlp", **dtypes)(y)
    norm = normalization.LayerNorm(epsilon=1e-5, name="norm", **dtypes)
    return x + gate * norm(y)

  def _kernel(self, x, condition):
    """The branch as a kernel, or None if layers run one by one."""
    have = self.variables["params"]
    modulation = have["modulation"]
    statistics = dense.matmul(
      condition.astype(self.dtype), modulation["kernel"].astype(self.dtype)
    )
    return feed_forward_branch.kernel(
      _in_rows(x),
      feed_forward_branch.parameters(
        None,
        have["mlp"]["expand"],
        have["mlp"]["shrink"],
        have["norm"],
        modulation["bias"],
      ),
      feed_forward_tpu.Form(_EPSILON, "silu", 1e-5),
      self.dtype,
      self.feed_forward_implementation,
      modulation=_in_rows(statistics),
      least=_TOKENS_OF_A_CHANNEL,
    )


def time_features(t: jax.Array, dtype: layers.Dtype) -> jax.Array:
  """Maps times [...] to cosines, then sines, [..., 256].

  They are of t 10000^(-i / 128), i < 128.
  """
  half = lina_layers.TIME_CHANNELS // 2
  frequencies = jnp.exp(jnp.arange(half) * (-math.log(10000.0) / half))
  frequencies = frequencies.reshape((1,) * t.ndim + (-1,))
  angles = t.astype(jnp.float32)[..., None] * frequencies
  parts = [jnp.cos(angles), jnp.sin(angles)]
  return jnp.concatenate(parts, axis=-1).astype(dtype)


def _statistics(condition, features, dtypes):
  """What adaptive norms and gates are made of, zeros at first."""
  return lina_layers.dense(
    features, condition.shape[-1], name="modulation", **_ZEROS, **dtypes
  )(condition)


def _modulated(x, scale, shift, dtypes):
  """Adaptive layer norm."""
  norm = normalization.LayerNorm(
    epsilon=_EPSILON,
    use_scale=False,
    use_bias=False,
    name="plain_norm",
    **dtypes,
  )
  return norm(x) * (1 + scale) + shift


def _in_rows(x):
  """[batch, ..., channels] as [batch, tokens, channels]."""
  return x.reshape(len(x), -1, x.shape[-1])
