"""Which parameters are trained, and the two parts of a tree that follow."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from flax import traverse_util

from training import paths

# Tells of a parameter's path whether it is trained.
Trainable = Callable[[str], bool]


def choose(
  names: Collection[str],
  *,
  trainable: Sequence[str] = (),
  frozen: Sequence[str] = (),
  also: Trainable | None = None,
) -> Trainable | None:
  """Says which parameters are trained; None if all are.

  Args:
    names: the paths of all parameters.
    trainable: patterns of `training.paths`; what none takes is not trained. All
      if empty.
    frozen: patterns of what is not trained of these.
    also: what a task says; what it does not want is not trained either.

  Raises:
    ValueError: for a pattern that cannot be read or takes nothing, or if
      nothing is left to train, or nothing frozen although something says so.
  """
  if not (trainable or frozen or also):
    return None
  paths.group_by_rule("trainable", trainable, names)
  paths.group_by_rule("frozen", frozen, names)

  def is_trained(name: str) -> bool:
    wanted = not trainable or paths.first_match(trainable, name) is not None
    wanted = wanted and paths.first_match(frozen, name) is None
    return wanted and (also is None or also(name))

  group(is_trained, names)
  return is_trained


def group(trainable: Trainable, names: Collection[str]) -> dict[str, list[str]]:
  """Which parameters stay as they are, and under "" which do not.

  Raises:
    ValueError: if there are none of either.
  """
  groups = {
    "what does not learn": [name for name in names if not trainable(name)],
    "": [name for name in names if trainable(name)],
  }
  if not all(groups.values()):
    which = "no" if groups["what does not learn"] else "every"
    raise ValueError(
      f"This config freezes some parameters, but {which} parameter of "
      f"{', '.join(names)} would learn."
    )
  return groups


def split(tree: Any, trainable: Trainable | None) -> tuple[Any, Any]:
  """Cuts a tree of dictionaries into what is trained and the rest.

  Only the first is differentiated, and only it has a state of the optimizer:
  what is frozen costs its own memory and the forward pass.

  Returns:
    (trained, rest): trees that lack what is in the other.
  """
  if trainable is None:
    return tree, {}
  flat = traverse_util.flatten_dict(tree, sep="/")
  parts = ({}, {})
  for name, leaf in flat.items():
    parts[not trainable(name)][name] = leaf
  trained, rest = (traverse_util.unflatten_dict(x, sep="/") for x in parts)
  return trained, rest


def join(trained: Any, rest: Any) -> Any:
  """The inverse of `split`."""
  if not rest:
    return trained
  flat = {
    **traverse_util.flatten_dict(trained),
    **traverse_util.flatten_dict(rest),
  }
  return traverse_util.unflatten_dict(flat)
