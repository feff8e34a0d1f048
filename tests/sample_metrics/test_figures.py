"""FID, Inception Score, precision and recall, against other statements."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from sample_metrics import (
  Moments,
  frechet_distance,
  inception_score,
  precision_recall,
)
from tests import parity_helper
from tools import torch_imports


def _features(seed, count, size, rank=None):
  """Correlated rows whose mean is not zero."""
  rng = np.random.default_rng(seed)
  rank = size if rank is None else rank
  mixing = rng.normal(size=(rank, size))
  return rng.normal(size=(count, rank)) @ mixing + rng.normal(size=size)


def _moments(rows):
  return rows.mean(0), np.cov(rows, rowvar=False)


def _fidelity():
  return parity_helper.or_skip(torch_imports.import_fidelity)


# Fewer rows than features, and features that lie in a plane, are singular.
@pytest.mark.parametrize(
  ("count", "size", "rank"), [(300, 40, 40), (30, 40, 40), (300, 40, 7)]
)
@pytest.mark.parity
def test_frechet_distance_is_that_of_fidelity(count, size, rank):
  _fidelity()
  from torch_fidelity import metric_fid

  a, b = _features(0, count, size, rank), _features(1, count + 7, size)
  statistics = [
    dict(zip(("mu", "sigma"), _moments(rows), strict=True)) for rows in (a, b)
  ]
  theirs = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
  ours = frechet_distance(*_moments(a), *_moments(b))
  np.testing.assert_allclose(ours, *theirs.values(), rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_frechet_distance_by_the_root_of_the_product(seed):
  a, b = _features(seed, 90, 17), _features(seed + 9, 120, 17)
  (mean_a, cov_a), (mean_b, cov_b) = _moments(a), _moments(b)
  root = scipy.linalg.sqrtm(cov_a @ cov_b)
  expected = ((mean_a - mean_b) ** 2).sum() + np.trace(
    cov_a + cov_b - 2 * root.real
  )
  ours = frechet_distance(mean_a, cov_a, mean_b, cov_b)
  np.testing.assert_allclose(ours, expected, rtol=1e-8)


def test_frechet_distance_of_singular_covariances_in_closed_form():
  # Of rank one, u u^T and v v^T: the root's trace is |u v|.
  rng = np.random.default_rng(0)
  u, v = rng.normal(size=(2, 50))
  zero = np.zeros(50)
  ours = frechet_distance(zero, np.outer(u, u), zero, np.outer(v, v))
  expected = u @ u + v @ v - 2 * abs(u @ v)
  np.testing.assert_allclose(ours, expected, rtol=1e-12)
  assert frechet_distance(u, np.zeros((50, 50)), u, np.outer(v, v)) == (
    pytest.approx(v @ v)
  )
  # What rounding leaves of 49 zeros must not meet the identity as its root.
  ours = frechet_distance(zero, np.outer(u, u), zero, np.eye(50))
  expected = u @ u + 50 - 2 * np.sqrt(u @ u)
  np.testing.assert_allclose(ours, expected, rtol=1e-12)
  cov = np.outer(u, u)
  assert frechet_distance(v, cov, v, cov) < 1e-12


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("covariance_2", np.eye(4)),
    ("mean_2", np.zeros(4)),
    ("covariance_1", np.full((3, 3), np.nan)),
  ],
)
def test_frechet_distance_refuses(name, value):
  given = {
    "mean_1": np.zeros(3),
    "covariance_1": np.eye(3),
    "mean_2": np.zeros(3),
    "covariance_2": np.eye(3),
  }
  with pytest.raises(ValueError, match=f"{name} is .* must be"):
    frechet_distance(**{**given, name: value})


@settings(max_examples=25)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(0, 99))
def test_moments_of_batches_are_those_of_the_whole(sizes, seed):
  # A mean a million deviations away would cancel in a sum of squares.
  rows = _features(seed, sum(sizes) + 2, 5) + 1e6
  moments = Moments()
  for part in np.split(rows, np.cumsum(sizes)):
    moments.update(part)
  assert moments.count == len(rows)
  np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-14)
  np.testing.assert_allclose(
    moments.covariance, np.cov(rows, rowvar=False), rtol=1e-6, atol=1e-8
  )


def test_moments_refuse():
  moments = Moments()
  with pytest.raises(ValueError, match="needs two rows, not 0"):
    _ = moments.covariance
  moments.update(np.ones((1, 3), np.float32))
  with pytest.raises(ValueError, match=r"rows are \[2, 4\].* \[n, 3\]"):
    moments.update(np.ones((2, 4)))
  with pytest.raises(ValueError, match="must be finite"):
    moments.update(np.full((2, 3), np.nan))


@pytest.mark.parametrize(("count", "splits"), [(100, 10), (103, 10), (57, 4)])
@pytest.mark.parity
def test_inception_score_is_that_of_fidelity(count, splits):
  torch, _ = _fidelity()
  from torch_fidelity import metric_isc

  logits = 3 * np.random.default_rng(0).normal(size=(count, 13))
  theirs = metric_isc.isc_features_to_metric(
    torch.from_numpy(logits), splits=splits, shuffle=False
  )
  ours = inception_score(logits, splits=splits, seed=None)
  np.testing.assert_allclose(ours, list(theirs.values()), rtol=1e-9)


def test_inception_score_by_loops():
  logits = np.random.default_rng(1).normal(size=(21, 4))
  scores = []
  for part in (logits[:10], logits[10:]):
    p = [np.exp(row) / np.exp(row).sum() for row in part]
    q = sum(p) / len(p)
    kl = [
      sum(a * np.log(a / b) for a, b in zip(row, q, strict=True)) for row in p
    ]
    scores.append(np.exp(sum(kl) / len(kl)))
  ours = inception_score(logits, splits=2, seed=None)
  np.testing.assert_allclose(
    ours, (np.mean(scores), np.std(scores)), rtol=1e-12
  )


def test_inception_score_has_its_bounds():
  sure = 1e3 * np.eye(5).repeat(40, 0)
  # Class by class, each part would have one class alone.
  assert inception_score(sure, splits=5, seed=None)[0] == pytest.approx(1)
  assert inception_score(sure, splits=1) == pytest.approx((5, 0))
  assert inception_score(sure, splits=5)[0] > 4.5
  assert inception_score(np.zeros((30, 7))) == pytest.approx((1, 0))
  with pytest.raises(ValueError, match=r"splits=10 .* between 1 and 9"):
    inception_score(np.zeros((9, 7)))


def _by_loops(samples, real, neighbours):
  distance = lambda a, b: np.sqrt(((a - b) ** 2).sum())

  def radius(rows, index):
    others = [
      distance(rows[index], r) for i, r in enumerate(rows) if i != index
    ]
    return sorted(others)[neighbours - 1]

  def share_within(points, rows):
    radii = [radius(rows, index) for index in range(len(rows))]
    return np.mean(
      [
        any(distance(p, r) <= d for r, d in zip(rows, radii, strict=True))
        for p in points
      ]
    )

  return share_within(samples, real), share_within(real, samples)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_precision_and_recall_by_loops(neighbours):
  # A large common mean would cancel in a product.
  samples, real = np.split(_features(0, 74, 3) + 1e7, [33])
  expected = _by_loops(samples, real, neighbours)
  assert 0 < expected[0] != expected[1] < 1
  ours = precision_recall(samples, real, neighbours=neighbours)
  assert ours == pytest.approx(expected)
  # Of 41 distances of 8 bytes, some 3 rows at once, and one.
  for block_bytes in (1000, 1):
    blocked = precision_recall(
      samples, real, neighbours=neighbours, block_bytes=block_bytes
    )
    assert blocked == ours


@pytest.mark.parity
def test_precision_and_recall_are_those_of_fidelity():
  torch, _ = _fidelity()
  from torch_fidelity import metric_prc

  samples, real = _features(2, 150, 6), _features(3, 170, 6)
  theirs = metric_prc.calculate_precision_recall_part(
    torch.from_numpy(samples), torch.from_numpy(real), 3, 64
  )
  assert 0 < min(theirs) < max(theirs) < 1
  ours = precision_recall(samples, real)
  np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_precision_and_recall_of_equal_rows():
  # A row that is there twice is its own neighbour only once.
  rows = np.array([[0.0], [0.0], [1.0], [5.0]])
  assert precision_recall(rows, rows, neighbours=1) == (1, 1)
  assert precision_recall(rows + 0.5, rows, neighbours=1) == _by_loops(
    rows + 0.5, rows, 1
  )


@pytest.mark.parametrize(
  ("samples", "real", "message"),
  [
    (np.ones((3, 2)), np.ones((9, 2)), r"samples are \[3, 2\].*neighbours=3"),
    (np.ones((9, 2)), np.ones((9, 3)), "different networks"),
    (np.ones((9, 2)), np.full((9, 2), np.inf), "real must be finite"),
  ],
)
def test_precision_and_recall_refuse(samples, real, message):
  with pytest.raises(ValueError, match=message):
    precision_recall(samples, real)
