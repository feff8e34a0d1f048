"""What the fields of a transformer make: layers, mixers, norms, the head."""

import functools
import math

import flax.linen as nn
import jax

from attention.kernels.flash_plan import ATTENDED
from models import feed_forward, layers, taps, token_norms
from models import sequence_mixers as mixers
from models.transformer_layers import Head, Layer


def _computed_again(layer: type[Layer]) -> type[Layer]:
  """A layer of which the backward pass has the input and what attention gave.

  Attention is the dearest part of a layer on long rows, and what it gives is as
  small as the input. The reference keeps its scores apart, and computes them
  again as well.
  """
  keep = jax.checkpoint_policies.save_only_these_names(ATTENDED)
  return nn.remat(layer, static_argnums=(5,), policy=keep)


class TransformerParts(taps.Tapped):
  """The makers of a `transformer.Transformer`, which has the fields."""

  def _layer(self, i: int) -> functools.partial:
    """Returns what makes layer number `i`, given a name."""
    return functools.partial(
      _computed_again(Layer) if self.remat else Layer,
      mixer=self._mixer(i),
      norm=self._block_norm,
      residual_clip=self.residual_clip,
      norm_placement=self.norm_placement,
      mixer_norm=bool(i) or self.first_mixer_norm,
      mlp=self.mlp,
      mlp_width=self.mlp_width or 4 * self.width,
      mlp_bias=self.mlp_bias,
      dropout_rate=self.dropout_rate,
      kernel_init=self._kernel_init,
      out_init=self._out_init,
      **self._dtypes,
    )

  def _mixer(self, i: int) -> functools.partial:
    """Returns what makes the mixer of layer number `i`, given a name."""
    offered = {field: getattr(self, field) for field in mixers.OFFERED} | {
      "head_dim": self.head_dim or self.width // self.heads,
      "qk_norm": self._norm if self.qk_norm is True else self.qk_norm,
      "kernel_init": self._kernel_init,
      "out_init": self._out_init,
      **self._dtypes,
    }
    name = self.mixers[i % len(self.mixers)]
    return functools.partial(
      mixers.create, name, offered, self.mixer_options.get(name)
    )

  def _make_head(self) -> Head:
    transform = functools.partial(
      layers.Dense,
      self.width,
      use_bias=self.mlp_bias,
      kernel_init=self._kernel_init,
      **self._dtypes,
    )
    return Head(
      self.classes or self.vocabulary_size,
      self.head_bias,
      self.logit_soft_cap,
      transform if self.head_transform else None,
      feed_forward.find(self.mlp)[0] if self.head_transform else None,
      self._norm,
      self._kernel_init,
      **self._dtypes,
    )

  @property
  def _norm(self) -> functools.partial:
    return self._made_norm(token_norms.PLAIN.get(self.norm, self.norm))

  @property
  def _block_norm(self) -> functools.partial:
    return self._made_norm(self.norm)

  def _made_norm(self, name: str) -> functools.partial:
    return token_norms.of_tokens(
      name,
      epsilon=self.norm_epsilon,
      use_bias=self.norm_bias,
      offset=self.norm_offset,
      alpha=self.norm_alpha,
      gate_rank=self.norm_gate_rank,
      gate_init=self._kernel_init,
      **self._dtypes,
    )

  @property
  def _dtypes(self) -> dict[str, layers.Dtype]:
    return {"dtype": self.dtype, "param_dtype": self.param_dtype}

  @property
  def _kernel_init(self) -> layers.Initializer:
    return nn.initializers.normal(self.init_scale)

  @property
  def _out_init(self) -> layers.Initializer:
    return nn.initializers.normal(self.init_scale / math.sqrt(2 * self.depth))
