"""Collections of a language model in training: parts of a batch, and a mesh."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tasks
from configs import language
from input_pipeline import text
from models import decoding
from tests import parity_helper
from training import sharding, train_state, train_step

TEXTS = ("To be, or not to be: that is it.\n", "ab", "Ça va? 😀 ok\n", "q" * 40)
RHO = 0.9


@pytest.fixture(scope="module")
def task(tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "lines.jsonl"
  path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
  config = language.get_config("test")
  config.model.update(dict(width=16, depth=1, heads=2))
  config.model.mixer_options = {"full": {"normalizer": "affine"}}
  config.data.update(
    files=str(path), eval_files=str(path), format="jsonl", length=24
  )
  config.ema.update(dict(decay=0.5, warmup=False))
  return tasks.create(config, text.dataset_info(config.data))


@pytest.fixture(scope="module")
def batch(task):
  """Rows whose parts have unlike shares of padding."""
  rows = next(
    text.train_iterator(task.config.data, seed=0, global_batch_size=4)
  )
  batch = {n: rows[n] for n in task.batch_spec(4, train=True)}
  counts = batch["weights"].sum(1)
  assert counts[0::2].sum() != counts[1::2].sum()
  # What the model counts is what the loss counts.
  np.testing.assert_array_equal(batch["positions"] >= 0, batch["weights"] > 0)
  return batch


@pytest.fixture(scope="module")
def variables(task):
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  return parity_helper.randomise(shapes, 0)


def stepped(task, variables, batch, steps=1, accumulation_steps=1, place=None):
  """The state after some steps on the same batch."""
  tx = optax.sgd(0.1)
  state = train_state.create_state(
    jax.tree.map(jnp.asarray, variables), tx, jax.random.key(1), use_ema=True
  )
  step = train_step.make_train_step(
    task,
    tx,
    lambda step: 0.1,
    task.config,
    accumulation_steps=accumulation_steps,
  )
  step = jax.jit(step)
  for _ in range(steps):
    state, _ = step(state, place(batch) if place else batch)
  return state


def average(collections):
  return collections["moving_averages"]["layer_0"]["mixer"]["affine"][
    "alpha_mean"
  ]


def alpha(variables, batch):
  """Of the first layer, whose input is nothing but normalised embeddings."""
  params = variables["params"]
  x = params["embed"]["embedding"][batch["tokens"]]
  x = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)
  layer = params["layer_0"]
  x = x * layer["mixer_norm"]["scale"]
  logits = x @ layer["mixer"]["affine"]["alpha"]["kernel"]
  return np.clip(0.1 * logits + 0.5, 0, 1)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_average_is_that_of_all_tokens_however_a_batch_is_cut(
  task, variables, batch, parts
):
  state = stepped(task, variables, batch, accumulation_steps=parts)
  before = average(variables)
  mean = alpha(variables, batch)[batch["weights"] > 0].mean(0)
  expected = RHO * before + (1 - RHO) * mean
  np.testing.assert_allclose(average(state.collections), expected, rtol=1e-5)
  # The exponential average of the state goes half of the way.
  halfway = (before + expected) / 2
  np.testing.assert_allclose(average(state.ema), halfway, rtol=1e-5)
  # The step uses the average from before it, so that parts make no difference.
  whole = stepped(task, variables, batch)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    state.params,
    whole.params,
  )


def test_a_mesh_averages_over_its_devices(task, variables, batch):
  mesh = sharding.create_mesh(task.config.mesh)
  assert mesh.size == 4
  rows = sharding.batch_sharding(mesh)
  place = functools.partial(jax.device_put, device=rows)
  with jax.set_mesh(mesh):
    state = stepped(task, variables, batch, steps=2, place=place)
  expected = stepped(task, variables, batch, steps=2)
  np.testing.assert_allclose(
    average(state.collections), average(expected.collections), rtol=1e-5
  )
  assert not np.allclose(average(state.collections), average(variables))


def test_a_batch_of_padding_moves_nothing(task, variables, batch):
  empty = {n: np.zeros_like(x) for n, x in batch.items()}
  empty["positions"] -= 1
  state = stepped(task, variables, empty)
  np.testing.assert_array_equal(average(state.collections), average(variables))


def test_evaluation_and_sampling_take_the_average_as_it_is(
  task, variables, batch
):
  evaluated = {**batch, "bytes": batch["weights"]}
  step = jax.jit(task.evaluate_step)
  loss = step(variables, evaluated)["loss"]
  other = jax.tree.map(lambda x: x + 0.5, variables["moving_averages"])
  moved = step({**variables, "moving_averages": other}, evaluated)["loss"]
  assert abs(loss - moved) > 1e-3
  prompt = [1, 2, 3]
  (new,) = decoding.generate(task.model, variables, [prompt], max_tokens=4)
  tokens = np.array([prompt + new])
  logits = jax.jit(task.model.apply)(variables, tokens)
  assert logits[0, 2:-1].argmax(-1).tolist() == new
