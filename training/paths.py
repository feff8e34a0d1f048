"""Names of the leaves of a tree: "params/stage_0/block_1/norm/scale"."""

from typing import Any

import jax


def path_name(path: tuple[Any, ...]) -> str:
  """Joins a key path of `jax.tree_util` with slashes."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def flatten_with_names(tree: Any) -> dict[str, Any]:
  """Flattens a tree into `{path name: leaf}`, in the tree's own order."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {path_name(path): leaf for path, leaf in leaves}
