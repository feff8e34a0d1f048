"""FreeSwim: larger videos by windows of the trained size (arXiv 2511.14712)."""

import flax.linen as nn

from attention import checks
from generation import methods
from models import decoding
from models.attends import STATE


class DualPath(nn.Module):
  """A model whose cross-attention is that of another one, of the same input.

  The paper has both as two rows of a batch, of which the second goes on from
  the first at each step. The second takes nothing of the first on its way, so
  that here it runs before, and what its cross-attention gave is the state.

  Attributes:
    guide: runs first, on the same input; its prediction is dropped.
    model: what predicts.
  """

  guide: nn.Module
  model: nn.Module

  @nn.nowrap
  def apply(self, variables, *arguments, mutable=(), **options):
    """Applies both with the same variables; see `flax.linen.Module.apply`."""
    if STATE not in mutable:
      raise ValueError(
        f"mutable is {mutable}; the two models need {STATE!r} among it"
      )
    _, state = self.guide.apply(
      variables, *arguments, mutable=mutable, **options
    )
    return self.model.apply(
      {**variables, **state}, *arguments, mutable=mutable, **options
    )

  # What samplers read of a model.

  @property
  def num_classes(self):
    return self.model.num_classes

  @property
  def guided_channels(self):
    return self.model.guided_channels


def freeswim(
  model: nn.Module,
  steps: int,
  *,
  period: int = 2,
  inward: bool = True,
  override: bool = True,
  scale_by: str = "twice",
  cached_unconditional: bool = True,
) -> "methods.Method":
  """Attends within windows, with the cross-attention of full attention.

  Each `period` steps a branch with full attention runs as well, and what its
  cross-attention gives takes the place of the windows', until the next one.

  Args:
    model: a diffusion transformer with conditioning="cross".
    steps: of sampling.
    period: steps from one run of full attention to the next; 1 has it at each,
      as the paper without its cache.
    inward: whether windows are pushed inward at the borders.
    override: whether there is a branch with full attention at all.
    scale_by: "twice", which is the paper's, "constant" or "entropy"; see
      `models.attends.inward_window`.
    cached_unconditional: whether guidance's half without a condition takes the
      other branch's cross-attention too. The released code with a cache has
      not, and the one without has; False needs guidance.

  Raises:
    ValueError: for a model without cross-attention, or a period below 1.
  """
  if getattr(model, "conditioning", None) != "cross":
    raise ValueError(
      f"conditioning is {getattr(model, 'conditioning', None)!r}; FreeSwim's "
      "branches meet in cross-attention, so it must be 'cross'"
    )
  checks.whole("period", period, 1)
  for name, value in (
    ("override", override),
    ("cached_unconditional", cached_unconditional),
  ):
    checks.flag(name, value)
  options = {"scale_by": scale_by}
  windows = methods.with_attend(
    model, "inward_window", {**options, "inward": inward}
  )
  if not override:
    return methods.Method((windows,), (0,) * steps)
  windows = windows.clone(
    cross_attend="kept",
    cross_attend_options={"first_half": not cached_unconditional},
  )
  guide = model.clone(
    attend="inward_window",
    attend_options={**options, "windowed": False},
    cross_attend="kept",
    cross_attend_options={"write": True},
  )
  which = tuple(int(step % period > 0) for step in range(steps))
  dual = DualPath(decoding.hashable(guide), decoding.hashable(windows))
  return methods.Method((dual, windows), which, guided=not cached_unconditional)
