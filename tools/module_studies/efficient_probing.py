"""Efficient probing beside other probes, of a trunk that filled in masks."""

import functools
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from etils import epath

import experiment
import models
from configs import probing
from input_pipeline import features, images
from models import layers, pretrained, probes
from tools import cache_features, study, work

GROUP = "probing"
TITLE = "Efficient probing (2506.10178)"
TEXT = """\
A vision transformer of four blocks learns to fill in the masked half of the
patches of the digits, without their classes, as SimMIM does (2111.09886): mean
absolute error of masked pixels, a dense layer on each token. It is frozen then,
runs over the images once, and a probe learns the ten digits of what it made, by
LARS, the same updates for all. The paper says that several queries find more
than the class token, the mean or one query, as masked training leaves the class
token to itself; controls are a trunk that was never trained, and the vote of
the 20 nearest neighbours by the class token. "trained" are parameters of the
probe with its classifier, "multiply_adds" those of an image in the probe.
"""
COLUMNS = (
  ("trained", ",.0f"),
  ("multiply_adds", ",.0f"),
  ("accuracy", ".2%"),
  ("neighbors", ".2%"),
)
Row = tuple[str, dict[str, Any]]
_ROWS = {
  "class token (LP)": {"probe": "cls"},
  "mean token (GAP)": {"probe": "gap"},
  "EP, 1 query": {"probe": "ep", "probe_options": {"queries": 1}},
  "EP, 8 queries": {"probe": "ep", "probe_options": {"queries": 8}},
  "AIM, 8 heads": {"probe": "aim", "probe_options": {"heads": 8}},
  "V-JEPA, 8 heads": {"probe": "jepa", "probe_options": {"heads": 8}},
  "trunk not trained, GAP": {"probe": "gap", "masked_steps": 0},
  "trunk not trained, EP, 8 queries": {
    "probe": "ep",
    "probe_options": {"queries": 8},
    "masked_steps": 0,
  },
}
# Steps that the trunk is trained for, and the probe.
_STEPS = {"full": (600, 440), "test": (1, 1)}
_SMALL = {
  "patch_size": 16,
  "width": 8,
  "depth": 1,
  "heads": 2,
  "hidden_width": 8,
}
_ROWS_A_STEP = 64
_NEIGHBORS = 20


def rows(variant: str) -> list[Row]:
  """The names of rows and their probes; of a test, one of each trunk."""
  if variant == "full":
    return list(_ROWS.items())
  options = {"probe": "ep", "probe_options": {"queries": 2}}
  return [
    ("not trained", {**options, "masked_steps": 0}),
    ("EP, 2 queries", options),
  ]


def measure(
  folder: epath.Path,
  name: str,
  options: Mapping[str, Any],
  seed: int,
  variant: str,
) -> dict[str, float]:
  """Trains a probe on the features of a seed's trunk.

  Args:
    folder: where trunks and features are, or will be.
    name: of the row.
    options: `probe`, `probe_options`, and `masked_steps` of another trunk.
    seed: of the trunk and of the probe.
    variant: "full" or "test".

  Returns:
    What COLUMNS names, neighbors of the class token only.
  """
  del name
  options = dict(options)
  steps, probe_steps = _STEPS[variant]
  steps = options.pop("masked_steps", steps)
  config = _config(options, seed, variant, probe_steps)
  kept = folder / f"masked_{steps}_steps_{variant}_seed_{seed}"
  record = _make_features(kept, config, steps, seed)
  config.init.weights, config.init.part = str(kept / _TRUNK), "trunk"
  config.data.features = str(kept / "features")
  with tempfile.TemporaryDirectory() as workdir:
    state, _ = study.train(config, workdir, show=False)
    last = study.read_lines(epath.Path(workdir) / "metrics.jsonl")[-1]
  found = {
    "trained": sum(x.size for x in jax.tree.leaves(state.params["head"])),
    "multiply_adds": _multiply_adds(config.model, record.shapes),
    "accuracy": last["eval/accuracy"],
  }
  if config.model.probe == "cls":
    found["neighbors"] = _neighbors(config, state.variables())
  return found


_TRUNK = "trunk.safetensors"


def _config(
  options: Mapping[str, Any], seed: int, variant: str, steps: int
) -> ml_collections.ConfigDict:
  """The config of a probe on all ten digits."""
  config = probing.get_config("digits")
  config.data.classes = ()
  config.model.probe = options["probe"]
  config.model.probe_options = options.get("probe_options", {})
  if variant == "test":
    config.model.backbone_options.update(_SMALL)
    config.data.train_split, config.data.eval_split = "train[:16]", "test[:16]"
    config.batch_size = config.eval_batch_size = 16
  config.seed = seed
  config.train_for = config.evaluate_every = f"{steps} steps"
  config.checkpoint.every = f"{steps} steps"
  config.optimizer.warmup = "5 percent" if variant == "full" else "0 steps"
  return config


def _make_features(
  folder: epath.Path, config: ml_collections.ConfigDict, steps: int, seed: int
) -> features.Record:
  """Trains the trunk and runs it over the images, unless both are there."""
  file = folder / _TRUNK
  if not file.exists():
    from safetensors import numpy as safetensors

    trunk, params = _train_trunk(config, steps, seed)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = pretrained.to_tensors({"params": params}, trunk)
    file.write_bytes(safetensors.save(tensors))
  config = config.copy_and_resolve_references()
  config.init.weights, config.init.part = str(file), "trunk"
  made = str(folder / "features")
  cache_features.cache_features(config, made)
  return features.read_record(made, config.data.eval_split)


class _Filler(nn.Module):
  """A trunk, and a dense layer that makes pixels of each token."""

  trunk: nn.Module
  pixels: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps images to [batch, rows, columns, pixels of a patch]."""
    tokens = self.trunk.features(x, train=True)[-1]
    return layers.Dense(self.pixels, name="decoder")(tokens)


def _train_trunk(
  config: ml_collections.ConfigDict, steps: int, seed: int
) -> tuple[nn.Module, dict[str, Any]]:
  """Returns a trunk without logits, and its parameters."""
  fields = {"num_classes": 0, **config.model.backbone_options}
  trunk = models.create("vit_tiny_16_224", **fields)
  side = trunk.patch_size
  filler = _Filler(trunk, side**2 * config.data.channels)
  pixels = _all_images(config.data)
  schedule = optax.warmup_cosine_decay_schedule(0, 2e-3, 50, max(steps, 51))
  tx = optax.adamw(schedule, b2=0.95, weight_decay=0.05)

  def loss(params, key):
    rows_key, mask_key = jax.random.split(key)
    rows = jax.random.randint(rows_key, (_ROWS_A_STEP,), 0, len(pixels))
    x = pixels[rows]
    # Patches [B, rows, columns, pixels].
    target = jnp.concatenate(
      [x[:, i::side, j::side] for i in range(side) for j in range(side)], -1
    )
    grid = target.shape[:3]
    masked = jax.random.bernoulli(mask_key, 0.5, grid)[..., None]
    where = masked.repeat(side, 1).repeat(side, 2)
    made = filler.apply({"params": params}, jnp.where(where, 0, x))
    return (jnp.abs(made - target) * masked).sum() / (
      masked.sum() * target.shape[-1] + 1e-6
    )

  def step(carry, key):
    params, state = carry
    updates, state = tx.update(jax.grad(loss)(params, key), state, params)
    return (optax.apply_updates(params, updates), state), None

  @jax.jit
  def run(key):
    init_key, run_key = jax.random.split(key)
    params = filler.init(init_key, pixels[:1])["params"]
    keys = jax.random.split(run_key, steps)
    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
    return params["trunk"]

  return trunk, jax.device_get(run(jax.random.key(seed)))


def _all_images(data: ml_collections.ConfigDict) -> jax.Array:
  """The training images as evaluation sees them, normalised."""
  data = data.copy_and_resolve_references()
  data.eval_split = data.train_split
  batches = images.eval_batches(data, batch_size=128)
  pixels = [batch["image"][batch["mask"] > 0] for batch in batches]
  return jnp.asarray(
    (np.concatenate(pixels) / 255.0 - data.mean[0]) / data.std[0], jnp.float32
  )


def _neighbors(
  config: ml_collections.ConfigDict, variables: dict[str, Any]
) -> float:
  """The accuracy of nearest neighbours, by the class token."""
  setup = experiment.create_evaluation(config)
  count = min(_NEIGHBORS, features.num_train_examples(config.data))
  with jax.set_mesh(setup.mesh):
    result = setup.task.evaluate(
      variables, setup.mesh, lambda batches, _: batches, neighbors=count
    )
  return float(result["knn"])


def _multiply_adds(
  model: ml_collections.ConfigDict, shapes: Sequence[tuple[int, ...]]
) -> int:
  """Of the probe, for the maps of one image."""
  head = probes.Head(model.probe, model.probe_options.to_dict(), 10)
  maps = [jax.ShapeDtypeStruct((1, *shape), jnp.float32) for shape in shapes]
  call = functools.partial(head.apply, train=False)
  variables = jax.eval_shape(
    functools.partial(head.init, train=False), jax.random.key(0), maps
  )
  return work.count_work(call, variables, maps).multiply_adds
