"""Rotary positions and their scalings, against what papers say of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import positions


def test_rotary_scores_depend_on_the_distance_alone():
  rng = np.random.default_rng(0)
  q, k = rng.standard_normal((2, 1, 1, 1, 8)).astype(np.float32)
  rotary = {"base": 50.0, "fraction": 0.75}

  def score(i, j):
    turned = (
      positions.rotate(x, jnp.full((1, 1), place), rotary)
      for x, place in ((q, i), (k, j))
    )
    return float(
      sum(x * y for x, y in zip(*map(np.ravel, turned), strict=True))
    )

  assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
  assert score(7, 3) != pytest.approx(score(7, 2), abs=1e-2)
  # Pair p turns by position * base^(-p / pairs); here 6 channels are 3 pairs.
  frequencies, factor = positions.rotary_frequencies(8, rotary)
  np.testing.assert_allclose(frequencies, 50.0 ** -(np.arange(3) / 3), 1e-6)
  assert factor == 1.0


def test_scalings_keep_fast_pairs_and_slow_down_slow_ones():
  plain, _ = positions.rotary_frequencies(64, {"base": 1e4})
  options = {"factor": 8.0, "original_length": 512}
  turns = 512 * plain / (2 * np.pi)
  for kind, fast, slow in (("llama3", 4, 1), ("yarn", 64, 0.5)):
    scaled, factor = positions.rotary_frequencies(
      64, {"base": 1e4, "scaling": {"type": kind, **options}}
    )
    np.testing.assert_allclose(scaled[turns > fast], plain[turns > fast], 1e-6)
    np.testing.assert_allclose(
      scaled[turns < slow], plain[turns < slow] / 8, 1e-6
    )
    between = (turns < fast) & (turns > slow)
    assert between.any()
    assert (scaled <= plain)[between].all()
    assert (scaled >= plain / 8)[between].all()
    expected = 0.1 * np.log(8) + 1 if kind == "yarn" else 1.0
    assert factor == pytest.approx(expected)
  scaling = {"type": "linear", "factor": 3.0}
  rotary = {"base": 1e4, "scaling": scaling, "local_base": 100.0}
  scaled, _ = positions.rotary_frequencies(64, rotary)
  np.testing.assert_allclose(scaled, plain / 3, 1e-6)
  local, _ = positions.rotary_frequencies(64, rotary, local=True)
  np.testing.assert_allclose(local, 100.0 ** -(np.arange(32) / 32), 1e-6)


@pytest.mark.parametrize("grid", [(5,), (3, 4), (2, 3, 5)])
def test_a_grid_turns_each_axis_by_its_place(grid):
  axes, dim, base = len(grid), 14, 30.0
  places = int(np.prod(grid))
  x = jax.random.normal(jax.random.key(0), (2, places + 2, 3, dim))
  turned = positions.rotate_grid(x, grid, base=base)
  # Seven pairs; the last axes have one more.
  shares = {1: [7], 2: [3, 4], 3: [2, 2, 3]}[axes]
  pairs = np.asarray(x, np.float64)
  pairs = pairs[..., : dim // 2] + 1j * pairs[..., dim // 2 :]
  for token, place in enumerate(np.ndindex(*grid)):
    angle = np.concatenate(
      [
        p * base ** -(np.arange(n) / n)
        for p, n in zip(place, shares, strict=True)
      ]
    )
    pairs[:, token] *= np.exp(1j * angle)
  wanted = np.concatenate([pairs.real, pairs.imag], -1)
  np.testing.assert_allclose(turned, wanted, atol=1e-5)
  # What has no place stays as it is.
  np.testing.assert_array_equal(turned[:, places:], x[:, places:])
  if axes == 1:
    along = positions.rotate(
      x[:, :places], jnp.arange(places)[None], {"base": base}
    )
    np.testing.assert_allclose(turned[:, :places], along, atol=1e-6)


def test_the_table_of_a_grid():
  # Frame 1, row 2, column 3; of five pairs the frame has one.
  table = positions.sincos_grid((2, 3, 4), 10)
  f = np.array([1, 0.01])
  parts = [np.sin(3 * f), np.cos(3 * f), np.sin(2 * f), np.cos(2 * f)]
  wanted = np.concatenate([*parts, [np.sin(1), np.cos(1)]])
  np.testing.assert_allclose(table[-1], wanted, atol=1e-6)


def test_grids_that_channels_do_not_fit():
  x = jnp.zeros((1, 6, 1, 4))
  with pytest.raises(ValueError, match=r"head_dim is 4; .* 3 axes .* from 6"):
    positions.rotate_grid(x, (1, 2, 3))
  with pytest.raises(ValueError, match=r"x has 6 tokens; a grid of \(3, 3\)"):
    positions.rotate_grid(x, (3, 3))
  with pytest.raises(ValueError, match=r"width is 9; .* 2 axes"):
    positions.sincos_grid((2, 3), 9)
