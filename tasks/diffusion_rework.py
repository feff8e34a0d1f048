"""What becomes of samples that were made: they are edited, or made larger."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from attention import checks
from generation import c_upscale, c_upscale_checks, guide_and_rescale
from generation.paths import Path
from models import registry
from tasks import diffusion_options
from tasks.base import Progress

# Options of `draw` for `sample.py`: each with a default and what it is.
OPTIONS: Mapping[str, tuple[Any, str]] = {
  "edit": (
    "",
    "The classes that samples are then edited to by Guide-and-Rescale, one for "
    "each of those they are of, or one for all; empty: they stay.",
  ),
  "edit_options": ("", 'Of it, as "preset=style,guidance=5".'),
  "upscale": (
    1,
    "How many times as high and wide samples then become by C-Upscale.",
  ),
  "upscale_options": ("", 'Of it, as "structure=0.5,gate=False,start=0.6".'),
}
_BATCH = 128
# What a person may say; the rest is of the samples.
_EDIT = ("preset", "guidance")
_UPSCALE = ("start", "overlap", "structure", "gate")


class Rework:
  """Edits and enlarges; what does not fit is an error before any sample."""

  def __init__(
    self,
    model: nn.Module,
    path: Path,
    condition: Mapping[str, np.ndarray],
    *,
    steps: int,
    guidance: float,
    edit: str = "",
    edit_options: str = "",
    upscale: int = 1,
    upscale_options: str = "",
  ):
    """Reads what is asked for.

    Args:
      model: that samples.
      path: of the model.
      condition: of the rows, "label" or "text".
      steps: of what is done to samples.
      guidance: w; of an edit where its options have none.
      edit: as in OPTIONS, and so for all that follow.
      edit_options: of the edit.
      upscale: a factor.
      upscale_options: of it.

    Raises:
      ValueError: for what cannot be read, or does not fit.
    """
    self._model, self._path, self._steps = model, path, steps
    self._target = None
    if edit:
      if "label" not in condition:
        raise ValueError(f"edit={edit!r} is of classes, and these are texts.")
      target = diffusion_options.choose(model, edit, "")[0]["label"]
      if len(target) not in (1, len(condition["label"])):
        raise ValueError(
          f"edit={edit!r} has {len(target)} classes for "
          f"{len(condition['label'])} rows: one for all, or one for each."
        )
      self._target = np.broadcast_to(target, condition["label"].shape)
    checks.whole("upscale", upscale, 1)
    self._edit = {
      "preset": "local",
      "guidance": guidance,
      **_read("edit_options", edit_options, _EDIT, edit),
    }
    self._upscale = {
      "scale": upscale,
      "steps": steps,
      "guidance": guidance,
      **_read("upscale_options", upscale_options, _UPSCALE, upscale > 1),
    }
    if edit:
      guide_and_rescale.check(model, **self._edit)
    if upscale > 1:
      c_upscale_checks.plan(model, path, condition=condition, **self._upscale)

  def __bool__(self):
    """Whether anything is asked for."""
    return self._target is not None or self._upscale["scale"] > 1

  def __call__(
    self,
    variables: Mapping[str, Any],
    made: np.ndarray,
    condition: Mapping[str, np.ndarray],
    *,
    columns: int,
    seed: int,
    progress: Progress | None = None,
  ) -> np.ndarray:
    """Returns what becomes of samples.

    Args:
      variables: of the model.
      made: samples [rows, *shape, channels].
      condition: of each of them.
      columns: how many samples there are of each row of the condition.
      seed: of the noise of larger ones.
      progress: what is shown on the way.
    """
    parts = []
    for first in range(0, len(made), _BATCH):
      rows = slice(first, first + _BATCH)
      x = jnp.asarray(made[rows])
      given = {name: jnp.asarray(a[rows]) for name, a in condition.items()}
      if self._target is not None:
        target = self._target.repeat(columns, axis=0)[rows]
        x, _ = guide_and_rescale.edit(
          self._model,
          variables,
          x,
          self._path,
          source=given,
          target={"label": jnp.asarray(target)},
          steps=self._steps,
          progress=progress,
          **self._edit,
        )
        given = {"label": jnp.asarray(target)}
      if self._upscale["scale"] > 1:
        x = c_upscale.upscale(
          self._model,
          variables,
          x,
          self._path,
          condition=given,
          key=jax.random.fold_in(jax.random.key(seed), first),
          progress=progress,
          **self._upscale,
        )
      parts.append(np.asarray(x))
    return np.concatenate(parts)


def _read(
  name: str, text: str, known: tuple[str, ...], wanted: Any
) -> dict[str, Any]:
  """Reads options, which must be of `known`."""
  options = diffusion_options.parse_options(text, name)
  if options and not wanted:
    raise ValueError(f"{name}={text!r} is of something that is not asked for.")
  for option in options:
    if option not in known:
      raise registry.unknown(f"option in {name}", option, known)
  return options
