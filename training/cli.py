"""The command line: a config file with overrides, and errors that help."""

import contextlib
import difflib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from logging import ERROR, LogRecord, getLogger
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_dict, config_flags

import storage
from training import compilation_cache, host_memory, hosts, joining

# What a user can cause and repair; anything else shows its traceback.
USER_ERRORS = (ValueError, OSError, hosts.HostsError)
# Flags are those of the program, which its --help shall list.
flags.disclaim_key_flags()

# The flags that `define_task_flags` has defined.
_TASK_FLAGS: dict[str, Any] = {}


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
      compilation_cache.enable(flags.FLAGS["compilation_cache"].value)
      main(argv)
    except user_errors as error:
      if flags.FLAGS["traceback"].value:
        raise
      sys.exit(f"{type(error).__name__}: {error}")

  app.run(main_with_short_errors, flags_parser=_parse_flags)


def _is_for_people(record: LogRecord) -> bool:
  # Orbax warns of the options that we give it on purpose.
  return record.levelno >= ERROR or "orbax" not in record.pathname


def define_config_flag(
  optional_fields: Callable[[ConfigDict], Mapping[str, Any]] = lambda _: {},
  *,
  load_run: Callable[[str], ConfigDict],
  default: str = "",
) -> None:
  """Defines --config, --traceback and --compilation_cache.

  Args:
    optional_fields: returns fields that a config may have beside its own, as
      "model.depths", each with its value where it is left out; None for one
      that cannot be given as text.
    load_run: returns the config of the run in a workdir.
    default: the name of another flag. Without --config it gives the config, if
      it names the workdir of a run.
  """
  config_flags.DEFINE_config_file(
    "config",
    None,
    "A config file, with a variant after a colon: configs/digits.py:tiny.",
    lock_config=True,
  )
  flag = flags.FLAGS["config"]
  flag.parser = _ConfigParser(flag.parser, optional_fields, load_run, default)
  flags.DEFINE_bool("traceback", False, "Show the traceback of user errors.")
  flags.DEFINE_string(
    "compilation_cache",
    "",
    "A folder or URL for compiled programs, or none. By default that of "
    "JAX_COMPILATION_CACHE_DIR, or else ~/.cache/foveal/compiled.",
  )


def define_weights_flags() -> None:
  """Defines --weights, --step and --ema: of which model there is talk."""
  flags.DEFINE_string("weights", None, "A workdir, or what the program names.")
  flags.DEFINE_string("step", "last", "Of a run: last, best or a number.")
  flags.DEFINE_bool("ema", True, "Use the moving average if there is one.")


def define_hosts_flags() -> None:
  """Defines how the processes of a run find each other; see `joining`."""
  flags.DEFINE_bool(
    "distributed",
    None,
    "Join the other processes of the run. By default if a TPU pod or SLURM "
    "says that there are some; --nodistributed to be alone.",
  )
  flags.DEFINE_string(
    "coordinator", None, "Where nothing says it: process 0, as host-a:8476."
  )
  flags.DEFINE_integer("num_processes", None, "With it: how many there are.")
  flags.DEFINE_integer("process_id", None, "With it: which one this is.")
  flags.DEFINE_float(
    "wait_limit",
    1800.0,
    "Seconds that a process waits for others before it ends and says for whom.",
  )


def joined() -> contextlib.AbstractContextManager[None]:
  """Joins the other processes as those flags say."""
  names = ("distributed", "coordinator", "num_processes", "process_id")
  return joining.joined(
    wait_limit=flags.FLAGS.wait_limit,
    **{name: flags.FLAGS[name].value for name in names},
  )


def check_weights(config: ConfigDict | None, weights: str | None) -> None:
  """Raises ValueError unless there are weights and a config for them."""
  if not weights:
    raise ValueError("Give --weights: which model.")
  if config is None:
    raise ValueError(
      f"weights={weights!r} is not the workdir of a run: give --config."
    )


def define_task_flags(
  options: Mapping[str, Mapping[str, tuple[Any, str]]],
) -> None:
  """Defines a flag for each option that some task has.

  Args:
    options: of each task, by name, its options, each with a default, whose type
      is the flag's, and a line that says what it is.
  """
  # Of each name its first default, and the tasks of each line on it.
  together: dict[str, tuple[Any, dict[str, list[str]]]] = {}
  for task, of_task in options.items():
    for name, (default, line) in of_task.items():
      _, lines = together.setdefault(name, (default, {}))
      lines.setdefault(f"{line} By default {default!r}.", []).append(task)
  for name, (default, lines) in together.items():
    described = [f"{', '.join(has)}: {line}" for line, has in lines.items()]
    define = {
      bool: flags.DEFINE_bool,
      int: flags.DEFINE_integer,
      float: flags.DEFINE_float,
      str: flags.DEFINE_string,
      tuple: flags.DEFINE_multi_string,
    }[type(default)]
    # None is a flag that was not given: each task has its own default.
    define(name, None, " ".join(described))
  _TASK_FLAGS.update(together)


def task_options(
  task: str, options: Mapping[str, tuple[Any, str]]
) -> dict[str, Any]:
  """The options of a task that the command line gives.

  Args:
    task: its name.
    options: that it has, as for `define_task_flags`.

  Raises:
    ValueError: if one was given that only other tasks have.
  """
  given = {
    name: flags.FLAGS[name].value
    for name in _TASK_FLAGS
    if flags.FLAGS[name].value is not None
  }
  for name in given:
    if name not in options:
      raise ValueError(
        f"--{name} is no option of task={task!r}; it has "
        f"{', '.join(options) or 'none'}."
      )
  return given


class _ConfigParser(flags.ArgumentParser):
  """Loads what --config names, ready for the overrides of the command line."""

  def __init__(self, files, optional_fields, load_run, default):
    self.default = default
    self._files = files
    self._optional_fields = optional_fields
    self._load_run = load_run

  def parse(self, argument: Any) -> Any:
    is_run = isinstance(argument, str) and _is_run(argument)
    config = self._load_run(argument) if is_run else self._files.parse(argument)
    if config is not None:
      self._add_optional(config, _overrides(sys.argv))
      config.lock()
    return config

  def flag_type(self) -> str:
    return self._files.flag_type()

  def known_fields(self, argument: str) -> list[str]:
    """All fields that an override may name."""
    config = self.parse(argument)
    optional = self._optional(config, _overrides(sys.argv))
    return list(dict.fromkeys([*field_names(config), *optional]))

  def _add_optional(
    self, config: ConfigDict, overrides: Mapping[str, str]
  ) -> None:
    """Adds the overridden fields that `config` lacks, so that they have types.

    Only these, so that a run's config says what was chosen and no more.
    """
    types = _types(config)
    # None has lost its type where the config was read from a run.
    absent = [n for n in overrides if types.get(n) in (None, type(None))]
    if not absent:
      return
    optional = self._optional(config, overrides)
    untyped = {name: config_dict.placeholder(str) for name in types}
    with config.unlocked():
      for name in absent:
        if name in optional or name in types:
          value = (untyped | optional)[name]
          config.update_from_flattened_dict({name: value})

  def _optional(
    self, config: ConfigDict, overrides: Mapping[str, str]
  ) -> dict[str, Any]:
    """The optional fields; which there are may depend on overridden names."""
    names = {
      name: overrides[name]
      for name, kind in _types(config).items()
      if kind is str and name in overrides
    }
    chosen = config.copy_and_resolve_references()
    chosen.update_from_flattened_dict(names)
    found = self._optional_fields(chosen)
    return {name: value for name, value in found.items() if value is not None}


def _is_run(path: str) -> bool:
  return (storage.path(path) / "config.json").exists()


def _given(argv: Sequence[str]) -> dict[str, str]:
  """The flags of a command line with their values, as text."""
  found = {}
  for argument, following in zip(argv, [*argv[1:], ""], strict=True):
    if argument.startswith("-"):
      name, equals, value = argument.lstrip("-").partition("=")
      found[name] = value if equals else following
  return found


def _overrides(argv: Sequence[str]) -> dict[str, str]:
  """The fields of the config that a command line gives, as text."""
  return {
    re.sub(r"^(no)?config\.", "", name): value
    for name, value in _given(argv).items()
    if re.match(r"(no)?config\.", name)
  }


def _parse_flags(argv: Sequence[str]) -> Sequence[str]:
  argv = _with_config(argv)
  if _overrides(argv) and "config" not in _given(argv):
    sys.exit("Give the config that is overridden: --config=<file>.")
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


def _with_config(argv: Sequence[str]) -> Sequence[str]:
  """Adds --config where another flag gives it."""
  given, default = _given(argv), flags.FLAGS["config"].parser.default
  if "config" in given or not default or not _is_run(given.get(default, "")):
    return argv
  # Before all else: overrides are flags only once there is a config.
  return [argv[0], f"--config={given[default]}", *argv[1:]]


def _unknown_field(argv: Sequence[str], error: str) -> str:
  """Names the first override that the config has no field for."""
  given = _given(argv)
  if not given.get("config"):
    return f"Give the config as --config=<file>: {error}"
  fields = flags.FLAGS["config"].parser.known_fields(given["config"])
  for field in _overrides(argv):
    if field not in fields:
      near = difflib.get_close_matches(field, fields, n=3, cutoff=0.4)
      return (
        f"--config.{field}: the config has no such field. "
        + (f"Did you mean {', '.join(near)}? " if near else "")
        + f"It has: {', '.join(fields)}."
      )
  return f"--config={given['config']} cannot be read: {error}"


def field_names(config: ConfigDict) -> list[str]:
  """All fields of a nested config, as "optimizer.learning_rate"."""
  return list(_types(config))


def _types(config: ConfigDict, prefix: str = "") -> dict[str, type]:
  """The type of each field of a nested config, by its name."""
  types = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      types |= _types(value, f"{prefix}{key}.")
    else:
      types[prefix + key] = config.get_type(key)
  return types
