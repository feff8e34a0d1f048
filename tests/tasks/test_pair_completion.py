"""Pairs and networks: sums written out, and what learns."""

import jax
import numpy as np
import pytest

import experiment
import tasks
from configs import pairs
from input_pipeline import sequences
from tools.study import train
from training import paths


def small(variant="networks", **fields):
  config = pairs.get_config(variant)
  config.data.options.update(points=5, landmarks=2)
  config.data.num_threads = 0
  config.data.eval_examples = 7
  config.batch_size = config.eval_batch_size = 4
  config.model.update(dict(width=8, depth=1, heads=2, hidden=4))
  if variant == "networks":
    config.model.bias_rank = 2
  for name, value in fields.items():
    config[name] = value
  config.train_for = config.evaluate_every = config.checkpoint.every = "3 steps"
  config.optimizer.warmup = "0 steps"
  return config


def create(config):
  return tasks.create(config, sequences.dataset_info(config.data))


@pytest.mark.parametrize("variant", ["pairs", "networks"])
def test_sums_are_those_of_one_pair_after_another(variant):
  task = create(small(variant))
  batch = next(
    sequences.train_iterator(task.config.data, seed=0, global_batch_size=4)
  )
  variables = task.init(jax.random.key(0))
  sums = jax.jit(task.evaluate_step)(variables, batch)
  run = jax.jit(task.model.apply)
  logits = np.asarray(run(variables, batch["inputs"], batch["pairs"]), float)
  weight = loss = right = 0.0
  for place in np.argwhere(batch["weights"] > 0):
    own, target = logits[tuple(place)], batch["targets"][tuple(place)]
    weight += 1
    loss += np.log(np.exp(own).sum()) - own[target]
    right += own.argmax() == target
  assert weight > 10
  assert sums["weight"] == weight
  np.testing.assert_allclose(sums["loss"], loss, rtol=1e-5)
  assert sums["accuracy"] == right
  trained, (_, told) = jax.jit(task.loss)(variables, batch, jax.random.key(0))
  assert told["weight"] == weight
  if variant == "pairs":
    assert set(sums) == {"weight", "loss", "accuracy"}
    np.testing.assert_allclose(trained, loss, rtol=1e-5)
    return
  each = task.model.clone(bias="pair").apply(
    variables, batch["inputs"], batch["pairs"], method="imitation"
  )
  expected = (np.asarray(each) * batch["weights"].sum((1, 2))).sum()
  for got in (trained, sums["imitation"]):
    np.testing.assert_allclose(got, expected, rtol=1e-5)
  # The networks alone learn, and all of them do.
  gradient = jax.jit(jax.grad(lambda v: task.loss(v, batch, None)[0]))(
    variables
  )
  for name, leaf in paths.flatten_with_names(gradient["params"]).items():
    assert task.trainable()(name) == ("_network/" in name)
    assert np.any(leaf) or not task.trainable()(name), name


# Trains both, one after the other.
@pytest.mark.slow
def test_networks_learn_on_a_frozen_model(tmp_path):
  first, second = str(tmp_path / "pairs"), str(tmp_path / "networks")
  trained, _ = train(small("pairs"), first, show=False)
  config = small("networks")
  config.init.weights = first
  state, _ = train(config, second, show=False)
  begun = experiment.create(config).init()
  before = paths.flatten_with_names(trained.params)
  after = paths.flatten_with_names(state.params)
  fresh = paths.flatten_with_names(begun.params)
  networks = {n for n in after if "_network/" in n}
  assert len(networks) == 6
  assert set(after) == set(before) | networks
  for name, own in after.items():
    if name in networks:
      assert np.abs(own - fresh[name]).max() > 0, name
    else:
      np.testing.assert_array_equal(own, before[name], err_msg=name)


@pytest.mark.parametrize(
  ("change", "error"),
  [
    ({"imitate": True}, "imitate=True needs networks: model.bias_rank is 0"),
    ({"source": "mqar"}, "data.source='mqar' has .*needs one with pairs"),
  ],
)
def test_configs_that_do_not_fit(change, error):
  config = small("pairs")
  if "source" in change:
    config.data.source = change["source"]
    config.data.options = {}
  else:
    config.update(change)
  with pytest.raises(ValueError, match=error):
    create(config)
