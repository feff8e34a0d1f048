"""The command line: a config file with overrides, and errors that help."""

import difflib
import sys
from collections.abc import Callable, Sequence
from logging import ERROR, LogRecord, getLogger

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from training import host_memory

# What a user can cause and repair; anything else shows its traceback.
USER_ERRORS = (ValueError, OSError)


def run(
  main: Callable[[Sequence[str]], None],
  user_errors: tuple[type[Exception], ...] = USER_ERRORS,
) -> None:
  """Runs `main` under absl, with user errors as one line and exit code 1."""

  def main_with_short_errors(argv):
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_logger().addFilter(_is_for_people)
    # It complains of fonts that our pictures do not use.
    getLogger("matplotlib").setLevel(ERROR)
    host_memory.keep_freed_memory()
    try:
      main(argv)
    except user_errors as error:
      if flags.FLAGS["traceback"].value:
        raise
      sys.exit(f"{type(error).__name__}: {error}")

  app.run(main_with_short_errors, flags_parser=_parse_flags)


def _is_for_people(record: LogRecord) -> bool:
  # Orbax warns of the options that we give it on purpose.
  return record.levelno >= ERROR or "orbax" not in record.pathname


def define_config_flag() -> None:
  """Defines --config and --traceback."""
  config_flags.DEFINE_config_file(
    "config",
    None,
    "A config file, with a variant after a colon: configs/digits.py:tiny.",
    lock_config=True,
  )
  flags.DEFINE_bool("traceback", False, "Show the traceback of user errors.")


def _parse_flags(argv: Sequence[str]) -> Sequence[str]:
  try:
    return flags.FLAGS(argv)
  except (AttributeError, KeyError) as error:
    # ml_collections raises these from inside, for an unknown field.
    sys.exit(_unknown_field(argv, str(error)))
  except (flags.Error, ValueError, TypeError, OSError) as error:
    # An error in the config file itself arrives with its traceback as text;
    # the last line is what it says.
    lines = str(error).strip().splitlines()
    told = lines[-1].strip() if "Traceback" in str(error) else " ".join(lines)
    sys.exit(f"{type(error).__name__}: {told}")


def _unknown_field(argv: Sequence[str], error: str) -> str:
  """Names the first override that the config has no field for."""
  given = dict(a.lstrip("-").partition("=")[::2] for a in argv)
  if not given.get("config"):
    return f"Give the config as --config=<file>: {error}"
  config = flags.FLAGS["config"].parser.parse(given["config"])
  fields = field_names(config)
  for name in given:
    field = name.removeprefix("config.")
    if name.startswith("config.") and field not in fields:
      near = difflib.get_close_matches(field, fields, n=3, cutoff=0.4)
      return (
        f"--{name}: the config has no such field. "
        + (f"Did you mean {', '.join(near)}? " if near else "")
        + f"It has: {', '.join(fields)}."
      )
  return f"--config={given['config']} cannot be read: {error}"


def field_names(config: ConfigDict, prefix: str = "") -> list[str]:
  """All fields of a nested config, as "optimizer.learning_rate"."""
  names = []
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      names += field_names(value, f"{prefix}{key}.")
    else:
      names.append(prefix + key)
  return names
