"""What is said where a device has not the memory of a config."""

import jax
import jax.numpy as jnp
import pytest

import experiment
from configs import digits
from experiment import memory
from training import sharding, train_step


def create(tmp_path, **fields):
  config = digits.get_config("tiny")
  config.data.data_dir = str(tmp_path)
  config.update_from_flattened_dict(fields)
  return experiment.create(config)


def exhausted():
  """XLA's own error, of more memory than any machine has."""
  jnp.zeros(2**50).block_until_ready()


def test_sizes_and_what_would_fit_are_said(tmp_path):
  setup = create(tmp_path)
  with pytest.raises(memory.OutOfMemoryError) as error, memory.explained(setup):
    exhausted()
  said = str(error.value)
  parameters = sum(x.nbytes for x in jax.tree.leaves(shapes(setup)))
  assert f"params {parameters / 2**20:,.1f} MiB" in said
  assert "the 16 examples that a device has" in said
  for remedy in (
    "--config.accumulation_steps=2 ",
    "--config.model.remat=true ",
    "--config.dtype=bfloat16 ",
    "--config.mesh.fsdp=4 --config.mesh.data=1 splits parameters, optimizer "
    "and average 4 times",
    "--config.batch_size below 64",
    "--config.eval_batch_size below 120",
  ):
    assert remedy in said
  assert "Out of memory allocating" in said


def shapes(setup):
  return jax.tree.map(
    lambda x: jnp.zeros(x.sharding.shard_shape(x.shape)), setup.state.params
  )


def test_what_is_done_already_is_not_advised(tmp_path):
  setup = create(
    tmp_path,
    **{
      "dtype": "bfloat16",
      "model.remat": True,
      "accumulation_steps": 16,
      "mesh.data": 1,
      "mesh.fsdp": 4,
    },
  )
  said = memory.describe(setup)
  for remedy in ("accumulation_steps", "remat", "bfloat16", "fsdp"):
    assert remedy not in said
  assert "the 1 examples that a device has" in said


def test_what_is_advised_fits_the_mesh_and_the_batch(tmp_path):
  setup = create(
    tmp_path, **{"batch_size": 18, "mesh.data": 2, "mesh.model": 2}
  )
  said = memory.describe(setup)
  # Of 9 examples a device no half can be taken.
  assert "--config.accumulation_steps=3 takes 3 at a time" in said
  assert "--config.mesh.fsdp=2 --config.mesh.data=1 splits" in said
  assert "average 2 times more" in said
  train_step.check_accumulation(18, 3, setup.mesh)
  setup.config.mesh.update(fsdp=2, data=1)
  assert sharding.create_mesh(setup.config.mesh).size == 4


def test_other_errors_are_themselves(tmp_path):
  with pytest.raises(KeyError), memory.explained(None):
    raise KeyError("a")
  with (
    pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"),
    memory.explained(None),
  ):
    raise jax.errors.JaxRuntimeError("INTERNAL: something else")
