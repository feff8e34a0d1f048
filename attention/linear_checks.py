"""What arguments linear attention refuses, before anything is computed."""

from collections.abc import Callable

from jax import Array

from attention import checks
from attention.linear_normalizers import LinearNormalizer


def options(
  feature_map: Callable,
  normalizer: LinearNormalizer,
  causal: bool,
  return_state: bool,
  chunk_size: int,
) -> None:
  """Raises ValueError unless all that is no array is what it must be."""
  checks.flag("causal", causal)
  checks.flag("return_state", return_state)
  checks.whole("chunk_size", chunk_size, 1)
  checks.instance(
    "normalizer", normalizer, LinearNormalizer, "attention.linear_normalizers"
  )
  if not callable(feature_map):
    raise ValueError(
      f"feature_map is {feature_map!r}; it must be a function, such as those "
      "of attention.features"
    )


def heads(q: Array, k: Array, v: Array, causal: bool) -> None:
  """Raises ValueError unless queries, keys and values fit each other."""
  checks.same_floats(q=q, k=k, v=v)
  for name, x in (("q", q), ("k", k), ("v", v)):
    if x.ndim != 4 or 0 in x.shape[2:]:
      raise ValueError(
        f"{name} has shape {x.shape}; it must be [batch, length, heads, dim], "
        "the last two at least 1"
      )
  for name, x in (("k", k), ("v", v)):
    if x.shape[:2] != (q.shape[0], k.shape[1]) or q.shape[2] % x.shape[2]:
      raise ValueError(
        f"{name} has shape {x.shape}; q of shape {q.shape} needs batch "
        f"{q.shape[0]}, length {k.shape[1]} and a divisor of {q.shape[2]} heads"
      )
  if k.shape[-1] != q.shape[-1]:
    raise ValueError(f"k has dimension {k.shape[-1]}; q has {q.shape[-1]}")
  if causal and q.shape[1] != k.shape[1]:
    raise ValueError(
      f"causal needs as many keys as queries; q has {q.shape[1]}, k has "
      f"{k.shape[1]}"
    )


def gates(q: Array, k: Array, **arrays: Array | None) -> None:
  """Raises ValueError unless each is None or fits; see `linear_attention`."""
  batch, kv_len, count = q.shape[0], k.shape[1], q.shape[2]
  for name, gate in arrays.items():
    if gate is None:
      continue
    checks.floating(name, gate)
    if gate.ndim != 3 or any(
      have not in fits
      for have, fits in zip(
        gate.shape, ((1, batch), (kv_len,), (1, count)), strict=True
      )
    ):
      raise ValueError(
        f"{name} has shape {gate.shape}; it must be [batch or 1, kv_len, heads "
        f"or 1] with batch {batch}, kv_len {kv_len} and {count} heads"
      )


def memory(
  q: Array, v: Array, lengths: Array | None, state: object, kind: type
) -> None:
  """Raises ValueError unless padding and the state fit the queries and values.

  Args:
    q: queries.
    v: values.
    lengths: of the sequences, or None.
    state: what earlier keys left, or None.
    kind: the class of states.
  """
  batch, count = q.shape[0], q.shape[2]
  checks.lengths("lengths", lengths, batch)
  if state is None:
    return
  checks.instance("state", state, kind, "return_state=True")
  shapes = {
    "memory": (batch, count, "features", v.shape[-1] + 1),
    "value_sum": (batch, count, v.shape[-1]),
    "count": (batch,),
  }
  for name, fits in shapes.items():
    x = getattr(state, name)
    checks.floating(f"{name} of the state", x)
    if x.ndim != len(fits) or any(
      want not in ("features", have)
      for have, want in zip(x.shape, fits, strict=True)
    ):
      raise ValueError(
        f"{name} of the state has shape {x.shape}; these queries and values "
        f"need [{', '.join(map(str, fits))}]"
      )


def decay(
  decay: Array | None,
  q: Array,
  k: Array,
  causal: bool,
  normalizer: LinearNormalizer,
) -> None:
  """Raises ValueError unless the decay, if there is one, fits."""
  if decay is None:
    return
  checks.floating("decay", decay)
  if not causal:
    raise ValueError("decay needs causal=True: it is a decay over time")
  if not normalizer.takes_decay:
    raise ValueError(
      f"decay goes with division and identity, not {type(normalizer).__name__}"
    )
  batch, length, count = k.shape[0], k.shape[1], q.shape[2]
  if decay.shape != (count,) and (
    decay.ndim not in (3, 4) or decay.shape[:3] != (batch, length, count)
  ):
    raise ValueError(
      f"decay has shape {decay.shape}; it must be {(count,)}, "
      f"{(batch, length, count)} or {(batch, length, count)} and features"
    )


def delta_rule(
  write_strength: Array | None, causal: bool, normalizer: LinearNormalizer
) -> None:
  """Raises ValueError if there is a write strength and no place for it."""
  if write_strength is None:
    return
  if not causal:
    raise ValueError(
      "write_strength needs causal=True: what a key corrects is what the keys "
      "before it left"
    )
  if not normalizer.takes_corrections:
    raise ValueError(
      f"write_strength goes with identity, not {type(normalizer).__name__}: "
      "with corrections subtracted, the weights may have any sign and their "
      "sum may be zero, so there is nothing to divide by"
    )
