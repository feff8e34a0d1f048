"""Biases as factors: of trained tables, and learned by small networks."""

import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

import experiment
from configs import maxvit, pairs
from models import bias_factors, taps
from tools import study

TITLE = "FlashBias (2505.12044): biases that are products of factors"
SUBJECT = None
TEXT = """
Two models whose attention has a bias, with factors of rank `rank` in its place;
`unexplained` is the share of the squares of all biases that the factors miss,
`cosine` is of logits with those of the true biases. MaxViT on digits, with
windows of 8 x 8 tokens, and tables that learn 20 times as fast as the rest, or
nothing would depend on them after so short a training: the tables of a trained
model by their singular values, at shares of their energy, where `rank` is the
mean of its layers (the paper keeps 99.5 %, and tables that need more than rank
16). The pair model completes distances by triangle attention, and networks that
see single tokens and means of pairs learn factors of its biases, on a frozen
model; the paper expects the accuracy to be kept, and to be lost without a bias.
Controls: no bias, rank 1, tables and factors that are as large and random, and
for the networks the best factors of each example's own biases, which nothing
but their rank limits.
"""
COLUMNS = (
  ("rank", ".1f"),
  ("unexplained", ".3f"),
  ("cosine", ".3f"),
  ("accuracy", ".1%"),
)
_RANK = 8


def rows(variant):
  """Both models with true biases, with factors, and with controls."""
  found = [
    ("MaxViT, tables", {"model": "maxvit"}),
    ("MaxViT, factors, 99.5 %", {"model": "maxvit", "energy": 0.995}),
    ("MaxViT, factors, 95 %", {"model": "maxvit", "energy": 0.95}),
    ("MaxViT, factors, 80 %", {"model": "maxvit", "energy": 0.8}),
    ("MaxViT, rank 1", {"model": "maxvit", "energy": 1e-9}),
    ("MaxViT, random tables", {"model": "maxvit", "tables": "random"}),
    ("MaxViT, no bias", {"model": "maxvit", "tables": "none"}),
    ("pairs, true biases", {"model": "pairs", "bias": "pair"}),
    ("pairs, factors of networks", {"model": "pairs", "bias": "factors"}),
    ("pairs, own best factors", {"model": "pairs", "bias": "best"}),
    ("pairs, random factors", {"model": "pairs", "bias": "random"}),
    ("pairs, no bias", {"model": "pairs", "bias": "none"}),
  ]
  return found if variant == "full" else [found[i] for i in (0, 2, 7, 8, 9)]


def measure(subject, name, options, seed, variant):
  """Figures of a row; see COLUMNS."""
  del subject, name
  if options["model"] == "maxvit":
    return _of_maxvit(options, seed, variant)
  return _of_pairs(options["bias"], seed, variant)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
  """Of runs, that seeds and rows of this process share."""
  return tempfile.TemporaryDirectory()


def _trained(config, name: str, seed: int, variant: str):
  """Trains and returns the task, variables and batches to evaluate."""
  config.seed = seed
  if variant == "test":
    config.train_for = config.evaluate_every = config.checkpoint.every = (
      "2 steps"
    )
    config.batch_size = 8
    config.optimizer.warmup = "0 steps"
  workdir = f"{_folder().name}/{name}_{seed}_{variant}"
  state, _ = study.train(config, workdir, show=False)
  setup = experiment.create_evaluation(config)
  batches = setup.task.room.eval_batches(
    config.data, batch_size=config.eval_batch_size
  )
  return setup.task, jax.device_get(state.variables()), [*batches], workdir


@functools.cache
def _maxvit(seed: int, variant: str):
  config = maxvit.get_config("digits")
  attending = ("mbconv", "block_attention", "grid_attention")
  config.model.update(
    dict(widths=(32, 64), depths=(1, 1), layout=(attending, ("mbconv",)))
  )
  # The map of the first stage is one window, and one grid.
  config.model.window_size = 8
  # In so few steps they would stay too small to be missed.
  config.optimizer.learning_rate_rules = (("relative_bias_table", 20.0),)
  config.train_for = config.evaluate_every = config.checkpoint.every = (
    "225 steps"
  )
  return _trained(config, "maxvit", seed, variant)


def _of_maxvit(options, seed, variant):
  task, variables, batches, _ = _maxvit(seed, variant)
  model, changed, rank = task.model, variables, float("nan")
  if "energy" in options:
    model, changed, layers = bias_factors.convert(
      model, variables, energy=options["energy"], limit=64
    )
    rank = np.mean([layer.rank for layer in layers])
  elif "tables" in options:
    changed = _with_other_tables(variables, options["tables"], seed)
  images = np.concatenate([batch["image"] for batch in batches])
  labels = np.concatenate([batch["label"] for batch in batches])
  keep = np.concatenate([batch["mask"] for batch in batches]) > 0
  x = task.normalize(jnp.asarray(images[keep]))
  exact, logits = (
    np.asarray(jax.jit(one.apply)(own, x))
    for one, own in ((task.model, variables), (model, changed))
  )
  true, given = (
    np.concatenate(
      [_bias(one, own, name).ravel() for name in task.model.biased_layers]
    )
    for one, own in ((task.model, variables), (model, changed))
  )
  return {
    **({} if np.isnan(rank) else {"rank": float(rank)}),
    "unexplained": _missed(true, given),
    "cosine": _cosine(exact, logits),
    "accuracy": float((logits.argmax(-1) == labels[keep]).mean()),
  }


def _with_other_tables(variables, kind: str, seed: int):
  """Random ones of the same deviation, or zeros."""
  rng = np.random.default_rng(seed)

  def other(path, leaf):
    if path[-1].key != bias_factors.TABLE:
      return leaf
    if kind == "none":
      return np.zeros_like(leaf)
    return (leaf.std() * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

  return jax.tree_util.tree_map_with_path(other, variables)


def _bias(model, variables, name: str) -> np.ndarray:
  """[heads, tokens, tokens] of a layer, of its table or its factors."""
  return np.asarray(bias_factors.bias_of(model, variables["params"], name))


@functools.cache
def _networks(seed: int, variant: str):
  small = (
    {"data.eval_examples": 48, "eval_batch_size": 48, "model.depth": 1}
    if variant == "test"
    else {}
  )
  config = pairs.get_config("pairs")
  config.update_from_flattened_dict(small)
  _, _, _, workdir = _trained(config, "pairs", seed, variant)
  config = pairs.get_config("networks")
  config.update_from_flattened_dict(small)
  config.model.bias_rank = _RANK
  config.init.weights = workdir
  task, variables, batches, _ = _trained(config, "networks", seed, variant)
  arrays = {
    name: np.concatenate([batch[name] for batch in batches])
    for name in ("inputs", "pairs", "targets", "weights")
  }
  return task.model, variables, arrays


def _of_pairs(bias: str, seed: int, variant: str):
  model, variables, arrays = _networks(seed, variant)
  inputs = tuple(jnp.asarray(arrays[name]) for name in ("inputs", "pairs"))
  exact_model = model.clone(bias="pair")

  @jax.jit
  def exact(variables, inputs):
    logits, biases = taps.read(
      exact_model, variables, *inputs, names=["*/bias"]
    )
    error = exact_model.apply(variables, *inputs, method="imitation")
    return logits, biases, error.mean()

  true, biases, error = exact(variables, inputs)
  squares = sum(float(np.square(b).mean()) for b in biases.values())
  found = {"unexplained": 0.0}
  if bias in ("best", "random"):
    replaced = {
      name: _other_bias(np.asarray(own), bias, seed)
      for name, own in biases.items()
    }
    missed = (np.square(replaced[n] - b).mean() for n, b in biases.items())
    found = {"rank": _RANK, "unexplained": float(sum(missed)) / squares}
    logits = jax.jit(
      lambda variables, inputs, new: taps.read(
        exact_model, variables, *inputs, edit=new
      )[0]
    )(variables, inputs, replaced)
  else:
    logits = jax.jit(model.clone(bias=bias).apply)(variables, *inputs)
    if bias == "factors":
      found = {"rank": _RANK, "unexplained": float(error) / squares}
    elif bias == "none":
      found = {"unexplained": 1.0}
  right = np.asarray(logits).argmax(-1) == arrays["targets"]
  counts = arrays["weights"]
  return {
    **found,
    "cosine": _cosine(np.asarray(true)[counts > 0], logits[counts > 0]),
    "accuracy": float((right * counts).sum() / counts.sum()),
  }


def _other_bias(bias: np.ndarray, kind: str, seed: int) -> jax.Array:
  """The best of a rank, or random of that rank and as large."""
  if kind == "best":
    u, s, vh = np.linalg.svd(bias)
    rank = _RANK
    new = (u[..., :rank] * s[..., None, :rank]) @ vh[..., :rank, :]
  else:
    rng = np.random.default_rng(seed)
    q, k = (
      rng.standard_normal((*bias.shape[:-1], _RANK)).astype(np.float32)
      for _ in range(2)
    )
    new = bias.std() * _RANK**-0.5 * q @ k.swapaxes(-1, -2)
  return jnp.asarray(new, jnp.float32)


def _missed(true: np.ndarray, given: np.ndarray) -> float:
  return float(np.square(true - given).sum() / np.square(true).sum())


def _cosine(a, b) -> float:
  """Mean cosine over rows."""
  a, b = np.asarray(a), np.asarray(b)
  norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
  return float(((a * b).sum(-1) / norms).mean())
