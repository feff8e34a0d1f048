"""Windows and chunks: which states are where, in which order."""

import itertools

import numpy as np
import pytest

from input_pipeline import dynamics
from input_pipeline.dynamics import integrators, systems


def small(**fields):
  config = dynamics.default_config()
  config.options.update(size=5, transient=2.0, step=0.05)
  config.update(trajectories=4, states=20, length=6, ahead=2)
  config.update(eval_examples=3, warm_up=4, horizon=5, num_threads=0)
  config.update(fields)
  return config


def states(config):
  """All trajectories to train on, scaled."""
  system = systems.create(config.system, config.options.to_dict())
  made = integrators.trajectories(system, 0, 0, 4, config.states)
  return (made - made.mean((0, 1))) / made.std((0, 1)), made


def taken(config, count, *, batch=2, seed=0, rows=None):
  batches = dynamics.train_iterator(
    config, seed=seed, global_batch_size=batch, rows=rows
  )
  return list(itertools.islice(batches, count))


def place(scaled, window):
  """The trajectory and the number of the state that a window begins with."""
  distance = np.abs(scaled - window[0]).sum(-1)
  found = np.unravel_index(distance.argmin(), distance.shape)
  assert distance[found] < 1e-4
  trajectory, start = map(int, found)
  own = scaled[trajectory, start : start + len(window)]
  np.testing.assert_allclose(window, own, atol=1e-5)
  return trajectory, start


def test_what_is_known_before():
  config = small()
  info = dynamics.dataset_info(config)
  _, made = states(config)
  np.testing.assert_allclose(info.mean, made.mean((0, 1)))
  np.testing.assert_allclose(info.std, made.std((0, 1)))
  assert (info.size, info.num_eval_examples) == (5, 3)
  np.testing.assert_allclose(info.interval, 0.05)
  # 20 states have 12 windows of 9.
  assert info.num_train_examples == 4 * 12
  config.order = "consecutive"
  assert dynamics.num_train_examples(config) == 4 * 2


def test_an_epoch_has_every_window_once():
  config = small()
  scaled, _ = states(config)
  epoch = taken(config, 24)
  places = [place(scaled, x) for batch in epoch for x in batch["states"]]
  assert sorted(places) == list(itertools.product(range(4), range(12)))
  assert all(batch["begins"].all() for batch in epoch)
  assert epoch[0]["states"].dtype == np.float32
  assert places != [
    place(scaled, x)
    for batch in taken(config, 24, seed=1)
    for x in batch["states"]
  ]


def test_rows_go_on_from_batch_to_batch():
  config = small(order="consecutive", states=24)
  scaled, _ = states(config)
  # 24 states leave room for chunks at 0, 6 and 12, all up to 3 later.
  assert dynamics.num_train_examples(config) == 12
  batches = taken(config, 24)
  seen, offsets, before = [], set(), []
  for n, batch in enumerate(batches):
    chunk = n % 3
    np.testing.assert_array_equal(batch["begins"], [chunk == 0] * 2)
    now = [place(scaled, x) for x in batch["states"]]
    if chunk:
      assert now == [(t, start + 6) for t, start in before]
    else:
      seen += [trajectory for trajectory, _ in now]
      offsets |= {start for _, start in now}
    before = now
  # Each epoch has all four trajectories, in an order of its own.
  epochs = [seen[i : i + 4] for i in range(0, 16, 4)]
  assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) > 1
  assert {0, 3} <= offsets <= {0, 1, 2, 3}


def test_processes_and_restarts_see_the_same_stream():
  config = small(order="consecutive")
  whole = taken(config, 5)
  for row in (0, 1):
    for own, both in zip(taken(config, 5, rows=[row]), whole, strict=True):
      np.testing.assert_array_equal(own["states"][0], both["states"][row])
  stream = dynamics.train_iterator(config, seed=0, global_batch_size=2)
  stream.set_state({"next_example": 6})
  np.testing.assert_array_equal(next(stream)["states"], whole[3]["states"])


def test_trajectories_to_evaluate_are_others():
  config = small()
  batches = list(dynamics.eval_batches(config, batch_size=2))
  assert [b["index"].tolist() for b in batches] == [[0, 1], [2, -1]]
  np.testing.assert_array_equal(batches[1]["weights"], [1, 0])
  own = np.concatenate([b["states"] for b in batches])[:3]
  assert own.shape == (3, 9, 5)
  info = dynamics.dataset_info(config)
  system = systems.create(config.system, config.options.to_dict())
  made = integrators.trajectories(system, 1, 0, 3, 9)
  np.testing.assert_allclose(own, (made - info.mean) / info.std, atol=1e-5)


@pytest.mark.parametrize(
  ("fields", "error"),
  [
    ({"order": "random"}, "order is 'random', .*shuffled, consecutive"),
    ({"length": 0}, "length is 0, .*at least 1"),
    ({"ahead": -1}, "ahead is -1"),
    ({"states": 8}, "states is 8, but an example has 9: length 6"),
    ({"horizon": 0}, "horizon is 0, .*at least 1"),
    ({"system": "pendulum"}, "no system 'pendulum'"),
    ({"options": {"forcing": 0.1, "transient": 60.0}}, "rests"),
  ],
)
def test_configs_that_do_not_fit(fields, error):
  with pytest.raises(ValueError, match=error):
    dynamics.dataset_info(small(**fields))


def test_rows_need_trajectories_of_their_own():
  with pytest.raises(ValueError, match=r"batch_size is 3, .*trajectories 4"):
    taken(small(order="consecutive"), 1, batch=3)
