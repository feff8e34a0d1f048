"""A transformer without MLP and with fewer matrices is nearly as good.

Bermeitinger et al. (arXiv 2410.13732) claim that validation performance is
similar with a tenth to a third of the parameters. Measured: loss and accuracy
of digits, on all that are trained on and on all that are not, and bits per byte
of text, against the full transformer with one head and with several.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from configs import language, sequences
from input_pipeline.sequences.digits import Digits
from tools import study

WIDTH = 32
# Name: (heads, projections, MLP).
ON_DIGITS = {
  "1 head": (1, "separate", "gelu"),
  "4 heads": (4, "separate", "gelu"),
  "1 head, no MLP": (1, "separate", "none"),
  "4 heads, no MLP": (4, "separate", "none"),
  "merged": (1, "merged", "gelu"),
  "none, no MLP": (1, "none", "none"),
  "4 heads, symmetric, no MLP": (4, "symmetric", "none"),
}
# Name: (projections, MLP).
ON_BYTES = {
  "bytes": ("separate", "swiglu"),
  "bytes, no MLP": ("separate", "none"),
  "bytes, symmetric, no MLP": ("symmetric", "none"),
}


def rows(variant: str) -> Sequence[study.Row]:
  """The models on digits, and three of them on text."""
  of = [(name, _digits(*how)) for name, how in ON_DIGITS.items()]
  of += [(name, _bytes(*how)) for name, how in ON_BYTES.items()]
  if variant == "test":
    of = [(name, _small(config)) for name, config in of]
  return [study.Row(name, config) for name, config in of]


def measure(run: study.Run) -> dict[str, float]:
  """Loss and accuracy of all digits, and how overdetermined the weights are.

  That is (examples times outputs) / parameters, the paper's Q.
  """
  if run.row.name not in ON_DIGITS:
    return {}
  apply = jax.jit(run.task.model.apply)
  found = {}
  for split in ("train", "eval"):
    inputs, labels = Digits().load(split)
    logits = apply(run.variables, inputs).mean(1)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    found[f"{split}_loss"] = float(nats.mean())
    right = jnp.argmax(logits, -1) == labels
    found[f"{split}_accuracy"] = float(right.mean())
  examples = len(Digits().load("train")[1])
  weights = sum(x.size for x in jax.tree.leaves(run.variables["params"]))
  found["overdetermination"] = examples * Digits().classes / weights
  return found


def tables(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """Digits under one mark, text under another."""
  digits, text = [], []
  for name in (*ON_DIGITS, *ON_BYTES):
    own = [line for line in lines if line["row"] == name]
    parameters = f"{own[0]['parameters']:,}"
    of = lambda key, digits, factor=1, own=own: study.spread(
      [factor * line[key] for line in own], digits
    )
    if name in ON_BYTES:
      text.append([name, parameters, of("bits_per_byte", 3)])
      continue
    ratio = np.mean([line["overdetermination"] for line in own])
    digits.append(
      [
        name,
        parameters,
        f"{ratio:.2f}",
        of("train_loss", 4),
        of("eval_loss", 3),
        of("train_accuracy", 1, 100),
        of("eval_accuracy", 1, 100),
      ]
    )
  return {
    "minimal_transformer_digits": study.markdown(
      (
        "digits",
        "parameters",
        "Q",
        "training loss",
        "validation loss",
        "training accuracy, %",
        "validation accuracy, %",
      ),
      digits,
    ),
    "minimal_transformer_bytes": study.markdown(
      ("text", "parameters", "bits per byte"), text
    ),
  }


def _digits(
  heads: int, projections: str, mlp: str
) -> ml_collections.ConfigDict:
  config = sequences.get_config("digits")
  config.model.update(dict(width=WIDTH, heads=heads, mlp=mlp))
  return _with(config, projections)


def _bytes(projections: str, mlp: str) -> ml_collections.ConfigDict:
  config = language.get_config("study")
  # What is the default is left out, so that the run is that of other studies.
  if mlp == "none":
    config.model.mlp = mlp
  return _with(config, projections)


def _with(
  config: ml_collections.ConfigDict, projections: str
) -> ml_collections.ConfigDict:
  if projections != "separate":
    config.model.mixer_options = {"full": {"projections": projections}}
  return config


def _small(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  heads = config.model.heads
  config = study.shrunk(config)
  if heads == 1:
    config.model.heads = 1
  return config
