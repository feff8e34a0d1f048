"""Counts parameters; those of a deep model by a shallow one.

Tracing a model takes as long as it has blocks, and those of one kind after the
first of their stage have the same shapes. So a model is traced with one of each
kind, and the blocks left out are counted by it.
"""

import jax
import jax.numpy as jnp
import numpy as np


def count(model, size):
  """Returns the numbers of parameters and of batch statistics."""
  shapes = _shapes(model, size)
  return tuple(_size(shapes.get(part)) for part in ("params", "batch_stats"))


def count_by_kind(model, size):
  """Returns what `count` does, of a model with `layout` or `depths`.

  The last block of a stage must be like those before it.
  """
  shallow, left_out = _shallow(model)
  shapes = _shapes(shallow, size)
  return tuple(
    _size(shapes.get(part))
    + sum(
      number * _size(shapes[part].get(stage, {}).get(block))
      for (stage, block), number in left_out.items()
    )
    for part in ("params", "batch_stats")
  )


def _shallow(model):
  """Returns a model without repetitions, and {(stage, block): repetitions}."""
  has_layout = hasattr(model, "layout") and not hasattr(model, "depths")
  stages = model.layout if has_layout else [("same",) * d for d in model.depths]
  layout, left_out = [], {}
  for i, kinds in enumerate(stages):
    # The first block of a stage is unlike those after it, of its kind too.
    rest = list(dict.fromkeys(kinds[1:]))
    layout.append((*kinds[:1], *rest))
    for j, kind in enumerate(rest):
      name = f"stage_{i}", f"block_{j + 1}"
      left_out[name] = kinds[1:].count(kind) - 1
  if has_layout:
    return model.clone(layout=tuple(layout)), left_out
  return model.clone(depths=tuple(map(len, layout))), left_out


def _shapes(model, size):
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  return jax.eval_shape(model.init, jax.random.key(0), image)


def _size(tree):
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
