"""Flags that are lists of names: an unknown one is an error of one line."""

from collections.abc import Collection

from absl import flags


def define_names(
  name: str, default: list[str], known: Collection[str], help_text: str
) -> flags.FlagHolder:
  """Defines a flag that takes names with commas between them.

  Args:
    name: of the flag.
    default: the names if it is not given.
    known: the names that there are.
    help_text: what the flag is.
  """
  holder = flags.DEFINE_list(name, default, help_text)

  def check(values: list[str]) -> bool:
    for value in values:
      if value not in known:
        raise flags.ValidationError(
          f"{name}={value!r} must be of {', '.join(known)}"
        )
    return True

  flags.register_validator(holder, check)
  return holder
