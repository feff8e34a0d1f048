"""Attention mechanisms as pure functions on arrays."""

from attention import (
  features,
  finishes,
  linear_normalizers,
  masks,
  normalizers,
  permutations,
  scales,
  scores,
  trees,
)
from attention.channel import (
  apply_channel_attention_weights,
  channel_attention,
  channel_attention_weights,
)
from attention.dot_product import (
  AttentionResult,
  apply_attention_weights,
  attention_weights,
  dot_product_attention,
)
from attention.flow import flow_attention
from attention.flow_sums import FlowState
from attention.halo import (
  apply_halo_attention_weights,
  halo_attention,
  halo_attention_weights,
)
from attention.hierarchical import (
  hierarchical_attention,
  hierarchical_weights,
)
from attention.linear import LinearState, linear_attention
from attention.local_regions import (
  apply_local_region_weights,
  local_region_attention,
  local_region_weights,
)
from attention.pyramid import pyramid_attention
from attention.relative_position import (
  relative_halo_bias,
  relative_position_bias,
  resize_relative_table,
)
from attention.reshaped import attention_with_statistics, reshaped_attention
from attention.selective import (
  four_ways,
  from_four_ways,
  selective_scan,
)
from attention.top_values import apply_top_weights
from attention.windows import (
  block_attention,
  block_partition,
  block_unpartition,
  grid_attention,
  grid_partition,
  grid_unpartition,
)

__all__ = [
  "AttentionResult",
  "FlowState",
  "LinearState",
  "apply_attention_weights",
  "apply_channel_attention_weights",
  "apply_halo_attention_weights",
  "apply_local_region_weights",
  "apply_top_weights",
  "attention_weights",
  "attention_with_statistics",
  "block_attention",
  "block_partition",
  "block_unpartition",
  "channel_attention",
  "channel_attention_weights",
  "dot_product_attention",
  "features",
  "finishes",
  "flow_attention",
  "four_ways",
  "from_four_ways",
  "grid_attention",
  "grid_partition",
  "grid_unpartition",
  "halo_attention",
  "halo_attention_weights",
  "hierarchical_attention",
  "hierarchical_weights",
  "linear_attention",
  "linear_normalizers",
  "local_region_attention",
  "local_region_weights",
  "masks",
  "normalizers",
  "permutations",
  "pyramid_attention",
  "relative_halo_bias",
  "relative_position_bias",
  "reshaped_attention",
  "resize_relative_table",
  "scales",
  "scores",
  "selective_scan",
  "trees",
]
