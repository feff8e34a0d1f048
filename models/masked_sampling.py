"""Images from a masked autoregressive model, a few tokens at a time.

For a model with the methods `condition`, `encode_decode` and `velocity` of
`models.lina.Lina`. Places come in a random order, few at first: of N tokens
round(cos(pi/2 i/n) N) are still to be made after i of n steps (MaskGIT,
arXiv 2202.04200; MAR, arXiv 2406.11838). The tokens of a step are drawn
together from noise, by Euler steps along the velocity of the flow head.

A step that would make no token is left out: 3 of 64 for 256 tokens, 48 of 64
for 16. The connector runs once for an image, the flow head for the tokens of a
step alone, and the encoder for at most N / 4 tokens more than there are: steps
are in four buckets by the number of visible tokens, each one compiled program.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from models import decoding, lina_checks, token_sampling

BUCKETS = 4


class Samples(NamedTuple):
  """What was made.

  Attributes:
    tokens: float32 [batch, N, token_dim], as `model.patchify` has them.
    order: int32 [batch, N], the step at which each was made, of those that were
      asked for, from 0 on.
  """

  tokens: jax.Array
  order: jax.Array


class Step(NamedTuple):
  """A step that makes tokens.

  Attributes:
    number: of all steps that were asked for, from 0 on.
    start: how many tokens there are before it.
    count: how many it makes.
  """

  number: int
  start: int
  count: int


class Shapes(NamedTuple):
  """What a program is compiled for.

  Attributes:
    visible: places of tokens that the encoder reads.
    made: places that the flow head works at.
    guided: whether there is guidance.
    flow_steps: Euler steps.
  """

  visible: int
  made: int
  guided: bool
  flow_steps: int


def sample(
  model: nn.Module,
  variables: Mapping[str, Any],
  given: jax.Array,
  *,
  lengths: jax.Array | None = None,
  steps: int = 64,
  flow_steps: int = 25,
  guidance: float | Sequence[float] = 2.4,
  min_guidance: float = 1.0,
  seed: int = 0,
  first_row: int = 0,
  progress: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
) -> Samples:
  """Makes an image for each row of `given`.

  With guidance w a velocity is v_u + w (v_c - v_u), of that with the condition
  and that without. Steps with w <= 1 take v_c, which is half the work.

  What a row draws depends on `seed` and on `first_row` and its number, not on
  the rows beside it. If `given` is sharded by rows so is all work.

  Args:
    model: a model with the methods of `models.lina.Lina`.
    variables: its variables.
    given: classes, integers [batch], or text [batch, T, text_width].
    lengths: integers [batch], of texts; see `Lina.condition`.
    steps: how many steps the tokens come in.
    flow_steps: Euler steps from noise to a token.
    guidance: w of the last step, to which it goes up in equal parts: w_min +
      (w - w_min) (i + 1) / n in the i-th of n steps that make tokens. Or w of
      each of the `steps`, also those that make none.
    min_guidance: w_min.
    seed: the same seed makes the same images.
    first_row: number of the first row.
    progress: what a program shows while it goes through the steps, as in
      `tasks.base.Progress`; each is then waited for.

  Raises:
    ValueError: for an option that is out of its range, a class that does not
      exist, or `given` of another shape.
  """
  given = jnp.asarray(given)
  lengths = None if lengths is None else jnp.asarray(lengths)
  lina_checks.check_condition(model, given, lengths)
  check_count("flow_steps", flow_steps)
  places = math.prod(model.grid)
  plan = schedule(places, steps)
  weights = guidance_weights(guidance, min_guidance, plan, steps)
  programs = shapes(places, plan, weights, flow_steps)
  model = decoding.hashable(model)
  condition, tokens, order = start(
    model,
    variables,
    given,
    lengths,
    _row_keys(given, seed, first_row),
    guided=any(program.guided for program in programs),
    padding=max(program.made for program in programs),
  )
  condition, tokens, order = decoding.beside(
    variables, (condition, tokens, order)
  )
  walk = list(zip(plan, weights, programs, strict=True))
  for step, weight, program in (
    walk if progress is None else progress(walk, len(walk))
  ):
    tokens = take_step(
      model,
      variables,
      condition,
      tokens,
      order,
      step.start,
      step.count,
      weight,
      program=program,
    )
    if progress is not None:
      tokens.block_until_ready()
  numbers = np.repeat([s.number for s in plan], [s.count for s in plan])
  return Samples(tokens, _by_place(order, jnp.asarray(numbers, jnp.int32)))


def schedule(places: int, steps: int) -> list[Step]:
  """Returns the steps that make tokens, by the cosine.

  Args:
    places: number of tokens.
    steps: how many steps are asked for; those that make none are left out.

  Raises:
    ValueError: if `steps` is no positive integer.
  """
  check_count("steps", steps)
  left = [
    round(math.cos(math.pi / 2 * i / steps) * places) for i in range(steps + 1)
  ]
  return [
    Step(i, places - left[i], left[i] - left[i + 1])
    for i in range(steps)
    if left[i] > left[i + 1]
  ]


def guidance_weights(
  guidance: float | Sequence[float],
  min_guidance: float,
  plan: Sequence[Step],
  steps: int,
) -> list[float]:
  """Returns the weight of each step of a plan; see `sample`.

  Raises:
    ValueError: if there are not as many numbers as steps, or one is negative or
      not finite.
  """
  values = np.asarray(guidance, np.float64)
  for name, value in (("guidance", values), ("min_guidance", min_guidance)):
    if not np.all(np.isfinite(value) & (np.asarray(value) >= 0)):
      raise ValueError(f"{name}={value} must be finite and 0 or more.")
  if values.ndim == 0:
    rise = float(values) - min_guidance
    return [min_guidance + rise * (i + 1) / len(plan) for i in range(len(plan))]
  if values.shape != (steps,):
    raise ValueError(
      f"guidance has {values.size} numbers; there are steps={steps}, and it "
      "needs one for each, or one for all."
    )
  return [float(values[step.number]) for step in plan]


def shapes(
  places: int, plan: Sequence[Step], weights: Sequence[float], flow_steps: int
) -> list[Shapes]:
  """Returns the program of each step of a plan."""
  buckets = [
    max(1, math.ceil(step.start * BUCKETS / places)) * places for step in plan
  ]
  made = {}
  for bucket, step in zip(buckets, plan, strict=True):
    made[bucket] = max(made.get(bucket, 0), step.count)
  return [
    Shapes(-(-bucket // BUCKETS), made[bucket], weight > 1, flow_steps)
    for bucket, weight in zip(buckets, weights, strict=True)
  ]


def check_count(name: str, value: int) -> None:
  """Raises ValueError unless an option is a positive integer."""
  if value != int(value) or value < 1:
    raise ValueError(f"{name}={value} is not an integer that is 1 or more.")


def _row_keys(given, seed, first_row):
  """A key for each row, where the row is."""
  rows = jnp.asarray(first_row + np.arange(len(given), dtype=np.uint32))
  if isinstance(given.sharding, NamedSharding):
    spec = PartitionSpec(*given.sharding.spec[:1])
    rows = jax.device_put(rows, NamedSharding(given.sharding.mesh, spec))
  return token_sampling.row_keys(seed, rows)


@functools.partial(jax.jit, static_argnames=("model", "guided", "padding"))
def start(model, variables, given, lengths, keys, *, guided, padding):
  """What there is before the first step.

  Args:
    model: hashable.
    variables: its variables.
    given: classes or texts, see `sample`.
    lengths: of texts, or None.
    keys: random keys [batch].
    guided: whether there will be guidance.
    padding: the most tokens that a step makes.

  Returns:
    (condition, tokens, order): the condition [batch, ...], with guidance
    [2 batch, ...], each row before the same with none; noise [batch, N,
    token_dim], of which places become tokens; and the places in the order in
    which they do, int32 [batch, N + padding], N after the last.
  """
  places = math.prod(model.grid)
  if guided:
    given, lengths = _with_none(model, given, lengths)
  condition = model.apply(variables, given, lengths, method="condition")
  order_keys, noise_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
  order = jax.vmap(jax.random.permutation, (0, None))(order_keys, places)
  order = jnp.pad(order, ((0, 0), (0, padding)), constant_values=places)
  tokens = jax.vmap(
    lambda key: jax.random.normal(key, (places, model.token_dim))
  )(noise_keys)
  return condition, tokens, order.astype(jnp.int32)


def _with_none(model, given, lengths):
  """Rows two by two: what is given, and that there is nothing given."""
  if not model.text_width:
    none = jnp.full_like(given, model.num_classes)
    return jnp.stack([given, none], axis=1).reshape(-1), None
  if lengths is None:
    lengths = jnp.full(given.shape[:1], given.shape[1], jnp.int32)
  lengths = jnp.stack([lengths, jnp.zeros_like(lengths)], axis=1).reshape(-1)
  return jnp.repeat(given, 2, axis=0), lengths


@functools.partial(
  jax.jit, static_argnames=("model", "program"), donate_argnames="tokens"
)
def take_step(
  model, variables, condition, tokens, order, start, count, weight, *, program
):
  """Makes `count` tokens where there are `start`.

  Args:
    model: hashable.
    variables: its variables.
    condition: [batch, ...], or [2 batch, ...] with guidance.
    tokens: [batch, N, token_dim], noise where there is no token yet; its buffer
      is used again.
    order: int32 [batch, N + padding], the places in their order.
    start: how many tokens there are.
    count: how many to make, at most `program.made`.
    weight: of the guidance.
    program: what this is compiled for.

  Returns:
    tokens, with those made.
  """
  batch, places, _ = tokens.shape
  branches = 2 if program.guided else 1
  # Without guidance, the rows with a condition.
  condition = condition[:: len(condition) // (batch * branches)]
  there = jnp.arange(program.visible)[None] < start
  visible = jnp.where(there, order[:, : program.visible], places)
  z = model.apply(
    variables,
    condition,
    jnp.repeat(tokens, branches, axis=0),
    jnp.repeat(visible, branches, axis=0),
    method="encode_decode",
  )
  new = jax.lax.dynamic_slice_in_dim(order, start, program.made, axis=1)
  new = jnp.where(jnp.arange(program.made)[None] < count, new, places)
  noise = jnp.take_along_axis(tokens, new[..., None], axis=1, mode="clip")
  z = z.reshape(batch, branches, places, -1)
  z = jnp.take_along_axis(z, new[:, None, :, None], axis=2, mode="clip")
  velocity = functools.partial(_velocity, model, variables, z, weight)
  made = _euler(velocity, noise, program.flow_steps)
  rows = jnp.arange(batch)[:, None]
  return tokens.at[rows, new].set(made, mode="drop")


def _velocity(model, variables, z, weight, x, t):
  """The velocity of tokens x [batch, made, token_dim], with guidance.

  `z` is [batch, 1 or 2, made, width].
  """
  x = jnp.broadcast_to(x[:, None], (*z.shape[:3], x.shape[-1]))
  t = jnp.full((1, 1, 1), t)
  v = model.apply(variables, x, t, z, method="velocity")
  if v.shape[1] == 1:
    return v[:, 0]
  return v[:, 1] + weight * (v[:, 0] - v[:, 1])


def _euler(velocity, x, steps):
  """From noise to tokens: times fall from 1000 to 1 in equal parts, then 0."""
  t = jnp.linspace(1000.0, 1.0, steps)
  ends = jnp.append(t[1:], 0.0)

  def step(x, times):
    t, end = times
    return x + velocity(x, t) * ((end - t) / 1000), None

  return jax.lax.scan(step, x, (t, ends))[0]


@jax.jit
def _by_place(order, numbers):
  """The numbers [N] of places in `order`, by place."""
  order = order[:, : len(numbers)]
  rows = jnp.arange(len(order))[:, None]
  return jnp.zeros_like(order).at[rows, order].set(numbers[None])
