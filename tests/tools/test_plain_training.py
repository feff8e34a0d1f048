"""The step alone against the program that trains."""

import jax
import numpy as np
import pytest
from etils import epath

from configs import sequences
from tools import plain_training
from train import train_and_evaluate


def make_config():
  config = sequences.get_config("reversal")
  config.model.update(dict(width=8, depth=1, heads=1, mlp_width=8))
  config.data.eval_examples = config.eval_batch_size = 4
  config.batch_size = 4
  config.train_for = config.evaluate_every = config.checkpoint.every = "3 steps"
  return config


@pytest.mark.slow  # It compiles two trainings.
def test_it_trains_what_the_program_trains_once(tmp_path, monkeypatch):
  folder = epath.Path(tmp_path / "kept")
  task, variables = plain_training.trained(make_config(), folder)
  state = train_and_evaluate(make_config(), str(tmp_path / "run"), show=False)
  jax.tree.map(np.testing.assert_array_equal, variables, state.variables())
  monkeypatch.setattr(plain_training, "_train", lambda config: 1 / 0)
  again, kept = plain_training.trained(make_config(), folder)
  jax.tree.map(np.testing.assert_array_equal, kept, variables)
  assert again.model == task.model
  other = make_config()
  other.seed = 1
  with pytest.raises(ZeroDivisionError):
    plain_training.trained(other, folder)
