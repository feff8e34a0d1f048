"""Names of the leaves of a tree, and rules that choose among them by name.

A name is "stage_0/block_1/norm/scale". A rule's pattern is one or more
components with slashes between them, each a regular expression of a whole
component, and takes the names that have such a run of components anywhere:
`norm/(scale|bias)` takes the name above, `scale` too, but `scale` does not take
"scale_block_0/kernel", nor `norm/scale` "stem/norm_0/scale".
"""

import difflib
import functools
import re
from collections.abc import Collection, Sequence
from typing import Any

import jax


def path_name(path: tuple[Any, ...]) -> str:
  """Joins a key path of `jax.tree_util` with slashes."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten_with_names(tree: Any) -> dict[str, Any]:
  """Flattens a tree into `{path name: leaf}`, in the tree's own order."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {path_name(path): leaf for path, leaf in leaves}


def first_match(patterns: Sequence[str], name: str) -> int | None:
  """The index of the first pattern that takes a name, None without one."""
  parts = name.split("/")
  for index, pattern in enumerate(patterns):
    wanted = _components(pattern)
    for start in range(len(parts) - len(wanted) + 1):
      run = parts[start : start + len(wanted)]
      if all(map(re.Pattern.fullmatch, wanted, run)):
        return index
  return None


def check_patterns(field: str, patterns: Sequence[str]) -> None:
  """Raises ValueError, naming `field`, unless all patterns can be read."""
  if isinstance(patterns, str):
    raise ValueError(
      f"{field}={patterns!r} must be a tuple of patterns, such as "
      f"({patterns or 'bias'!r},)."
    )
  for pattern in patterns:
    if not isinstance(pattern, str) or not all(pattern.split("/")):
      raise ValueError(
        f"{field} has {pattern!r}, which is not one or more components of a "
        "path with slashes between them, such as 'norm/(scale|bias)'."
      )
    try:
      _components(pattern)
    except re.error as error:
      raise ValueError(
        f"{field} has {pattern!r}, of which a component between slashes is not "
        f"a regular expression: {error}."
      ) from None


def check_pairs(field: str, rules: Sequence[tuple[str, Any]]) -> list[str]:
  """Returns the patterns of rules that are pairs (pattern, what it gives).

  Raises:
    ValueError: naming `field`, if they are not, or one cannot be read.
  """
  for rule in rules:
    if isinstance(rule, str) or len(rule) != 2:
      raise ValueError(
        f"{field} has {rule!r}, which is not a pair of a pattern of a path and "
        f"what it gives; {field} is a tuple of pairs."
      )
  patterns = [pattern for pattern, _ in rules]
  check_patterns(field, patterns)
  return patterns


def group_by_rule(
  field: str,
  patterns: Sequence[str],
  names: Collection[str],
  *,
  optional: Collection[str] = (),
) -> dict[str, list[str]]:
  """Which names each pattern takes; the first that matches takes a name.

  Args:
    field: of the config, for errors.
    patterns: as at the top of this file.
    names: of all leaves there are.
    optional: patterns that may take nothing.

  Returns:
    `{pattern: names}`, and under "" the names that no pattern takes.

  Raises:
    ValueError: for a pattern that cannot be read or takes nothing.
  """
  check_patterns(field, patterns)
  groups: dict[str, list[str]] = {pattern: [] for pattern in (*patterns, "")}
  for name in names:
    index = first_match(patterns, name)
    groups["" if index is None else patterns[index]].append(name)
  for pattern in patterns:
    if not groups[pattern] and pattern not in optional:
      raise ValueError(f"{field} has {pattern!r}, {_why(pattern, names)}")
  return groups


def _why(pattern: str, names: Collection[str]) -> str:
  """Says why a pattern takes none of the names."""
  if any(first_match([pattern], name) is not None for name in names):
    return "but rules before it take all that it matches."
  known = sorted({part for name in names for part in name.split("/")})
  near = [
    match
    for part in pattern.split("/")
    for match in difflib.get_close_matches(part, known, n=3)
    if not any(map(re.compile(part).fullmatch, known))
  ]
  hint = f"Near it are {', '.join(near)}. " if near else ""
  return (
    "which matches no parameter; it must match whole components of a path. "
    f"{hint}The components are {', '.join(known)}."
  )


@functools.cache
def _components(pattern: str) -> tuple[re.Pattern[str], ...]:
  return tuple(map(re.compile, pattern.split("/")))
