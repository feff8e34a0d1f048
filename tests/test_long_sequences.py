"""Language models whose rows lie on several devices."""

import jax
import numpy as np
import pytest
from jax.experimental import topologies

import experiment
from attention.kernels import flash_sequence
from configs import language
from input_pipeline import text

LENGTH = 128


def _made(devices=None, length=LENGTH, **fields):
  config = language.get_config("test")
  config.data.length = length
  config.batch_size = config.eval_batch_size = 4
  config.train_for = "20 steps"
  config.model.mixers = ("full", "linear")
  config.update_from_flattened_dict(fields)
  info = text.TextInfo(257, None, num_eval_examples=10, num_train_examples=1000)
  return experiment.create(config, devices, info)


def _batch(spec, rng):
  """A batch of rows with documents of 50 tokens."""
  shape = spec["tokens"].shape
  places = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
  values = {
    "tokens": rng.integers(0, 257, shape, np.int32),
    "targets": rng.integers(0, 257, shape, np.int32),
    "weights": np.ones(shape, np.float32),
    "positions": places % 50,
    "segments": places // 50,
  }
  return {
    name: jax.device_put(values[name], leaf.sharding)
    for name, leaf in spec.items()
  }


def _trained(made):
  """Returns the loss of each of 20 steps, and the parameters after them."""
  rng = np.random.default_rng(0)
  losses = []
  with jax.set_mesh(made.mesh):
    state = made.init()
    for _ in range(20):
      state, metrics = made.train_step(state, _batch(made.batch, rng))
      losses.append(float(metrics["loss"]))
  return losses, state.params


def test_it_trains_as_on_one_device():
  expected, expected_params = _trained(_made(jax.devices()[:1]))
  actual, params = _trained(_made(jax.devices()[:4], **{"mesh.sequence": 4}))
  np.testing.assert_allclose(actual, expected, rtol=1e-5)
  for have, want in zip(
    jax.tree.leaves(params), jax.tree.leaves(expected_params), strict=True
  ):
    have, want = np.asarray(have), np.asarray(want)
    assert np.linalg.norm(have - want) < 5e-5 * np.linalg.norm(want)


# Without a chip JAX cannot read what an earlier run kept, says so and compiles.
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
@pytest.mark.compile
@pytest.mark.slow
def test_it_compiles_for_chips_with_kernels_on_parts(monkeypatch):
  pytest.importorskip("libtpu")
  from tools import compile_only, program_report  # noqa: F401, sets up libtpu.

  devices = topologies.get_topology_desc(
    platform="tpu", topology_name="v5e:2x4"
  ).devices
  # As if keys and values were large.
  monkeypatch.setattr(flash_sequence, "GATHERED_BYTES", 0)
  made = _made(
    devices,
    2048,
    **{
      "mesh.data": 2,
      "mesh.sequence": 4,
      "dtype": "bfloat16",
      "data.packing": "stream",
    },
  )
  with jax.set_mesh(made.mesh):
    compiled = made.train_step.lower(made.state, made.batch).compile()
  report = program_report.read(compiled, made.mesh)
  kernels = {kernel.name for kernel in report.kernels}
  assert kernels >= {
    "flash_forward",
    "flash_backward_rows",
    "flash_backward_columns",
    "linear_attention_make",
    "linear_attention_causal",
  }
  moved = {(x.kind, x.axis) for x in report.collectives}
  assert moved >= {
    ("collective-permute", "sequence"),
    ("all-gather", "sequence"),
  }
