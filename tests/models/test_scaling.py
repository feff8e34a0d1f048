"""The entropy scale of every attend, by the keys that each query sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import pyramid
from models import attends, taps
from models.attends import Layout
from models.attends.inward_window import window_mask
from models.attends.naive import naive_mask
from models.attends.radial import radial_mask
from models.attends.reshaped_window import window
from models.attends.scale_dit import scale_dit_mask
from tests.models.bare_attend import DIM, Bare, attended, drawn, run

VIDEO, TRAINED = (4, 3, 2), (2, 3, 2)
TEXT = 3
_RADIAL = {"decay": 0.3, "block_size": 2, "dense_width": 2}
_NAIVE = {"kind": "random", "density": 0.3, "block_size": 2, "seed": 0}
_WIDE = (5, 7)
# Name: grid, that of training, text, attend, options, its mask of the layout.
CASES = {
  "full": (VIDEO, TRAINED, TEXT, "full", {}, None),
  "radial": (
    VIDEO,
    TRAINED,
    TEXT,
    "radial",
    _RADIAL,
    lambda layout: radial_mask(layout, sink=True, **_RADIAL),
  ),
  "naive": (
    VIDEO,
    TRAINED,
    TEXT,
    "naive",
    _NAIVE,
    lambda layout: naive_mask(layout, **_NAIVE),
  ),
  "windows": (
    _WIDE,
    (3, 2),
    0,
    "inward_window",
    {"inward": False},
    lambda layout: window_mask(layout, False),
  ),
  "no windows": (_WIDE, (3, 2), 0, "inward_window", {"windowed": False}, None),
  "Scale-DiT": (
    (8, 4),
    (4, 2),
    TEXT,
    "scale_dit",
    {"window": 2},
    lambda layout: scale_dit_mask(layout, 2, 0, "high"),
  ),
  "a window, full": (
    _WIDE,
    (3, 2),
    TEXT,
    "reshaped_window",
    {"step": "store", "keep": 0.4},
    None,
  ),
  "a window alone": (
    _WIDE,
    (3, 2),
    TEXT,
    "reshaped_window",
    {"step": "window", "keep": 0.4},
    lambda layout: window(layout, 0.4),
  ),
}


def _scale(seen, layout):
  """sqrt(ln N / ln T / dim), of one key as of two."""
  trained = np.prod(layout.trained_grid) + layout.text
  seen = np.maximum(seen, 2)
  return np.sqrt(np.log(seen) / np.log(trained) / DIM)


def _case(name):
  grid, trained, text, attend, options, mask = CASES[name]
  layout = Layout(grid, trained, text)
  tokens = layout.places + text
  visible = np.ones((tokens, tokens), bool)
  if mask is not None:
    visible = np.asarray(mask(layout).dense(tokens, tokens))[0, 0]
    assert len(set(visible.sum(-1).tolist())) > 1
  scale = _scale(visible.sum(-1), layout)[:, None]
  options = {**options, "scale_by": "entropy"}
  return attend, options, layout, visible, scale


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name):
  attend, options, layout, visible, scale = _case(name)
  arrays = drawn(len(visible))
  rng = np.random.default_rng(1)
  bar = rng.standard_normal(arrays[2].shape)
  module = Bare(attend, layout, options)

  def loss(arrays):
    out, _ = module.apply({}, *arrays, mutable=[attends.STATE])
    return jnp.sum(out * bar), out

  @jax.jit
  def run(arrays):
    return jax.value_and_grad(loss, has_aux=True)(arrays)

  (_, out), gradients = run(tuple(map(jnp.asarray, arrays)))
  exact = attended(*arrays, visible, scale)
  np.testing.assert_allclose(out, exact, atol=1e-5)
  plain = attended(*arrays, visible)
  assert np.abs(exact - plain).max() > 1e-2
  # Along a direction, of each array by itself, by differences in float64.
  for n, gradient in enumerate(gradients):
    direction = rng.standard_normal(arrays[n].shape)
    ends = []
    for step in (-1e-5, 1e-5):
      moved = [x.astype(float) for x in arrays]
      moved[n] = moved[n] + step * direction
      ends.append((attended(*moved, visible, scale) * bar).sum())
    np.testing.assert_allclose(
      np.sum(gradient * direction), (ends[1] - ends[0]) / 2e-5, rtol=1e-3
    )
  half = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
  out, _ = module.apply({}, *half, mutable=[attends.STATE])
  assert out.dtype == jnp.bfloat16
  rounded = (np.asarray(x, np.float32) for x in half)
  np.testing.assert_allclose(
    np.asarray(out, np.float32),
    attended(*rounded, visible, scale),
    atol=0.03,
  )


@pytest.mark.parametrize("text", [0, TEXT])
def test_means_are_as_many_keys_as_they_are_of(text):
  layout = Layout((2, 4, 6), (1, 4, 6), text)
  q, k, v = map(jnp.asarray, drawn(48 + text))
  blocks = {"block_q": 8, "block_k": 8}
  options = {**blocks, "bounds": (0.1, 0.2, 0.3, 0.4), "scale_by": "entropy"}
  module = Bare("pyramid", layout, options)
  out, found = taps.read(module, {}, q, k, v, names=["levels"])
  (levels,) = found.values()
  tokens = 48 + text
  ends = np.minimum(8 * np.arange(1, levels.shape[-1] + 1), tokens)
  sizes = np.diff(ends, prepend=0)
  seen = ((np.asarray(levels) > 0) @ sizes).repeat(8, -1)[..., :tokens]
  assert len(np.unique(seen)) >= 1 + (text > 0)
  scale = jnp.asarray(_scale(seen, layout), jnp.float32)
  expected = pyramid.pyramid_attention(q, k, v, levels, **blocks, scale=scale)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_a_corrected_window_is_scaled_as_full_attention():
  attend, options, layout, visible, scale = _case("a window, full")
  arrays = drawn(len(visible))
  _, state = run(attend, arrays, layout, **options)
  options |= {"step": "sparse", "ramp": 0.0}
  out, _ = run(attend, arrays, layout, state, **options)
  # What was stored is of the same queries and keys.
  np.testing.assert_allclose(out, attended(*arrays, visible, scale), atol=1e-5)


@pytest.mark.parametrize("name", ["full", "no windows", "a window, full"])
def test_no_bit_changes_at_the_size_of_training(name):
  grid, _, text, attend, options, _ = CASES[name]
  layout = Layout(grid, grid, text)
  arrays = drawn(layout.places + text)
  first, second = (
    run(attend, arrays, layout, **options, scale_by=scale_by)[0]
    for scale_by in ("constant", "entropy")
  )
  np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("sides", [((1, 1), (2, 2)), ((2, 2), (1, 1))])
def test_one_token_counts_as_two(sides):
  """Now or in training; the sheet's guard, as ln 1 is 0."""
  now, trained = sides
  layout = Layout(now, trained)
  arrays = drawn(layout.places)
  out, _ = run("full", arrays, layout, scale_by="entropy")
  scale = np.sqrt(
    np.log(max(layout.places, 2)) / np.log(max(np.prod(trained), 2)) / DIM
  )
  np.testing.assert_allclose(out, attended(*arrays, True, scale), atol=1e-5)


def test_the_keys_of_a_text_are_as_many_as_they_were():
  layout = Layout((4, 4), (2, 2), 5)
  (q, _, _), (_, k, v) = drawn(16), drawn(5)
  out, _ = run("full", (q, k, v), layout, scale_by="entropy")
  np.testing.assert_allclose(out, attended(q, k, v, True), atol=1e-5)


@pytest.mark.parametrize("name", attends.ATTENDS)
def test_every_attend_takes_it_or_says_why_not(name):
  reasons = {
    "flow": "is linear in the keys and has no scores; those that take it are",
    "kept": "its keys are a text's",
    "regional": "its keys are a text's",
  }
  if name in reasons:
    with pytest.raises(
      ValueError, match=f"attend is '{name}', .* {reasons[name]}"
    ):
      attends.check("attend", name, {"scale_by": "entropy"})
    return
  attends.check("attend", name, {"scale_by": "entropy"})
  grid = (16, 16) if name == "scale_dit" else (2, 8, 16)
  with pytest.raises(ValueError, match="no scale_by 'tokens'"):
    run(name, drawn(256), Layout(grid, grid), scale_by="tokens")
