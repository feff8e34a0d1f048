"""Pictures of what the functions of `interpret` find.

Each returns a matplotlib `Figure` that belongs to no window, so that it is
drawn the same on a server, and can be saved (`figure.savefig`) or shown by a
notebook. Arrays may be JAX's or NumPy's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray
# Signed numbers have white for 0.
_SIGNED = "RdBu_r"
_POSITIVE = "viridis"


def head_maps(
  weights: Array, tokens: Sequence[str] | None = None, title: str = "head {}"
) -> Any:
  """Draws the map of each head; a row is a query.

  Colours are of the square root, or a sink would hide all else.

  Args:
    weights: [heads, queries, keys], not negative.
    tokens: texts of the keys, and of the queries if they are as many.
    title: of each map, with "{}" for its number.

  Raises:
    ValueError: if a shape does not fit.
  """
  weights = _with_axes("weights", weights, ("heads", "queries", "keys"))
  columns = min(len(weights), 4)
  rows = -(-len(weights) // columns)
  figure, panels = _panels(rows, columns, 3.2)
  shown = np.sqrt(np.maximum(weights, 0))
  for i, panel in enumerate(panels.flat):
    if i >= len(weights):
      panel.axis("off")
      continue
    panel.imshow(shown[i], cmap=_POSITIVE, vmin=0)
    panel.set_title(title.format(i))
    _tokens(panel.set_xticks, tokens, weights.shape[2], rotation=90)
    if weights.shape[1] == weights.shape[2]:
      _tokens(panel.set_yticks, tokens, weights.shape[1])
  return figure


def grid(
  values: Array,
  columns: Sequence[str] | None = None,
  rows: Sequence[str] | None = None,
  *,
  title: str = "",
  signed: bool = True,
  labels: tuple[str, str] = ("layer", "position"),
) -> Any:
  """Draws numbers by layer and something else: patching, ablation, statistics.

  Args:
    values: [rows, columns].
    columns: names of the columns, as texts of tokens.
    rows: names of the rows, as of taps.
    title: above it.
    signed: whether white is zero, and red more; else dark is the least.
    labels: of the rows and of the columns.

  Raises:
    ValueError: if a shape does not fit.
  """
  values = _with_axes("values", values, ("rows", "columns"))
  size = [1.5 + 0.4 * count for count in values.shape]
  figure, panels = _panels(1, 1, 0, (size[1] + 2, size[0]))
  panel = panels[0, 0]
  style = _signed_range(values) if signed else {"cmap": _POSITIVE}
  image = panel.imshow(values, aspect="auto", **style)
  figure.colorbar(image, ax=panel)
  _tokens(panel.set_xticks, columns, values.shape[1], rotation=90)
  _tokens(panel.set_yticks, rows, values.shape[0])
  panel.set_ylabel(labels[0])
  panel.set_xlabel(labels[1])
  panel.set_title(title)
  return figure


def logit_lens(
  probabilities: Array,
  texts: Sequence[Sequence[str]],
  names: Sequence[str],
  tokens: Sequence[str] | None = None,
) -> Any:
  """Draws the most probable token after each layer, the last layer on top.

  Args:
    probabilities: [names, length], of the most probable token.
    texts: its text, as [names][length].
    names: of the states, `logit_lens.Lens.names`.
    tokens: texts of the row.

  Raises:
    ValueError: if a shape does not fit.
  """
  probabilities = _with_axes(
    "probabilities", probabilities, ("names", "length")
  )
  shape = (len(texts), *{len(row) for row in texts})
  if shape != probabilities.shape or len(names) != len(texts):
    raise ValueError(
      f"texts are {shape} and names {len(names)}; for probabilities "
      f"{probabilities.shape} they must be as many"
    )
  layers, length = probabilities.shape
  figure, panels = _panels(1, 1, 0, (2 + 0.6 * length, 1 + 0.4 * layers))
  panel = panels[0, 0]
  image = panel.imshow(
    probabilities, cmap=_POSITIVE, vmin=0, vmax=1, aspect="auto", origin="lower"
  )
  figure.colorbar(image, ax=panel, label="probability")
  for layer in range(layers):
    for place in range(length):
      bright = probabilities[layer, place] > 0.6
      panel.text(
        place,
        layer,
        _plain(texts[layer][place]),
        ha="center",
        va="center",
        size=7,
        color="black" if bright else "white",
        family="monospace",
      )
  _tokens(panel.set_xticks, tokens, length, rotation=90)
  _tokens(panel.set_yticks, names, layers)
  return figure


def rollout(
  shares: Array, tokens: Sequence[str] | None = None, query: int = -1
) -> Any:
  """Draws what a token is made of after each layer, on the tokens of its row.

  Args:
    shares: [layers, tokens, tokens], of one row of `rollout.rollout`.
    tokens: texts.
    query: the place of the token.

  Raises:
    ValueError: if a shape does not fit.
  """
  shares = _with_axes("shares", shares, ("layers", "queries", "tokens"))
  return grid(
    shares[:, query],
    tokens,
    title=f"what token {query} is made of",
    signed=False,
    labels=("layer", "token"),
  )


def attribution_bars(
  parts: Mapping[str, Array], *, count: int = 20, title: str = ""
) -> Any:
  """Draws what parts gave to a logit, the largest first.

  Args:
    parts: by name, one number each, or one for each head [heads].
    count: how many are drawn one by one; the others are summed.
    title: above it; the sum of all parts if empty.

  Raises:
    ValueError: if a part has more axes: choose a row and a position first.
  """
  bars = {}
  for name, value in parts.items():
    value = np.asarray(value, np.float64)
    if value.ndim > 1:
      raise ValueError(
        f"parts[{name!r}] has shape {value.shape}; it must be one number, or "
        "[heads], of one row and position"
      )
    each = {name: value} if value.ndim == 0 else dict(enumerate(value))
    bars |= {
      name if value.ndim == 0 else f"{name}/{i}": float(x)
      for i, x in each.items()
    }
  ordered = sorted(bars.items(), key=lambda bar: -abs(bar[1]))
  shown, rest = ordered[:count], ordered[count:]
  if rest:
    shown.append((f"{len(rest)} others", sum(x for _, x in rest)))
  names, values = zip(*shown, strict=True)
  figure, panels = _panels(1, 1, 0, (7, 1 + 0.25 * len(shown)))
  panel = panels[0, 0]
  colours = ["tab:red" if x > 0 else "tab:blue" for x in values]
  panel.barh(range(len(values)), values, color=colours)
  panel.set_yticks(range(len(names)), names, size=7)
  panel.invert_yaxis()
  panel.axvline(0, color="black", linewidth=0.8)
  panel.set_title(title or f"sum {sum(bars.values()):.3f}")
  return figure


def token_attribution(
  values: Array, tokens: Sequence[str], title: str = ""
) -> Any:
  """Draws a signed number for each token, as gradient times input.

  Args:
    values: [length].
    tokens: texts.
    title: above it.

  Raises:
    ValueError: if a shape does not fit.
  """
  values = _with_axes("values", values, ("length",))
  figure, panels = _panels(1, 1, 0, (2 + 0.3 * len(values), 2.5))
  panel = panels[0, 0]
  colours = ["tab:red" if x > 0 else "tab:blue" for x in values]
  panel.bar(range(len(values)), values, color=colours)
  panel.axhline(0, color="black", linewidth=0.8)
  _tokens(panel.set_xticks, tokens, len(values))
  panel.set_title(title)
  return figure


def statistics(
  measures: Mapping[str, Array], rows: Sequence[str] | None = None
) -> Any:
  """Draws statistics by layer and head, or by layer, side by side.

  Args:
    measures: by name, [layers, heads], or [layers] as of hidden states.
    rows: names of the layers.

  Raises:
    ValueError: if a shape does not fit.
  """
  figure, panels = _panels(1, len(measures), 3)
  for panel, (name, values) in zip(panels[0], measures.items(), strict=True):
    values = np.asarray(values, np.float64)
    if values.ndim == 1:
      panel.barh(range(len(values)), values)
      panel.invert_yaxis()
    else:
      values = _with_axes(name, values, ("layers", "heads"))
      image = panel.imshow(values, cmap=_POSITIVE, aspect="auto")
      figure.colorbar(image, ax=panel)
      panel.set_xlabel("head")
    _tokens(panel.set_yticks, rows, len(values))
    panel.set_ylabel("layer")
    panel.set_title(name)
  return figure


def _panels(
  rows: int, columns: int, side: float, size: tuple[float, float] | None = None
) -> tuple[Any, np.ndarray]:
  """A figure and its panels [rows, columns], square ones of `side` inches."""
  # Whoever draws nothing does not wait for it.
  from matplotlib.figure import Figure

  size = size or (columns * (side + 0.6), rows * side)
  figure = Figure(figsize=size, layout="constrained")
  return figure, figure.subplots(rows, columns, squeeze=False)


def _with_axes(name: str, values: Array, axes: tuple[str, ...]) -> np.ndarray:
  values = np.asarray(values, np.float64)
  if values.ndim != len(axes):
    raise ValueError(
      f"{name} has shape {values.shape}; it must be [{', '.join(axes)}]"
    )
  return values


def _signed_range(values: np.ndarray) -> dict[str, Any]:
  largest = float(np.abs(values[np.isfinite(values)]).max(initial=0)) or 1.0
  return {"cmap": _SIGNED, "vmin": -largest, "vmax": largest}


def _tokens(ticks, texts, count: int, **style) -> None:
  """Names the places of an axis, or numbers them if they are few."""
  if texts is None:
    if count <= 20:
      ticks(range(count))
    return
  if len(texts) != count:
    raise ValueError(
      f"there are {len(texts)} texts for {count} places of an axis"
    )
  labels = [_plain(text) for text in texts]
  if max(map(len, labels), default=0) < 3:
    style = {}
  size = min(7, 300 / count)
  ticks(range(count), labels, size=size, family="monospace", **style)


def _plain(text: str) -> str:
  """A text that shows its spaces, and in which "$" begins no formula."""
  for before, after in ((" ", "·"), ("\n", "↵"), ("\t", "→"), ("$", r"\$")):
    text = text.replace(before, after)
  return text
