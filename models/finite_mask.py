"""A mask of tokens that hold numbers, be they seen or not."""

import dataclasses

import jax
import numpy as np

from attention.masks import Mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FiniteMask(Mask):
  """The same keys are seen as by `mask`, and the others are no NaN.

  `dot_product_attention` writes zeros over what a mask hides, in case it is
  NaN: a copy of keys and values, which costs a step of decoding three times
  what it has to. Padding of a transformer went through its layers, and empty
  slots of a cache are zeros.
  """

  mask: Mask

  def operands(self):
    return self.mask.operands()

  def visible(self, tile, *values):
    return self.mask.visible(tile, *values)

  def tile_states(self, q_len, kv_len, block_q, block_k):
    return self.mask.tile_states(q_len, kv_len, block_q, block_k)

  def tile_multiples(self):
    return self.mask.tile_multiples()

  def in_mixed_tile(self):
    return self.mask.in_mixed_tile()

  def check(self, batch, heads, q_len, kv_len):
    self.mask.check(batch, heads, q_len, kv_len)

  def idle(self, q_len, kv_len):
    unknown = np.zeros((1, 1, 1), bool)
    return unknown, unknown
