"""Runs that train what is inserted into the model of another run."""

from unittest import mock

import jax
import numpy as np
import pytest

import experiment
from configs import digits, language
from experiment import weights
from input_pipeline import text
from models import insertion
from tests.training.test_trained import products
from train import train_and_evaluate
from training import paths, summary

GATE = {
  "name": "tau_gate",
  "source": "layer_0",
  "last_sharpness": 20.0,
  "anneal_steps": 2,
}
INSERTS = (
  ("layer_.*|logits", {"name": "lora", "rank": 2}),
  ("layer_1", GATE),
)


@pytest.fixture(autouse=True, scope="module")
def _no_pictures():
  with mock.patch.object(summary, "finish"):
    yield


@pytest.fixture(scope="module")
def foundation(tmp_path_factory):
  """A config without its workdir, and the folder and variables of a run."""
  made = digits.recipe()
  made.model = dict(name="perceptron", widths=(12, 9))
  made.data.data_dir = str(tmp_path_factory.mktemp("data"))
  made.data.image_size = 8
  made.data.train_transform = made.data.eval_transform = "turn(degrees=45)"
  made.train_for = made.evaluate_every = made.checkpoint.every = "2 steps"
  made.optimizer.warmup = "0 steps"
  workdir = str(tmp_path_factory.mktemp("foundation"))
  state = train_and_evaluate(made, workdir)
  return made, workdir, jax.device_get(state.params)


def adapted(foundation, **fields):
  config = foundation[0].copy_and_resolve_references()
  config.init.weights = foundation[1]
  config.init.ema = False
  config.model.inserts = INSERTS
  config.trainable = ("lora", "tau_gate")
  config.update_from_flattened_dict(fields)
  return config


# Trains.
@pytest.mark.slow
def test_only_what_is_inserted_is_trained(foundation, tmp_path):
  workdir = str(tmp_path / "run")
  config = adapted(foundation)
  state = train_and_evaluate(config, workdir)
  old = paths.flatten_with_names(foundation[2])
  new = paths.flatten_with_names(jax.device_get(state.params))
  for name, value in old.items():
    np.testing.assert_array_equal(
      new[name].view(np.uint32), value.view(np.uint32), err_msg=name
    )
  inserted = {name for name in new if name not in old}
  assert {"layer_1/tau_gate/threshold", "head/logits/lora/up/kernel"} < inserted
  start = weights.initial_state(experiment.create(config))
  begun = paths.flatten_with_names(jax.device_get(start.params))
  assert all((new[name] != begun[name]).any() for name in inserted)
  # The optimizer knows no others.
  sizes = {leaf.shape for leaf in jax.tree.leaves(state.opt_state)} - {()}
  assert sizes == {new[name].shape for name in inserted}
  steps = paths.flatten_with_names(state.collections[insertion.STATE])
  assert steps == {"layer_1/tau_gate/steps": 2}
  # A run knows what it inserted.
  kept = experiment.load_trained(workdir)
  setup = experiment.create_evaluation(kept)
  assert insertion.patterns(setup.task.model)[1] == "layer_1/tau_gate"
  with jax.set_mesh(setup.mesh):
    again = weights.load_weights(setup, workdir, use_ema=False)
  jax.tree.map(np.testing.assert_array_equal, again["params"], state.params)
  # It begins where an earlier run has inserts, too.
  config.init.weights = workdir
  begun = weights.initial_state(experiment.create(config))
  jax.tree.map(np.testing.assert_array_equal, begun.params, state.params)


def test_what_is_trained_and_inserted_is_said(foundation):
  rules = experiment.create(adapted(foundation)).rules
  (inserts,) = (rule for rule in rules if rule.startswith("model.inserts"))
  # 2 (64 + 12 + 12 + 9 + 9 + 10) of LoRA.
  assert inserts.startswith(
    "model.inserts: layer_.*|logits/lora takes 232 parameters (6 arrays), "
    "layer_1/tau_gate takes 24 parameters (2 arrays)"
  )
  (frozen,) = (rule for rule in rules if rule.startswith("frozen"))
  assert frozen.endswith("no rule takes 256 parameters (8 arrays)")


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"model.inserts": (("layr_0", {"name": "lora"}),)},
      r"model.inserts has 'layr_0/lora'.* Near it are layer_0",
    ),
    ({"model.inserts": (("layer_0", {"name": "lara"}),)}, "no insert 'lara'"),
    ({"trainable": ("lara",)}, "trainable has 'lara'.* Near it are lora"),
    ({"frozen": ("lora", "tau_gate")}, "but no parameter of"),
    ({"frozen_trunk": True, "trainable": ("layer_0",)}, "but no parameter of"),
  ],
)
def test_what_does_not_fit(foundation, fields, message):
  with pytest.raises(ValueError, match=message):
    experiment.create(adapted(foundation, **fields))


def test_a_language_model_has_gradients_of_inserts_only():
  config = language.get_config("test")
  config.data.files = "/nowhere/*.txt"
  # Sizes that no other array has.
  config.model.update(width=20, heads=2, mlp_width=28, tied_head=False)
  config.model.inserts = (("mixer/(query|value)", {"name": "lora"}),)
  config.trainable = ("lora",)
  info = text.TextInfo(257, None, num_eval_examples=10, num_train_examples=1000)
  made = experiment.create(config, jax.devices()[:1], info)
  jaxpr = jax.make_jaxpr(made.whole_step)(made.state, made.batch).jaxpr
  found = {tuple(sorted(shape)) for shape in products(jaxpr)}
  params = paths.flatten_with_names(made.state.params)
  for name, leaf in params.items():
    if leaf.ndim > 1:
      shape = tuple(sorted(leaf.shape))
      assert (shape in found) == ("lora" in name), name
