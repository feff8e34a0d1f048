"""Fillings of the five slots, each with its formula in NumPy, float64.

`draw_slots(seed)` gives a call of `dot_product_attention` and what it must be,
for tests of the reference and of kernels alike. The formulas share no code with
the library.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from attention import finishes, masks, normalizers, scales, scores
from tests.attention import weight_formulas as formulas
from tests.attention.slot_kinds import Kinds, draw_kinds


class Expected(NamedTuple):
  """What attention must return, as `AttentionResult`, but in float64."""

  out: np.ndarray
  log_sum_exp: np.ndarray | None
  weights: np.ndarray


class Slots(NamedTuple):
  """A call of attention.

  Attributes:
    name: what was drawn, to find one's way in a failure.
    arrays: q, k, v and all arrays in the slots that have a gradient, float32.
    kwargs: makes the keyword arguments of `arrays` (or of others like them).
    reference: the float64 result for `arrays` (or others like them).
  """

  name: str
  arrays: dict[str, jax.Array]
  kwargs: Callable[[dict], dict]
  reference: Callable[[dict], Expected]


def draw_slots(
  seed: int,
  kinds: Kinds | None = None,
  *,
  batch: int = 2,
  q_len: int = 12,
  kv_len: int = 12,
  heads: int = 4,
  k_heads: int = 2,
  v_heads: int = 4,
  dim: int = 4,
  v_dim: int = 5,
  block: int = 4,
) -> Slots:
  """Draws a scale, score modifications, a mask, a normalizer and finishes.

  Use it as

    slots = draw_slots(seed)
    q, k, v = (slots.arrays[name] for name in "qkv")
    out = dot_product_attention(q, k, v, **slots.kwargs(slots.arrays))
    expected = slots.reference(slots.arrays).out

  Kernels refuse some draws: a factored bias ("factors", "distance") that comes
  after a modification that does not add.

  Args:
    seed: of everything.
    kinds: what is in the slots; drawn as well if None.
    batch: size of the one leading axis.
    q_len: queries; a grid of tokens is a causal mask unless there are as many
      keys, an even number.
    kv_len: keys.
    heads: heads of the queries.
    k_heads: heads of the keys.
    v_heads: heads of the values.
    dim: width of queries and keys.
    v_dim: width of values.
    block: side of the blocks of block lists.
  """
  sizes = SimpleNamespace(
    b=batch, h=heads, q=q_len, k=kv_len, dim=dim, v_dim=v_dim, block=block
  )
  rng = np.random.default_rng(seed)
  kinds = draw_kinds(rng) if kinds is None else kinds
  draw = _Draw(rng, sizes)
  draw.arrays["q"] = draw.normal(batch, q_len, heads, dim)
  draw.arrays["k"] = draw.normal(batch, kv_len, k_heads, dim)
  draw.arrays["v"] = draw.normal(batch, kv_len, v_heads, v_dim)
  mask, visible = _mask(draw, kinds.masks)
  scale, scale_formula = _scale(draw, kinds.scale, visible.sum(axis=-1))
  mods = [_mod(draw, kind) for kind in kinds.mods]
  normalizer, weigh = _normalizer(draw, kinds.normalizer)
  ends = [_finish(draw, kind) for kind in kinds.finishes]

  def kwargs(a):
    return {
      "scale": scale(a),
      "score_mods": [mod(a) for mod, _ in mods],
      "mask": mask,
      "normalizer": normalizer(a),
      "finish": [end(a) for end, _ in ends],
    }

  def reference(a):
    a = {name: np.asarray(x, np.float64) for name, x in a.items()}
    k, v = (_for_each_head(a[name], heads) for name in "kv")
    score = np.einsum("bihd,bjhd->bhij", a["q"], k) * scale_formula(a)
    for _, formula in mods:
      score = formula(a, score)
    weights, lse = weigh(a, score, visible)
    out = np.einsum("bhij,bjhd->bihd", weights, v)
    value_sum = np.einsum("bhij,bjhd->bihd", visible.astype(float), v)
    for _, formula in ends:
      out = formula(a, out, value_sum)
    return Expected(out, lse, weights)

  arrays = {k: jnp.asarray(x, jnp.float32) for k, x in draw.arrays.items()}
  return Slots(str(kinds), arrays, kwargs, reference)


class _Draw:
  """A random generator that remembers the arrays it gave."""

  def __init__(self, rng, sizes):
    self.rng, self.sizes = rng, sizes
    self.arrays = {}

  def normal(self, *shape):
    return self.rng.standard_normal(shape)

  def array(self, name, *shape, size=1.0):
    """Makes an array with a gradient and returns its name."""
    name = f"{name} {len(self.arrays)}"
    self.arrays[name] = size * self.normal(*shape)
    return name


def _for_each_head(x, heads):
  return x[:, :, [h * x.shape[2] // heads for h in range(heads)]]


def _mask(draw, kinds):
  """Returns a mask and its booleans [batch, heads, q_len, kv_len]."""
  n, rng = draw.sizes, draw.rng
  mask, visible = None, np.ones((n.b, n.h, n.q, n.k), bool)
  # Block lists take tiles from what is there besides.
  for kind in sorted(kinds, key=lambda kind: kind == "blocks"):
    more, seen = _simple_mask(draw, kind)
    if mask is None:
      negative = kind != "blocks" and rng.integers(4) == 0
      mask, visible = (~more, ~seen) if negative else (more, seen)
    elif kind == "blocks":
      mask, visible = more & mask, seen & visible
    elif rng.integers(2):
      mask, visible = mask & more, visible & seen
    else:
      mask, visible = mask | ~more, visible | ~seen
  return mask, visible


def _simple_mask(draw, kind):
  n, rng = draw.sizes, draw.rng
  i, j = np.arange(n.q)[:, None], np.arange(n.k)[None, :]
  if kind == "grid" and (n.q != n.k or n.q % 2):
    kind = "causal"
  match kind:
    case "causal":
      offset = int(rng.integers(-2, n.k - 1))
      mask, visible = masks.causal(offset), j <= i + offset
    case "sliding":
      before, after, offset = rng.integers(0, n.k // 2 + 1, (3, n.b))
      mask = masks.sliding_window(
        jnp.asarray(before), int(after[0]), offset=jnp.asarray(offset)
      )
      offset = j - i - offset[:, None, None, None]
      visible = (-before[:, None, None, None] <= offset) & (offset <= after[0])
    case "padding":
      lengths = rng.integers(0, n.k + 1, n.b)
      mask = masks.padding(jnp.asarray(lengths))
      visible = j < lengths[:, None, None, None]
    case "segments":
      rows, columns = (
        np.sort(rng.integers(0, 3, (n.b, length))) for length in (n.q, n.k)
      )
      mask = masks.segments(jnp.asarray(rows), jnp.asarray(columns))
      visible = (rows[:, :, None] == columns[:, None, :])[:, None]
    case "positions":
      rows, columns = (
        rng.permuted(np.tile(np.arange(length) - 2, (n.b, 1)), axis=1)
        for length in (n.q, n.k)
      )
      mask = masks.positions(jnp.asarray(rows), jnp.asarray(columns), n.k // 2)
      rows, columns = rows[:, None, :, None], columns[:, None, None, :]
      visible = (rows - n.k // 2 <= columns) & (columns <= rows)
      visible &= (rows >= 0) & (columns >= 0)
    case "dense":
      visible = rng.random((n.b, 1, n.q, n.k)) < 0.6
      mask = masks.dense(jnp.asarray(visible))
    case "function":
      mask = masks.function(
        lambda b, h, q_index, k_index: (q_index + 2 * k_index + h + b) % 3 != 0
      )
      b, h = np.arange(n.b)[:, None], np.arange(n.h)[None, :]
      visible = (i + 2 * j + (h + b)[:, :, None, None]) % 3 != 0
    case "grid":
      height, width, r = 2, n.q // 2, 1
      mask = masks.inward_window((height, width), (None, r))
      row, column = i % width, j % width
      visible = (column >= row - r - np.maximum(0, row + r - width + 1)) & (
        column <= row + r + np.maximum(0, r - row)
      )
    case "blocks":
      rows, columns = (-(-length // n.block) for length in (n.q, n.k))
      table = rng.random((n.h, rows, columns)) < 0.7
      mask = masks.blocks(table, n.block)
      visible = table.repeat(n.block, 1).repeat(n.block, 2)[:, : n.q, : n.k]
  return mask, np.broadcast_to(visible, (n.b, n.h, n.q, n.k))


def _scale(draw, kind, count):
  """Returns a scale and its formula; `count` has the number of visible keys."""
  n = draw.sizes
  shapes = {"heads": (n.h, 1), "queries": (n.q,), "all": (n.b, n.h, n.q)}
  match kind:
    case "default":
      return lambda a: None, lambda a: n.dim**-0.5
    case "entropy":
      # Of one token there is no entropy.
      tokens = max(n.k, 2)
      factor = math.sqrt(math.log(tokens) / math.log(7) / n.dim)
      return lambda a: scales.entropy(tokens, 7, n.dim), lambda a: factor
    case "log length":
      value = math.log(n.dim) * np.log(np.maximum(count, 1))
      # It is for queries and keys of unit norm.
      for name in "qk":
        draw.arrays[name] /= n.dim**0.5
      return (
        lambda a: scales.log_length(jnp.asarray(count), n.dim),
        lambda a: value[..., None],
      )
    case _:
      name = draw.array("scale", *shapes[kind], size=n.dim**-0.5)
      return lambda a: a[name], lambda a: a[name][..., None]


def _mod(draw, kind):
  """Returns a score modification and its formula."""
  n, rng = draw.sizes, draw.rng
  offset = np.arange(n.k)[None, :] - np.arange(n.q)[:, None]
  match kind:
    case "bias":
      shapes = [
        (n.h, n.q, n.k),
        (n.b, 1, n.q, n.k),
        (n.b, n.h, 1, n.k),
        (n.q, n.k),
      ]
      name = draw.array("bias", *shapes[rng.integers(len(shapes))])
      return lambda a: scores.bias(a[name]), lambda a, s: s + a[name]
    case "factors":
      x = draw.array("factor", 1, n.q, n.h, 2)
      y = draw.array("factor", n.b, n.k, 1, 2)
      return (
        lambda a: scores.factored_bias(a[x], a[y]),
        lambda a, s: (
          s + (a[x][:, :, None] * a[y][:, None]).sum(-1).transpose(0, 3, 1, 2)
        ),
      )
    case "alibi":
      symmetric = bool(rng.integers(2))
      steps = -np.abs(offset) if symmetric else offset
      # Scores stay of one size however long the sequence is.
      name = draw.array("slopes", n.h, size=4 / n.k)
      return (
        lambda a: scores.alibi(a[name], symmetric=symmetric),
        lambda a, s: s + a[name][:, None, None] * steps,
      )
    case "distance":
      x, y, w = (
        draw.array("point", n.b, n.q, 2, size=0.5),
        draw.array("point", n.b, n.k, 2, size=0.5),
        draw.array("weight", n.b, n.q, n.h),
      )
      return (
        lambda a: scores.squared_distance(a[x], a[y], a[w]),
        lambda a, s: (
          s
          - a[w].transpose(0, 2, 1)[..., None]
          * ((a[x][:, None, :, None] - a[y][:, None, None]) ** 2).sum(-1)
        ),
      )
    case "cap":
      return lambda a: scores.soft_cap(2.5), lambda a, s: 2.5 * np.tanh(s / 2.5)
    case "table":
      name = draw.array("table", n.h, 7)
      index = np.clip(offset, -3, 3) + 3
      return (
        lambda a: scores.relative_positions(a[name], n.q, n.k),
        lambda a, s: s + a[name][:, index],
      )
    case "function":
      shapes = {"h": (n.h,), "bq": (n.b, n.q), "hk": (n.h, n.k), "": ()}
      names = {
        axes: draw.array(f"values {axes}", *shape)
        for axes, shape in shapes.items()
      }

      def change(score, batch, head, q_index, k_index, slope, row, column, one):
        angle = (q_index - k_index).astype(jnp.float32)
        kept = score * jnp.exp(0.1 * slope + 0.1 * one)
        return kept + row * column * jnp.cos(angle)

      def formula(a, s):
        slope, row, column, one = (a[name] for name in names.values())
        kept = s * np.exp(0.1 * slope + 0.1 * one)[:, None, None]
        return kept + row[:, None, :, None] * column[:, None] * np.cos(offset)

      return (
        lambda a: scores.function(
          change, {axes: a[name] for axes, name in names.items()}
        ),
        formula,
      )


def _normalizer(draw, kind):
  """Returns a normalizer and its formula for weights and log-sum-exp."""
  n, rng = draw.sizes, draw.rng
  match kind:
    case "softmax":
      return lambda a: None, lambda a, s, seen: formulas.softmax(s, seen)
    case "sink":
      name = draw.array("sink", n.h)
      return (
        lambda a: normalizers.softmax_with_sink(a[name]),
        lambda a, s, seen: formulas.softmax(
          s, seen, np.exp(a[name])[:, None, None]
        ),
      )
    case "softplus":
      return (
        lambda a: normalizers.softplus(),
        lambda a, s, seen: (formulas.softplus(s, seen), None),
      )
    case "reweighted":
      return (
        lambda a: normalizers.reweighted_softplus(3.0),
        lambda a, s, seen: (formulas.reweighted(s, seen, 3), None),
      )
    case "sigmoid":
      return (
        lambda a: normalizers.sigmoid(),
        lambda a, s, seen: (np.where(seen, 1 / (1 + np.exp(-s)), 0), None),
      )
    case "affine":
      alpha = draw.array("alpha", n.b, n.q, n.h)
      mean = draw.array("mean", n.h)
      length = n.k if rng.integers(2) else None

      def formula(a, s, seen):
        x = a[alpha].transpose(0, 2, 1)[..., None]
        weights, lse = formulas.softmax(s, seen)
        count = np.maximum(seen.sum(-1, keepdims=True), 1)
        shift = (a[mean][:, None, None] - x) / (length or count)
        return x * weights + shift * seen, lse

      return lambda a: normalizers.affine(a[alpha], a[mean], length), formula


def _finish(draw, kind):
  """Returns a finish and its formula."""
  n = draw.sizes
  match kind:
    case "head gate":
      name = draw.array("gate", n.b, n.q, n.h)
      return lambda a: finishes.gate(
        a[name]
      ), lambda a, out, total: out / (1 + np.exp(-a[name][..., None]))
    case "element gate":
      name = draw.array("gate", n.b, n.q, n.h, n.v_dim)
      return lambda a: finishes.gate(
        a[name]
      ), lambda a, out, total: out / (1 + np.exp(-a[name]))
    case "value sum":
      name = draw.array("weight", n.b, n.q, n.h)
      return lambda a: finishes.value_sum(
        a[name]
      ), lambda a, out, total: out + a[name][..., None] * total
