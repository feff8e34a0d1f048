"""Clusters: energies by loops, forces by differences, examples by number."""

import itertools

import ml_collections
import numpy as np
import pytest

from input_pipeline import clusters
from input_pipeline.clusters import energies, made


def _config(**fields):
  config = clusters.default_config()
  config.update(dict(train_examples=7, eval_examples=5, num_threads=0))
  config.update(dict(atoms=(3, 6), relaxation=(0, 9)))
  config.options = ml_collections.ConfigDict(fields.pop("options", {}))
  config.update(fields)
  return config


def _energy(name, options, x):
  """Sums over pairs and triples that are written out."""
  total = 0.0
  for a, b in itertools.combinations(x, 2):
    r = np.linalg.norm(a - b)
    if name == "morse":
      total += np.exp(-2 * options["steepness"] * (r - 1))
      total -= 2 * np.exp(-options["steepness"] * (r - 1))
    else:
      total += 4 / r**12 - 4 / r**6
  for triple in itertools.combinations(x, 3):
    product, sides = 1.0, 1.0
    for i in range(3):
      a, b, c = (triple[(i + n) % 3] for n in range(3))
      p, q = b - a, c - a
      product *= p @ q / np.linalg.norm(p) / np.linalg.norm(q)
      sides *= np.linalg.norm(p)
    total += options["three_body"] * (1 + 3 * product) / sides**3
  return total


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("lennard_jones", {"three_body": 0.0}),
    ("lennard_jones", {"three_body": 0.7}),
    ("morse", {"three_body": 0.3, "steepness": 4.0}),
  ],
)
def test_energies_and_forces(name, options):
  rng = np.random.default_rng(0)
  x = np.arange(15).reshape(1, 5, 3) % 4 + 0.2 * rng.standard_normal((2, 5, 3))
  present = np.array([[True] * 5, [True] * 4 + [False]])
  x[1, 4] = x[1, 0]
  potential = energies.create(name, options)
  energy, forces = potential.energy_and_forces(x, present)
  for b, count in enumerate((5, 4)):
    own = x[b, :count]
    np.testing.assert_allclose(
      energy[b], _energy(name, options, own), rtol=1e-10
    )
    for i, axis in np.ndindex(count, 3):
      step = np.zeros_like(own)
      step[i, axis] = 1e-5
      slope = _energy(name, options, own + step)
      slope -= _energy(name, options, own - step)
      np.testing.assert_allclose(
        forces[b, i, axis], -slope / 2e-5, rtol=1e-6, atol=1e-6
      )
  np.testing.assert_array_equal(forces[1, 4], 0)


def test_a_cluster_is_a_function_of_its_number():
  def of(count, seed=0, split=0):
    potential = energies.LennardJones()
    return made.clusters(potential, split, seed, count, (3, 6), (0, 9), 0.05)

  few, many = of(3), of(7)
  for own, other in zip(few, many, strict=True):
    np.testing.assert_array_equal(own, other[:3])
  for other in (of(3, seed=1), of(3, split=1)):
    assert not np.array_equal(other.positions, few.positions)
  counts = many.present.sum(1)
  assert counts.min() >= 3
  assert counts.max() <= 6
  np.testing.assert_allclose(many.positions.sum(1), 0, atol=1e-12)


def test_relaxation_goes_downhill():
  def energy(steps):
    made_now = made.clusters(
      energies.LennardJones(), 0, 0, 20, (8, 13), (steps, steps), 0.0
    )
    return made_now.energy / made_now.present.sum(1)

  before, after = energy(0), energy(40)
  assert (after < before).all()
  # Wells of the pairs alone: a compact cluster has more of them than atoms.
  assert after.mean() < -1


def test_batches():
  config = _config()
  info = clusters.dataset_info(config)
  whole = made.clusters(
    energies.LennardJones(), 0, 0, 7, (3, 6), (0, 9), config.jitter
  )
  own = whole.forces[whole.present]
  np.testing.assert_allclose(info.force_scale, np.sqrt(np.mean(own**2)))
  per_atom = whole.energy.sum() / whole.present.sum()
  np.testing.assert_allclose(info.energy_mean, per_atom)
  off = whole.energy / whole.present.sum(1) - per_atom
  np.testing.assert_allclose(info.energy_scale, np.sqrt(np.mean(off**2)))
  batch = next(clusters.train_iterator(config, seed=0, global_batch_size=7))
  assert info.atoms == batch["numbers"].shape[1] == 6
  np.testing.assert_allclose(
    np.sort(batch["energy"]), np.sort(whole.energy).astype(np.float32)
  )
  for row in range(7):
    n = int(np.argmin(np.abs(whole.energy - batch["energy"][row])))
    count = whole.present[n].sum()
    assert (batch["numbers"][row] > 0).sum() == count
    # Turned, and forces with the positions.
    now, before = batch["positions"][row], whole.positions[n]
    np.testing.assert_allclose(now @ now.T, before @ before.T, atol=1e-4)
    assert np.abs(now - before).max() > 1e-2
    np.testing.assert_allclose(
      now @ batch["forces"][row].T, before @ whole.forces[n].T, atol=1e-2
    )
    force = energies.LennardJones().energy_and_forces(
      now[None, :count].astype(np.float64), np.ones((1, count), bool)
    )[1]
    np.testing.assert_allclose(
      batch["forces"][row, :count], force[0], atol=1e-2, rtol=1e-3
    )


def test_evaluation_has_each_once():
  config = _config()
  batches = list(clusters.eval_batches(config, batch_size=3))
  index = np.concatenate([batch["index"] for batch in batches])
  weights = np.concatenate([batch["weights"] for batch in batches])
  assert index.tolist() == [0, 1, 2, 3, 4, -1]
  assert weights.tolist() == [1, 1, 1, 1, 1, 0]
  again = list(clusters.eval_batches(config, batch_size=3))
  np.testing.assert_array_equal(batches[0]["positions"], again[0]["positions"])


def test_rotations_are_rotations():
  rng = np.random.default_rng(0)
  turns = np.stack([made.rotation(rng) for _ in range(2000)])
  np.testing.assert_allclose(
    turns @ turns.swapaxes(1, 2),
    np.broadcast_to(np.eye(3), turns.shape),
    atol=1e-12,
  )
  np.testing.assert_allclose(np.linalg.det(turns), 1)
  # No direction is more likely than another.
  assert np.abs(turns.mean(0)).max() < 0.06


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"potential": "lennard"}, "potential is 'lennard', but must be one of"),
    ({"options": {"depth": 1.0}}, "options has 'depth', but lennard_jones has"),
    ({"options": {"three_body": -1.0}}, "three_body is -1.0"),
    ({"atoms": (1, 3)}, "atoms is 1, but it must be an int of at least 2"),
    ({"atoms": (5, 3)}, "the least must not be above"),
    ({"relaxation": (1, 2, 3)}, "must be two numbers"),
    ({"jitter": np.inf}, "jitter is inf"),
    ({"eval_examples": 0}, "eval_examples is 0"),
  ],
)
def test_fields_that_do_not_fit(fields, message):
  config = _config()
  config.unlock()
  for field, value in fields.items():
    config[field] = (
      ml_collections.ConfigDict(value) if field == "options" else value
    )
  with pytest.raises(ValueError, match=message):
    clusters.dataset_info(config)
