"""Masked attends against NumPy, with masks that the test makes itself."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import positions
from models.attends import Layout
from models.attends.naive import naive_mask
from models.attends.radial import radial_mask
from tests.attention.test_group_masks import _visible
from tests.models.bare_attend import (
  BATCH,
  DIM,
  HEADS,
  Bare,
  attended,
  drawn,
  run,
)


def _radial(frames, tokens, text, decay, block):
  """Frames of whole blocks, by the bands of fact sheet's section 3.2."""
  side = tokens // block
  n = frames * side
  seen = np.zeros((n, n), bool)
  for (i, a), (j, b) in itertools.product(
    itertools.product(range(frames), range(side)), repeat=2
  ):
    d = abs(i - j)
    width = 2 ** len(f"{tokens:b}") / 2 ** len(f"{d:b}")
    half = max(width * decay, block)
    if d <= 1 or j == 0:
      seen[i * side + a, j * side + b] = True
      continue
    if width < block and d % int(block / width):
      continue
    places = np.arange(tokens)
    near = np.abs(places[:, None] - places[None, :]) <= half
    part = near[a * block :, b * block :][:block, :block]
    share = part.mean(axis=0)
    share = share[share > 0]
    seen[i * side + a, j * side + b] = (
      share.size > 0 and np.mean(share > 1 / 3) > 0.6
    )
  seen = seen.repeat(block, 0).repeat(block, 1)
  return np.pad(seen, (0, text), constant_values=True)


@pytest.mark.parametrize("text", [0, 3])
@pytest.mark.parametrize("decay", [1.0, 0.3])
def test_radial(text, decay):
  layout = Layout((8, 4, 4), (8, 4, 4), text)
  visible = _radial(8, 16, text, decay, 4)
  assert 0.3 < visible.mean() < 0.9
  arrays = drawn(128 + text)
  out, _ = run(
    "radial", arrays, layout, decay=decay, block_size=4, dense_width=4
  )
  np.testing.assert_allclose(out, attended(*arrays, visible), atol=1e-5)


def test_another_resolution_is_another_mask():
  """Trap 8 of the fact sheet: the released code keeps the first for ever."""
  tables = [
    radial_mask(Layout(grid, (8, 4, 4)), 1.0, True, 4, 4).table.shape[-1]
    for grid in ((8, 4, 4), (8, 8, 8), (4, 4, 4))
  ]
  assert tables == [32, 128, 16]


@pytest.mark.parametrize("inward", [True, False])
@pytest.mark.parametrize("scale_by", ["twice", "constant"])
def test_inward_window(inward, scale_by):
  layout = Layout((2, 7, 6), (2, 4, 2))
  place = np.stack(np.unravel_index(np.arange(84), (2, 7, 6)))[1:]
  visible = True
  for along, side, radius in zip(place, (7, 6), (2, 1), strict=True):
    first = along - radius
    if inward:
      first = np.clip(first, 0, side - 2 * radius - 1)
    apart = along[None, :] - first[:, None]
    within = (apart >= 0) & (apart <= 2 * radius)
    if not inward:
      within = np.abs(along[None, :] - along[:, None]) <= radius
    visible = visible & within
  if inward:
    assert (visible.sum(axis=1) == 2 * 5 * 3).all()
  # T = 8 places of a trained frame.
  scale = DIM**-0.5
  if scale_by == "twice":
    scale *= np.sqrt(np.log(16) / np.log(8))
  arrays = drawn(84)
  options = {"inward": inward, "scale_by": scale_by}
  out, _ = run("inward_window", arrays, layout, **options)
  np.testing.assert_allclose(out, attended(*arrays, visible, scale), atol=1e-5)
  out, _ = run("inward_window", arrays, layout, windowed=False, **options)
  np.testing.assert_allclose(out, attended(*arrays, True, scale), atol=1e-5)


def test_published_temperature():
  """The factor of 1560 places a frame, section 3.2 of the fact sheet."""
  q, k, v = drawn(6)
  layout = Layout((1, 2, 3), (21, 30, 52))
  out, _ = run("inward_window", (q, k, v), layout)
  expected = attended(q, k, v, True, 1.0461 * DIM**-0.5)
  np.testing.assert_allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize("text", [0, 3])
def test_scale_dit_is_one_sequence_of_three_groups(text):
  """Low by itself, then high with its keys: rows of [text, high, low]."""
  high, low, window = (8, 12), (4, 6), 4
  h, n = 8 * 12, 4 * 6
  visible = _visible(text, high, low, window)
  # In a layout the text comes after the grid.
  to_sheet = np.r_[text : text + h, :text, text + h : text + h + n]
  visible = visible[np.ix_(to_sheet, to_sheet)]
  arrays = drawn(h + text + n)
  expected = attended(*arrays, visible)
  options = {"window": window, "scale": 2, "rotary_base": 100.0}
  of_low = [x[:, np.r_[h + text : h + text + n, h : h + text]] for x in arrays]
  # Keys come turned once, to be turned once more.
  turned = [*(_back(x, low, n) for x in of_low[:2]), of_low[2]]
  out, state = run(
    "scale_dit", turned, Layout(low, high, text), role="low", **options
  )
  np.testing.assert_allclose(out[:, :n], expected[:, h + text :], atol=1e-5)
  of_high = [x[:, : h + text] for x in arrays]
  out, _ = run("scale_dit", of_high, Layout(high, low, text), state, **options)
  np.testing.assert_allclose(out, expected[:, : h + text], atol=1e-5)


def _back(x, grid, places):
  """Undoes a turn by the places of a grid, of pairs in two halves."""
  angles = np.zeros((x.shape[1], x.shape[-1] // 2))
  place = np.stack(np.unravel_index(np.arange(places), grid), axis=1)
  angles[:places] = place
  cos, sin = (f(-angles)[None, :, None] for f in (np.cos, np.sin))
  first, second = np.split(x, 2, axis=-1)
  return np.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )


def test_low_stands_on_a_stretched_grid():
  """Its keys are those of every third place of a grid three times as large."""
  q, k, v = drawn(4 * 2)
  rotate = lambda x, grid: positions.rotate_grid(
    jnp.asarray(x), grid, base=50.0
  )
  _, state = run(
    "scale_dit",
    (rotate(q, (4, 2)), rotate(k, (4, 2)), v),
    Layout((4, 2), (4, 2)),
    role="low",
    window=6,
    scale=3,
    rotary_base=50.0,
  )
  large = np.zeros((BATCH, 12, 6, HEADS, DIM), np.float32)
  large[:, ::3, ::3] = k.reshape(BATCH, 4, 2, HEADS, DIM)
  turned = rotate(large.reshape(BATCH, 72, HEADS, DIM), (12, 6))
  turned = np.asarray(turned).reshape(BATCH, 12, 6, HEADS, DIM)[:, ::3, ::3]
  np.testing.assert_allclose(
    state["low_key"], turned.reshape(k.shape), atol=1e-5
  )
  np.testing.assert_array_equal(state["low_value"], v)


@pytest.mark.parametrize("kind", ["random", "band"])
@pytest.mark.parametrize("text", [0, 3])
def test_naive_masks_have_their_density(kind, text):
  layout = Layout((4, 4, 4), (4, 4, 4), text)
  mask = naive_mask(layout, kind, 0.3, 4, 0)
  n = 64 + text
  visible = np.asarray(mask.dense(n, n))[0, 0]
  assert (visible[:64, :64].sum(axis=1) == 4 * 5).all()
  assert visible[np.arange(n), np.arange(n)].all()
  assert visible[64:].all()
  assert visible[:, 64:].all()
  arrays = drawn(n)
  out, _ = run("naive", arrays, layout, kind=kind, density=0.3, block_size=4)
  np.testing.assert_allclose(out, attended(*arrays, visible), atol=1e-5)
  if kind == "random":
    other = naive_mask(layout, kind, 0.3, 4, 1)
    assert (other.table != mask.table).any()


def test_a_block_of_places_and_text_is_visible():
  layout = Layout((4, 4, 4), (4, 4, 4), 3)
  table = naive_mask(layout, "band", 0.3, 5, 0).table[0, 0]
  assert table.shape == (14, 14)
  # Block 12 has the last 4 places and a token of text.
  assert table[12:].all()
  assert table[:, 12:].all()
  assert (table[:12, :12].sum(axis=1) <= 4).all()


def test_what_is_kept_is_taken():
  layout = Layout((2, 3), (2, 3), 4)
  q, k, v = drawn(6)
  k, v = k[:, :4], v[:, :4]
  expected = attended(q, k, v, True)
  out, state = run("kept", (q, k, v), layout, write=True)
  np.testing.assert_allclose(out, expected, atol=1e-5)
  others = drawn(6, seed=1)[0], k, v
  out, after = run("kept", others, layout, state)
  np.testing.assert_allclose(out, expected, atol=1e-5)
  np.testing.assert_array_equal(after["kept"], state["kept"])
  out, _ = run("kept", others, layout, state, first_half=True)
  np.testing.assert_allclose(out[:1], expected[:1], atol=1e-5)
  np.testing.assert_allclose(out[1:], attended(*others, True)[1:], atol=1e-5)


@pytest.mark.parametrize(
  ("attend", "grid", "text", "options", "message"),
  [
    ("radial", (4, 4), 0, {}, r"grid of tokens is \(4, 4\)"),
    ("radial", (2, 4, 4), 0, {}, "block_size is 128; a frame has 16 tokens"),
    ("radial", (2, 4, 4), 0, {"block_size": 0}, "block_size is 0"),
    ("inward_window", (4,), 0, {}, r"\(4,\) with 0 of text"),
    ("inward_window", (4, 4), 2, {}, r"\(4, 4\) with 2 of text"),
    ("scale_dit", (4, 4), 0, {"window": 3}, "window is 3"),
    ("scale_dit", (4, 4), 0, {"window": 2, "scale": 3}, "scale is 3"),
    ("scale_dit", (4, 4), 0, {"window": 2, "scale": 2}, "no keys of a small"),
    ("scale_dit", (4, 4), 0, {"role": "middle"}, "role of scale_dit 'middle'"),
    ("scale_dit", (2, 4, 4), 0, {}, r"is \(2, 4, 4\)"),
    ("scale_dit", (4, 4), 0, {"role": "low", "window": 2}, "scale is 0"),
    ("naive", (4, 4), 0, {"density": 0.03}, r"from 0.0625 to 1, or a row is"),
    ("naive", (4, 4), 0, {"density": 1.2}, "density is 1.2"),
    ("naive", (4, 4), 0, {"density": np.nan}, "density is nan; .* finite"),
    ("naive", (4, 4), 0, {"density": "half"}, "density is 'half'"),
    ("naive", (4, 4), 0, {"density": True}, "density is True"),
    ("naive", (4, 4), 0, {"block_size": True}, "block_size is True"),
    ("naive", (4, 4), 0, {"seed": -1}, "seed is -1; it must be at least 0"),
    ("naive", (4, 4), 0, {"kind": 2}, "kind of naive attention 2"),
    ("radial", (2, 4, 4), 0, {"block_size": 2.0}, "block_size is 2.0"),
    ("inward_window", (4, 4), 0, {"windowed": "no"}, "windowed is 'no'"),
    ("scale_dit", (4, 4), 0, {"scale": -2}, "scale is -2; .* at least 0"),
    ("scale_dit", (4, 4), 0, {"window": 2.0}, "window is 2.0"),
    ("reshaped_window", (4, 4), 0, {"ramp": np.nan}, "ramp is nan"),
    ("kept", (4, 4), 0, {"write": "no"}, "write is 'no'"),
    ("flow", (4, 4), 0, {"clip": False}, "clip is False"),
    ("naive", (4, 4), 0, {"kind": "bund"}, "did you mean band"),
    ("kept", (4, 4), 0, {}, "nothing was written"),
  ],
)
def test_errors(attend, grid, text, options, message):
  layout = Layout(grid, grid, text)
  # A mask of 1, which is True, may be there already.
  naive_mask(layout, "random", 0.5, 1, 0)
  with pytest.raises(ValueError, match=message):
    run(attend, drawn(layout.places + text), layout, **options)


def test_state_of_another_size_is_an_error():
  arrays = drawn(16)
  layout = Layout((4, 4), (4, 4))
  _, state = run("kept", arrays, layout, write=True)
  with pytest.raises(ValueError, match="batch and size of the samples"):
    run("kept", drawn(9), Layout((3, 3), (4, 4)), state)
  options = {"window": 2, "scale": 2}
  _, state = run("scale_dit", arrays, layout, role="low", **options)
  with pytest.raises(ValueError, match="keys of the small image have shape"):
    run("scale_dit", drawn(16), layout, state, **options)


def test_gradients():
  """A model may be trained with any of them, as Radial's LoRA is."""
  layout = Layout((4, 2, 2), (4, 2, 2))
  q, k, v = map(jnp.asarray, drawn(16))
  visible = _radial(4, 4, 0, 0.3, 2)

  def loss(attend):
    return lambda *arrays: jnp.sum(attend(*arrays) ** 2)

  def dense(q, k, v):
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * DIM**-0.5
    weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)

  options = {"decay": 0.3, "block_size": 2, "dense_width": 2}
  module = Bare("radial", layout, options)
  got = jax.grad(loss(lambda *x: module.apply({}, *x)), (0, 1, 2))
  want = jax.grad(loss(dense), (0, 1, 2))
  for a, b in zip(got(q, k, v), want(q, k, v), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
