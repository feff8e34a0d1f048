"""Neighbours, bases and harmonics against loops, SciPy and Legendre."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from models import atom_graphs
from models.spherical_harmonics import spherical_harmonics


def _directions(count):
  v = np.random.default_rng(0).standard_normal((count, 3))
  return (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32)


def test_harmonics_are_scipys():
  v = _directions(7)
  theta, phi = np.arccos(v[:, 2]), np.arctan2(v[:, 1], v[:, 0])
  for degree, made in enumerate(spherical_harmonics(v, 10)):
    assert made.shape == (7, 2 * degree + 1)
    for m in range(-degree, degree + 1):
      complex_form = special.sph_harm_y(degree, abs(m), theta, phi)
      part = complex_form.imag if m < 0 else complex_form.real
      # Real ones, without the sign of Condon and Shortley, of mean square one.
      factor = (-1) ** m * np.sqrt(4 * np.pi) * (np.sqrt(2) if m else 1)
      np.testing.assert_allclose(
        made[:, m + degree], factor * part, atol=3e-5, err_msg=f"{degree} {m}"
      )


def test_harmonics_of_no_direction_and_the_addition_theorem():
  v = np.concatenate([_directions(4), np.zeros((1, 3), np.float32)])
  slope = jax.jacobian(lambda v: jnp.concatenate(spherical_harmonics(v, 5), -1))
  assert np.isfinite(slope(jnp.zeros(3))).all()
  cosines = np.clip(v @ v.T, -1, 1).astype(np.float64)
  for degree, made in enumerate(spherical_harmonics(v, 10)):
    expected = (2 * degree + 1) * special.eval_legendre(degree, cosines)
    # What has no direction has a part of degree 0 only.
    expected[4], expected[:, 4] = degree == 0, degree == 0
    np.testing.assert_allclose(made @ made.T, expected, atol=2e-4)


@pytest.fixture(scope="module")
def found():
  """Positions of three structures, who is there, and the graph."""
  rng = np.random.default_rng(1)
  positions = 2.0 * rng.standard_normal((3, 7, 3)).astype(np.float32)
  present = np.ones((3, 7), bool)
  present[1, 5:] = False
  positions[1, 5:] = np.nan
  # Alone, and a structure of one atom.
  positions[0, 3] += 50
  present[2, 1:] = False
  graph = atom_graphs.neighbors(
    jnp.asarray(positions), jnp.asarray(present), cutoff=3.5, max_neighbors=4
  )
  return positions, present, graph


def test_neighbors_are_the_nearest(found):
  positions, present, graph = found
  assert graph.index.shape == (3, 7, 4)
  capped = 0
  for b in range(3):
    for i in range(7):
      near = []
      for j in range(7):
        r = np.linalg.norm(positions[b, i] - positions[b, j])
        if i != j and present[b, i] and present[b, j] and r <= 3.5:
          near.append((r, j))
      capped += len(near) > 4
      near = sorted(near)[:4]
      assert graph.real[b, i].tolist() == [k < len(near) for k in range(4)]
      assert graph.count[b, i] == (max(len(near), 1) if present[b, i] else 0)
      assert graph.filled[b, i].sum() == graph.count[b, i]
      for k in range(4):
        r, j = near[k] if k < len(near) else (0.0, i)
        assert graph.index[b, i, k] == j
        vector = positions[b, i] - positions[b, j] if r else np.zeros(3)
        np.testing.assert_allclose(graph.distance[b, i, k], r, rtol=1e-5)
        np.testing.assert_allclose(
          graph.direction[b, i, k], vector / (r or 1), atol=1e-6
        )
  assert capped
  cosines = atom_graphs.cosines(graph)
  np.testing.assert_allclose(
    cosines[0, 0], graph.direction[0, 0] @ graph.direction[0, 0].T, atol=1e-6
  )


def test_basis_and_orders(found):
  graph = found[2]
  basis = atom_graphs.radial_basis(graph, 3.5, 6)
  order = atom_graphs.bond_order(graph, 4)
  for b in range(3):
    for i in range(7):
      own = np.asarray(graph.direction[b, i][graph.real[b, i]], np.float64)
      for degree in range(4):
        total = special.eval_legendre(degree, own @ own.T).sum()
        expected = np.sqrt((2 * degree + 1) * max(total, 0))
        np.testing.assert_allclose(
          order[b, i, degree], expected / max(len(own), 1), atol=2e-3
        )
      for k in range(4):
        r = float(graph.distance[b, i, k])
        expected = [
          np.exp(-((r - 0.7 * n) ** 2) / (2 * 1.4**2)) for n in range(6)
        ]
        if not graph.real[b, i, k]:
          expected = np.zeros(6)
        np.testing.assert_allclose(basis[b, i, k], expected, atol=1e-6)


def test_means_and_sources(found):
  graph = found[2]
  x = np.random.default_rng(2).standard_normal((3, 7, 4, 2)).astype(np.float32)
  made, filled = graph.mean(x), np.asarray(graph.filled)
  for b in range(3):
    for i in range(7):
      own = x[b, i][filled[b, i]]
      expected = own.sum(0) / (len(own) + 1e-5)
      np.testing.assert_allclose(made[b, i], expected, rtol=1e-5)
  nodes = x[:, :, 0]
  sources = graph.of_sources(nodes)
  np.testing.assert_array_equal(
    sources[1, 2, 3], nodes[1, int(graph.index[1, 2, 3])]
  )
