"""A gated short convolution as a mixer of sequences."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers, mixer_base, short_convolution


class GatedConvolution(mixer_base.SequenceMixer):
  """out(silu(convolve(u)) * w), with u and w the halves of a projection.

  What most layers of BASED are (arXiv 2402.18668; its `BaseConv`, without the
  residual that Zoology's has within): tokens see those right before them, or
  around them if not causal (ours), and other layers see what is farther. It has
  no positions and no scores, and of the gates that all mixers share none.

  Attributes:
    size: tokens that one sees, its own included; at least 2.
    expansion: channels of the convolution by heads * head_dim.
  """

  size: int = 3
  expansion: int = 2

  def init_cache(self, batch: int, length: int) -> mixer_base.Cache:
    """Returns the inputs before the first token, whatever the length."""
    del length
    recent = short_convolution.init_recent(
      batch, self.size, (self._channels,), self.dtype
    )
    return {**recent, "index": jnp.zeros((), jnp.int32)}

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    positions: jax.Array | None = None,
    segments: jax.Array | None = None,
    cache: mixer_base.Cache | None = None,
    train: bool = False,
  ) -> tuple[jax.Array, mixer_base.Cache | None]:
    """Mixes tokens; see `SequenceMixer`.

    Raises:
      ValueError: if a field does not fit, or there is a cache and the mixer is
        not causal.
    """
    del train
    kept = None if positions is None else positions >= 0
    halves = self._dense((2, self._channels), "in")(x)
    y, recent = short_convolution.ShortConvolution(
      self.size,
      "silu",
      self.dtype,
      self.param_dtype,
      self.causal,
      name="convolution",
    )(halves[..., 0, :], segments, kept, cache)
    out = layers.Dense(
      x.shape[-1],
      use_bias=self.out_bias,
      kernel_init=self.out_init,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="out",
    )(y * halves[..., 1, :])
    if cache is not None:
      cache = {**recent, "index": cache["index"] + x.shape[1]}
    return out, cache

  @property
  def _channels(self) -> int:
    short_convolution.check_size(self.size)
    return self.expansion * self.heads * self.head_dim
