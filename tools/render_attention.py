"""Draws the pictures of docs/attention.md, each from the call beside it.

  python -m tools.render_attention docs/images

The row of a picture is `| ![](images/NAME.png) | `CALL` | ...`. The call is
evaluated with the names that the page's own code makes, and what it returns
says how it is drawn. Each file carries its call, so that a test can tell a
picture that no longer belongs to its row.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

import attention
import storage
from attention import masks
from attention.finishes import Finish
from attention.mask_base import Blocks, Mask
from attention.normalizers import Normalizer, softmax
from attention.scores import ScoreMod
from attention.tiles import over_all_scores

PAGE = Path(__file__).parent.parent / "docs" / "attention.md"
INCHES, DOTS_PER_INCH = 1.5, 100
# Side of the tiles in the pictures of masks.
TILE = 4
GREY, BLUE = "0.7", "#1f5fa8"
# Hidden and visible in empty, mixed and full tiles.
SHADES = ListedColormap(["white", "0.85", "#7fb0e0", BLUE])


def code_blocks(page: str) -> list[str]:
  """Returns the Python blocks of a Markdown page."""
  return re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)


def run_code(page: str) -> dict[str, Any]:
  """Runs the Python blocks of a page in order and returns their names."""
  names: dict[str, Any] = {}
  for block in code_blocks(page):
    exec(block, names)
  return names


def picture_calls(page: str) -> dict[str, str]:
  """Returns the call for each picture of a page, by the picture's name."""
  rows = re.findall(
    r"^\| !\[\]\(images/(\w+)\.png\) \| `(.+?)` \|", page, re.MULTILINE
  )
  return {name: call.replace(r"\|", "|") for name, call in rows}


def draw(axes: Axes, call: str, names: Mapping[str, Any]) -> None:
  """Evaluates `call` and draws what it returns.

  Args:
    axes: where to draw.
    call: an expression.
    names: what the expression may use. `image_v` is replaced by unit vectors,
      so that the result of a function of an image is its map.

  Raises:
    TypeError: if there is no picture for such a result.
  """
  pixels = names["image_v"].shape[1:3]
  image_v = jnp.eye(pixels[0] * pixels[1]).reshape(*pixels, 1, -1)
  heads = names["image_v"].shape[3]
  image_v = jnp.repeat(image_v, heads, axis=2)[None]
  value = eval(call, {**names, "image_v": image_v})
  match value:
    case Mask():
      _draw_mask(axes, value, names["n"])
    case ScoreMod():
      _draw_score_mod(axes, value, names)
    case Normalizer():
      _draw_normalizer(axes, value, names)
    case Finish():
      _draw_finish(axes, value, names)
    case float():
      _draw_scale(axes, value, names)
    case jax.Array() if value.ndim == 1:
      axes.plot(np.arange(1, len(value) + 1), value, color=BLUE)
    case jax.Array() if value.ndim == 5:
      _draw_image(axes, value)
    case jax.Array() if value.ndim == 4:
      _matrix(axes, value[0, :, 0], cmap="Blues", vmin=0)
    case _:
      raise TypeError(f"no picture for a {type(value).__name__}: {call}")


def _draw_mask(axes: Axes, mask: Mask, tokens: int) -> None:
  if isinstance(mask, Blocks):
    _matrix(axes, mask.table[0, 0], cmap=SHADES, vmin=0, vmax=1)
    return
  visible = np.asarray(mask.dense(tokens, tokens, batch=2)[0, 0])
  states = np.asarray(mask.tile_states(tokens, tokens, TILE, TILE))[0, 0]
  states = states.repeat(TILE, axis=0).repeat(TILE, axis=1)
  shade = np.where(visible, 2, 1)
  shade[states == masks.EMPTY] = 0
  shade[states == masks.FULL] = 3
  _matrix(axes, shade, cmap=SHADES, vmin=0, vmax=3)


def _draw_score_mod(axes: Axes, mod: ScoreMod, names: Mapping) -> None:
  # A modification may be for another number of tokens than the page's.
  tokens = [
    size
    for operand in mod.operands()
    for size, axis in zip(operand.array.shape, operand.axes, strict=True)
    if axis in "qk"
  ]
  n = tokens[0] if tokens else names["n"]
  shape = names["batch"], names["heads"], n, n
  change = _modified(mod, jnp.zeros(shape))[0, 0]
  if jnp.any(change != 0):
    most = jnp.abs(change).max()
    _matrix(axes, change, cmap="RdBu_r", vmin=-most, vmax=most)
    return
  score = jnp.linspace(-4, 4, n)
  axes.plot(score, score, color=GREY)
  axes.plot(
    score, _modified(mod, jnp.broadcast_to(score, shape))[0, 0, 0], color=BLUE
  )


def _modified(mod: ScoreMod, score: jax.Array) -> jax.Array:
  return over_all_scores(mod.modify, mod.operands(), score.shape, score)


def _draw_normalizer(axes: Axes, normalizer: Normalizer, names) -> None:
  shape = names["batch"], names["heads"], names["n"], names["n"]
  score = jnp.linspace(-3, 5, shape[-1])
  for each, color in ((softmax(), GREY), (normalizer, BLUE)):
    weights, _ = each.weights(jnp.broadcast_to(score, shape), None)
    axes.plot(score, weights[0, 0, 0], ".-", color=color, markersize=3)


def _draw_finish(axes: Axes, finish: Finish, names: Mapping) -> None:
  n = names["n"]
  v = jnp.broadcast_to(jnp.eye(n)[:, None], (*names["q"].shape[:-1], n))
  out = attention.dot_product_attention(
    names["q"], names["k"], v, mask=masks.causal(), finish=finish
  )
  _matrix(axes, out[0, :, 0], cmap="Blues", vmin=0, vmax=0.5)


def _draw_scale(axes: Axes, scale: float, names: Mapping) -> None:
  for each, color in ((None, GREY), (scale, BLUE)):
    weights = attention.attention_weights(names["q"], names["k"], scale=each)
    axes.plot(jnp.sort(weights[0, 0, 0])[::-1], ".-", color=color, markersize=3)


def _draw_image(axes: Axes, out: jax.Array) -> None:
  """Draws where a pixel near the middle of the first quarter looks."""
  _, height, width, _, _ = out.shape
  row, column = height // 2 - 1, width // 2 - 1
  weights = out[0, row, column].mean(axis=0).reshape(height, width)
  _matrix(axes, weights, cmap="Blues", vmin=0)
  axes.add_patch(
    plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, color="crimson")
  )


def _matrix(axes: Axes, values: Any, **options) -> None:
  axes.imshow(np.asarray(values), interpolation="nearest", **options)
  axes.set(xticks=[], yticks=[])


def render(
  name: str, call: str, names: Mapping[str, Any], folder: Path
) -> Path:
  """Writes the picture `name` of `call` into `folder` and returns its path."""
  figure, axes = plt.subplots(
    figsize=(INCHES, INCHES), dpi=DOTS_PER_INCH, layout="constrained"
  )
  axes.tick_params(labelsize=6)
  draw(axes, call, names)
  path = folder / f"{name}.png"
  # No version of matplotlib in the file: the same picture is the same bytes.
  figure.savefig(path, metadata={"Software": None, "Description": call})
  plt.close(figure)
  return path


def main(argv: Sequence[str] | None = None) -> None:
  """Reads the command line and draws."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("folder", help="where the pictures go, as docs/images")
  folder = storage.path(parser.parse_args(argv).folder)
  page = PAGE.read_text()
  names = run_code(page)
  folder.mkdir(parents=True, exist_ok=True)
  for name, call in picture_calls(page).items():
    print(render(name, call, names, folder))


if __name__ == "__main__":
  plt.switch_backend("agg")
  main()
