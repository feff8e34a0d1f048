"""Methods that change a trained model while it samples, without training.

A method is a function (model, steps, **options) -> `Method`: models that are
clones of the one that was trained, with other attention and the same
parameters, and which of them each step uses. Each is one file here, and a line
in METHODS.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from attention import checks
from generation.methods.entropy_scale import entropy_scale
from generation.methods.freeswim import freeswim
from generation.methods.linfusion import linfusion
from generation.methods.naive import naive
from generation.methods.psa import psa
from generation.methods.radial import radial
from generation.methods.re_ttention import re_ttention
from generation.methods.scale_dit import scale_dit
from models import attends, registry


class Small(NamedTuple):
  """A sample of the model as it is, smaller, that must be there before.

  Attributes:
    factor: how many times as large the others' sides are.
    state: (variables, image, label=, text=, text_length=, guidance=) -> what
      the first step is given as its state.
  """

  factor: int
  state: Callable[..., Any]


class Method(NamedTuple):
  """Models, and which of them each step uses.

  Attributes:
    models: clones of one model.
    which: for each step the index of one of them.
    small: of a smaller sample that is made first; None for none.
    guided: whether they need both halves of guidance, with a condition and
      without.
  """

  models: Sequence[nn.Module]
  which: Sequence[int]
  small: Small | None = None
  guided: bool = False


def full(model: nn.Module, steps: int) -> Method:
  """The model as it is, at each step."""
  return Method((model,), (0,) * steps)


def full_first(
  model: nn.Module,
  changed: nn.Module,
  steps: int,
  full_steps: int,
  scale_by: str = "constant",
  *,
  name: str = "full_steps",
) -> Method:
  """The model as it is for the first steps, then the changed one.

  Args:
    model: that was trained.
    changed: a clone of it.
    steps: of sampling.
    full_steps: how many are the model's.
    scale_by: of `changed`; the model's own attention is scaled alike.
    name: of `full_steps` among the options of the method.

  Raises:
    ValueError: if there are not so many steps.
  """
  check_first(name, full_steps, steps)
  which = (0,) * full_steps + (1,) * (steps - full_steps)
  return Method((scaled(model, scale_by), changed), which)


def check_first(name: str, first: int, steps: int) -> None:
  """Raises ValueError unless so many steps, the first ones, are there."""
  checks.whole(name, first, 0)
  if first > steps:
    raise ValueError(f"{name} is {first}; there are {steps} steps")


def require(model: nn.Module, *fields: str) -> None:
  """Raises ValueError for a model whose attention cannot be changed by them."""
  if missing := [field for field in fields if not hasattr(model, field)]:
    raise ValueError(
      f"the model is a {type(model).__name__}, which has no field "
      f"{missing[0]!r}; methods that change attention need a "
      "DiffusionTransformer"
    )


def with_attend(
  model: nn.Module, attend: str, options: Mapping[str, Any], **fields: Any
) -> nn.Module:
  """A diffusion transformer with another attend of its self-attention.

  Args:
    model: that was trained.
    attend: a name of `attends.ATTENDS`.
    options: of it.
    **fields: others of the model that are changed.

  Raises:
    ValueError: for a model that cannot have it.
  """
  require(model, "attend", *fields)
  mixer = getattr(model, "mixer", "attention")
  if mixer != "attention":
    raise ValueError(
      f"mixer is {mixer!r}, which is no attention, so that attend={attend!r} "
      "would change nothing; mixer='attention' is"
    )
  return model.clone(attend=attend, attend_options=options, **fields)


def scaled(model: nn.Module, scale_by: str) -> nn.Module:
  """The model with the scale of scores that its attend has by this name.

  Args:
    model: a diffusion transformer.
    scale_by: see `models.attends.scaling`; "constant" is the model as it is.

  Raises:
    ValueError: if its tokens are mixed without scores.
  """
  if scale_by == "constant":
    return model
  require(model, "mixer", "attend", "attend_options")
  if model.mixer != "attention":
    raise ValueError(
      f"mixer is {model.mixer!r}, which has no scores to scale by how many "
      "keys there are; mixer='attention' has"
    )
  options = {**model.attend_options, "scale_by": scale_by}
  attends.check("attend", model.attend, options)
  return model.clone(attend_options=options)


METHODS: Mapping[str, Callable[..., Method]] = {
  "entropy_scale": entropy_scale,
  "freeswim": freeswim,
  "full": full,
  "linfusion": linfusion,
  "naive": naive,
  "psa": psa,
  "radial": radial,
  "re_ttention": re_ttention,
  "scale_dit": scale_dit,
}


def create(
  name: str, model: nn.Module, steps: int, options: Mapping[str, Any]
) -> Method:
  """Makes a method by its name.

  Args:
    name: one of METHODS.
    model: that was trained.
    steps: of sampling.
    options: of the method.

  Raises:
    ValueError: if there is no such method, it has no such option, or an option
      does not fit.
  """
  if name not in METHODS:
    raise registry.unknown("method", name, METHODS)
  known = list(inspect.signature(METHODS[name]).parameters)[2:]
  for option in options:
    if option not in known:
      raise registry.unknown(f"option of method {name!r}", option, known)
  checks.whole("steps", steps, 1)
  return METHODS[name](model, steps, **options)
