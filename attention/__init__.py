"""Attention mechanisms as pure functions on arrays."""

from attention.dot_product import (
  apply_attention_weights,
  attention_weights,
  dot_product_attention,
)
from attention.relative_position import (
  relative_position_bias,
  resize_relative_table,
)
from attention.windows import (
  block_attention,
  block_partition,
  block_unpartition,
  grid_attention,
  grid_partition,
  grid_unpartition,
)

__all__ = [
  "apply_attention_weights",
  "attention_weights",
  "block_attention",
  "block_partition",
  "block_unpartition",
  "dot_product_attention",
  "grid_attention",
  "grid_partition",
  "grid_unpartition",
  "relative_position_bias",
  "resize_relative_table",
]
