"""The loop over the steps of sampling, and its inverse."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from attention import checks
from generation import solvers
from generation.denoiser import Denoise
from generation.paths import Path

# What a program shows while it goes through something: an iterable like it.
Progress = Callable[[Iterable[Any], int], Iterable[Any]]


def sample(
  denoise: Denoise | Sequence[Denoise],
  noise: jax.Array,
  path: Path,
  *,
  steps: int | None = None,
  times: Sequence[float] | None = None,
  solver: str = "ddim",
  which: Sequence[int] | None = None,
  state: Any = None,
  progress: Progress | None = None,
  watch: Callable[[jax.Array], None] | None = None,
) -> jax.Array:
  """Goes from noise to data, a jitted step at a time.

  Args:
    denoise: what predicts, or several of it.
    noise: x at the first time, [batch, ...].
    path: of what `denoise` was trained on.
    steps: how many, between the path's own times.
    times: instead of `steps`, the times to go through, falling; so one can
      begin on the way.
    solver: "ddim", "euler" or "dpm_solver"; see `solvers`.
    which: the index of the denoiser of each step; the first for all if None.
    state: what the first step is given; they pass it on.
    progress: what is shown on the way; each step is then waited for.
    watch: is given x after each step.

  Returns:
    x at the last time.

  Raises:
    ValueError: for steps, times, a solver or `which` that do not fit.
  """
  denoisers = tuple(denoise) if isinstance(denoise, Sequence) else (denoise,)
  denoisers = tuple(map(_as_pytree, denoisers))
  times = _times(path, steps, times)
  table = solvers.coefficients(solver, path, times)
  count = len(table)
  which = check_which((0,) * count if which is None else which, count)
  if max(which) >= len(denoisers):
    raise ValueError(
      f"which={which} names denoiser {max(which)}; there are {len(denoisers)}."
    )
  x, before = noise, jnp.zeros_like(noise)
  state = {} if state is None else state
  rows = [tuple(map(float, row)) for row in table]
  _trace(denoisers, which, x, state, times, rows, path)
  walk = range(count)
  for n in walk if progress is None else progress(walk, count):
    x, before, state = take_step(
      denoisers[which[n]],
      x,
      before,
      state,
      float(times[n]),
      rows[n],
      path=path,
    )
    if progress is not None:
      x.block_until_ready()
    if watch is not None:
      watch(x)
  return x


def invert(
  denoise: Denoise,
  x: jax.Array,
  path: Path,
  *,
  steps: int | None = None,
  times: Sequence[float] | None = None,
  state: Any = None,
  progress: Progress | None = None,
) -> jax.Array:
  """Goes back from data to noise by DDIM's steps, keeping what is on the way.

  Each step takes the prediction at the lower of its times, so it undoes that of
  `sample` only as far as predictions change little from one to the next.

  Args:
    denoise: what predicts.
    x: data [batch, ...], at the last of the times.
    path: as in `sample`, and all that follow.
    steps: how many.
    times: falling; gone through from the last to the first.
    state: of the first step, at the last of the times.
    progress: what is shown on the way.

  Returns:
    [steps + 1, batch, ...]: x at each of the times, in their order, so noise is
    the first and the data are the last.

  Raises:
    ValueError: as `sample`.
  """
  denoise = _as_pytree(denoise)
  times = _times(path, steps, times)[::-1]
  table = solvers.coefficients("ddim", path, times)
  state = {} if state is None else state
  on_the_way, before = [x], jnp.zeros_like(x)
  walk = range(len(table))
  for n in walk if progress is None else progress(walk, len(table)):
    x, before, state = take_step(
      denoise,
      x,
      before,
      state,
      float(times[n]),
      tuple(map(float, table[n])),
      path=path,
    )
    if progress is not None:
      x.block_until_ready()
    on_the_way.append(x)
  return jnp.stack(on_the_way[::-1])


def check_which(which: Sequence[int], steps: int) -> tuple[int, ...]:
  """Returns the index of each step.

  Raises:
    ValueError: if there is not one for each, or one is negative.
  """
  which = tuple(which)
  for index in which:
    checks.whole("an entry of which", index)
  if len(which) != steps or min(which) < 0:
    raise ValueError(
      f"which={which} must have an index, 0 or more, for each of {steps} steps."
    )
  return which


@functools.partial(jax.jit, static_argnames="path")
def take_step(
  denoise: Denoise,
  x: jax.Array,
  before: jax.Array,
  state: Any,
  time: float,
  coefficients: tuple[float, ...],
  *,
  path: Path,
) -> tuple[jax.Array, jax.Array, Any]:
  """One step, the program that `sample` and `invert` repeat.

  Args:
    denoise: what predicts, a pytree.
    x: [batch, ...], where it begins.
    before: what the step before returned as `clean`; zeros at the first.
    state: of `denoise`.
    time: of x.
    coefficients: a row of `solvers.coefficients`.
    path: of what `denoise` was trained on.

  Returns:
    (x, clean, state), where `clean` is what the next takes as `before`.
  """
  time = jnp.asarray(time)
  prediction, state = denoise(x, time, state)
  clean = path.clean(prediction, x, time)
  noise = path.noise(prediction, x, time)
  of_x, of_clean, of_noise, of_before = coefficients
  x = of_x * x + of_clean * clean + of_noise * noise + of_before * before
  return x, clean, state


def _trace(denoisers, which, x, state, times, rows, path):
  """Traces all steps, so that what does not fit is an error before the first.

  Those that are like one before are it, and the loop finds what was traced.
  """
  made = {}
  state = jax.eval_shape(lambda state: state, state)
  for n, index in enumerate(which):
    leaves, tree = jax.tree.flatten(state)
    kind = (index, tree, *((leaf.shape, leaf.dtype) for leaf in leaves))
    if kind not in made:
      step = functools.partial(take_step.eval_shape, path=path)
      made[kind] = step(denoisers[index], x, x, state, float(times[n]), rows[n])
    *_, state = made[kind]


def _times(path, steps, times):
  """The times to go through, float64."""
  if (steps is None) == (times is None):
    raise ValueError(
      f"steps={steps} and times={times}: one of them says where to go."
    )
  if times is None:
    return path.times(steps)
  times = np.asarray(times, np.float64)
  # Of what is no number, no comparison is true.
  ends = path.lowest_time, path.highest_time
  fall = times.ndim == 1 and np.all(np.diff(times) <= 0)
  if not fall or not np.all((times >= ends[0]) & (times <= ends[1])):
    raise ValueError(
      f"times={times} must fall, to no less than {ends[0]:g} and from no more "
      f"than {ends[1]:g}."
    )
  return times


def _as_pytree(denoise):
  """A function as a pytree without arrays; what is one stays as it is."""
  if jax.tree_util.all_leaves([denoise]):
    return jax.tree_util.Partial(denoise)
  return denoise
