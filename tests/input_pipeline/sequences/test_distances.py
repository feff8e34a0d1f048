"""Distances of points against what is written down of them."""

import numpy as np
import pytest

from input_pipeline.sequences import sources


def create(**fields):
  return sources.create("distances", fields)


def test_labels_signals_and_landmarks_are_of_the_same_points():
  source = create(points=12, space=2, landmarks=3, reach=0.4, noise=0.0)
  example = source.example(np.random.default_rng(0), "train")
  places = np.random.default_rng(0).random((12, 2))
  for i, j in np.ndindex(12, 12):
    distance = np.linalg.norm(places[i] - places[j])
    signal, same = example["pairs"][i, j]
    assert signal == pytest.approx(np.exp(-((distance / 0.4) ** 2)), abs=1e-6)
    assert same == (i == j)
    assert example["weights"][i, j] == (distance > 0.4)
    if distance > 0.4:
      found = int((distance - 0.4) / 0.075)
      assert example["targets"][i, j] == min(found, 7)
  # Landmarks are the same in all examples: places are found from them.
  again = source.example(np.random.default_rng(1), "eval")
  others = np.random.default_rng(1).random((12, 2))
  landmarks = np.random.default_rng(0).random((3, 2))
  for own, there in ((example, places), (again, others)):
    steps = there[:, None] - landmarks[None]
    np.testing.assert_allclose(
      own["inputs"], np.linalg.norm(steps, axis=-1), atol=1e-6
    )
  assert source.vocabulary_size == 3


def test_noise_is_the_same_both_ways_round():
  example = create(noise=0.1, points=9).example(
    np.random.default_rng(0), "eval"
  )
  clean = create(noise=0.0, points=9).example(np.random.default_rng(0), "eval")
  noise = (example["pairs"] - clean["pairs"])[..., 0]
  np.testing.assert_allclose(noise, noise.T, atol=1e-6)
  upper = noise[np.triu_indices(9, 1)]
  assert 0.05 < upper.std() < 0.2
  assert example["pairs"].dtype == np.float32


@pytest.mark.parametrize(
  ("fields", "error"),
  [
    ({"points": 1}, "points is 1"),
    ({"landmarks": 0}, "landmarks is 0"),
    ({"reach": 1.0}, r"reach is 1\.0; it must be between 0 and 1"),
    ({"noise": -1.0}, r"noise is -1\.0"),
  ],
)
def test_fields_that_do_not_fit(fields, error):
  with pytest.raises(ValueError, match=error):
    create(**fields)
