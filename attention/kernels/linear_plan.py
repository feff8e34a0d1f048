"""Linear attention on TPUs: sizes, and what a grid step gets of an array.

Tokens lie along lanes, [batch, heads, channels, tokens]. That is how XLA lays
out [batch, tokens, heads, channels] of less than 128 channels by itself, so
that nothing is moved, and how a projection writes them at no cost. The channels
of a head are sublanes, which need not fill 128 lanes; gates, weights and counts
are rows, as they are one number a token and head.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from attention import linear_normalizers
from attention.kernels import tpu
from attention.kernels.tpu import LANES, SUBLANES, Blocked

# The most bytes of an array at a step: it takes longer to fetch than a step to
# start, and all arrays of a step fit VMEM twice.
BLOCK_BYTES = 2**20
VMEM_LIMIT = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is known before the call.

  Attributes:
    feature_map: phi, of channels along the first axis.
    normalizer: what becomes of the sums.
    features: channels of phi.
    v_dim: channels of values, a multiple of 8.
    dim: channels of queries.
    dtype: of queries, keys and values, by name.
    part: tokens that are worked on at once.
    padded: whether there may be padding.
    interpret: whether Pallas's interpreter runs the kernels.
    continued: whether there are keys before the first token here: lengths are
      then followed by how many of them are no padding, [2 * batch] in all.
  """

  feature_map: Callable
  normalizer: linear_normalizers.LinearNormalizer
  features: int
  v_dim: int
  dim: int
  dtype: str
  part: int
  padded: bool
  interpret: bool
  continued: bool = False

  @property
  def full(self) -> bool:
    """Whether products are of float32; else of bfloat16 in parts."""
    return self.dtype == "float32"

  @property
  def means(self) -> bool:
    """Whether the normalizer reads the mean of values."""
    return isinstance(self.normalizer, linear_normalizers.Subtraction)

  @property
  def memory(self) -> tuple[int, int]:
    """The sides of a memory: [v, 1] by phi(k), and 1 if `means`.

    A one takes the rows of a register, of which the others are zeros.
    """
    extra = SUBLANES if self.means else 0
    return self.v_dim + SUBLANES, self.features + extra


class Grid(NamedTuple):
  """Steps over batch, heads and tokens, and the blocks of one.

  Attributes:
    plan: the plan.
    batch: size of the batch.
    heads: number of heads.
    length: number of tokens.
    backward: whether the last tokens come first.
  """

  plan: Plan
  batch: int
  heads: int
  length: int
  backward: bool = False

  @property
  def part(self) -> int:
    return min(self.plan.part, tpu.round_up(self.length, LANES))

  @property
  def _token_bytes(self) -> int:
    plan = self.plan
    return max(plan.dim, plan.v_dim) * jnp.dtype(plan.dtype).itemsize

  @property
  def block(self) -> int:
    """Tokens of a step, a multiple of `part`."""
    most = max(BLOCK_BYTES // self._token_bytes // self.part, 1)
    return self.part * min(most, pl.cdiv(self.length, self.part))

  @property
  def step_heads(self) -> int:
    """Heads of a step: several where all tokens of one are few."""
    most = BLOCK_BYTES // (self.block * self._token_bytes)
    fits = (n for n in range(1, most + 1) if self.heads % n == 0)
    return max(fits, default=1)

  @property
  def size(self) -> tuple[int, int, int]:
    return (
      self.batch,
      self.heads // self.step_heads,
      pl.cdiv(self.length, self.block),
    )

  def tokens(self, x) -> Blocked | None:
    """[batch or 1, heads or 1, rows, tokens], for the tokens of a step."""
    if x is None:
      return None
    last = self.size[2] - 1

    def index(batch, heads, i, lengths):
      del lengths
      return (
        batch if x.shape[0] > 1 else 0,
        heads if x.shape[1] > 1 else 0,
        0,
        last - i if self.backward else i,
      )

    heads = self.step_heads if x.shape[1] > 1 else 1
    return Blocked(x, pl.BlockSpec((1, heads, x.shape[2], self.block), index))

  def state(self, x) -> Blocked | None:
    """[batch, heads, rows, columns], what all tokens of a head share."""
    if x is None:
      return None
    return Blocked(
      x,
      pl.BlockSpec(
        (1, self.step_heads, *x.shape[2:]),
        lambda batch, heads, i, lengths: (batch, heads, 0, 0),
      ),
    )

  def row(self, rows: int, dtype) -> jax.ShapeDtypeStruct:
    """The shape of a result for all tokens."""
    return jax.ShapeDtypeStruct(
      (self.batch, self.heads, rows, self.length), dtype
    )

  def memory(self) -> jax.ShapeDtypeStruct:
    """The shape of the memories of all heads."""
    return jax.ShapeDtypeStruct(
      (self.batch, self.heads, *self.plan.memory), jnp.float32
    )

  def call(
    self,
    kernel: Callable,
    name: str,
    lengths: jax.Array,
    inputs: tuple,
    outputs: tuple,
    scratch: tuple | None = None,
    *,
    products: int,
  ) -> tuple:
    """Runs `kernel(grid, lengths, inputs, outputs, scratch)` on all steps.

    Args:
      kernel: the kernel.
      name: its name in a profile.
      lengths: int32 [batch].
      inputs: as for `tpu.call`, like the next two.
      outputs: results.
      scratch: shapes of scratch memory.
      products: multiply-adds for a token of a head.
    """
    return tpu.call(
      functools.partial(kernel, self),
      name,
      grid=self.size,
      inputs=inputs,
      outputs=outputs,
      scratch=scratch,
      scalars=(lengths,),
      # Heads know nothing of each other; tokens of one follow in order.
      parallel=2,
      vmem_bytes=VMEM_LIMIT,
      flops=2 * self.batch * self.heads * self.length * products,
      transcendentals=0,
      interpret=self.plan.interpret,
    )

  def limit(self, lengths=None):
    """Returns how many tokens there are, None if all of each block.

    Args:
      lengths: how many are no padding, if that is to be left out.
    """
    if lengths is not None and self.plan.padded:
      return lengths[pl.program_id(0)]
    return self.length if self.length % self.block else None

  def before(self, lengths):
    """Returns how many keys come before the first token here."""
    if not self.plan.continued:
      return 0
    return lengths[self.batch + pl.program_id(0)]

  def each_part(self, limit, body: Callable[["Part"], None], before=0) -> None:
    """Runs `body` on all parts of a step, in the order of the grid."""
    parts = self.block // self.part
    # Read here: the interpreter has no place in the grid within a loop.
    step = pl.program_id(2)
    if self.backward:
      step = self.size[2] - 1 - step

    def run(turn):
      head, i = turn // parts, turn % parts
      if self.backward:
        i = parts - 1 - i
      start = pl.multiple_of(i * self.part, LANES)
      body(
        Part(
          head,
          pl.ds(start, self.part),
          step * self.block + start,
          limit,
          self.part,
          before,
        )
      )

    turns = self.step_heads * parts
    if turns == 1:
      run(0)
    else:
      lax.fori_loop(0, turns, lambda turn, _: run(turn), None)


class Part(NamedTuple):
  """A part of the tokens of a head.

  Attributes:
    head: which one, of the heads of the step.
    at: where its tokens lie in a block.
    first: number of the first of them.
    limit: number of tokens that count, None if all do.
    size: number of tokens.
    before: number of keys before the first token of all.
  """

  head: Any
  at: Any
  first: Any
  limit: Any
  size: int
  before: Any

  def chunks(self, size: int) -> list["Part"]:
    """Cuts the part; a start that is no multiple of `size` is never asked."""
    return [
      self._replace(
        at=pl.ds(self.at.start + i, size), first=self.first + i, size=size
      )
      for i in range(0, self.size, size)
    ]

  def load(self, ref):
    """[1, heads or 1, rows, tokens] -> float32 [rows, part], or None."""
    if ref is None:
      return None
    head = self.head if ref.shape[1] > 1 else 0
    return ref[0, head, :, self.at].astype(jnp.float32)

  def store(self, ref, x) -> None:
    if ref is not None:
      ref[0, self.head, :, self.at] = x.astype(ref.dtype)

  def numbers(self):
    """The numbers of the tokens, [1, part]."""
    lane = lax.broadcasted_iota(jnp.int32, (1, self.size), 1)
    return self.first + lane

  def kept(self, x):
    """Returns `x` [rows, part] with zeros for tokens that do not count."""
    return x if self.limit is None else jnp.where(self.counts(), x, 0.0)

  def counts(self):
    """Which tokens count, [1, part]."""
    return self.numbers() < self.limit
