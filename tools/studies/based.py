"""BASED: recall grows with the bytes that a model keeps of what it read.

Claimed (arXiv 2402.18668, figure 2): linear attention with the Taylor features
of exp recalls more per byte of state than a sliding window, and reaches softmax
attention. Measured: accuracy of multi-query associative recall against the
bytes of the cache of a row, of two layers, a gated convolution and the mixer in
question, as in the paper without feed-forward layers and positions, at 64
tokens. Controls: linear attention with the features of elu, and convolutions
alone. Ours: a vocabulary of 128 with zeros between the queries, since random
tokens would often be keys again, one rate of learning, weights of deviation
width^(-1/2) at the start, for small ones stand still for most of so short a
training, and three layers where the window is added.
"""

import io
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from matplotlib.figure import Figure

from configs import sequences
from tools import study

_LENGTH = 64
_PAIRS = (4, 8, 16)
_TAYLOR = {"feature_map": "taylor", "epsilon": 1e-12}
# Of a picture's curves; what has one size is a point.
_KINDS = {
  "sliding": "sliding window",
  "taylor": "Taylor features",
  "based": "Taylor features and window",
  "softmax": "softmax",
  "elu": "elu features",
  "convolution": "convolutions alone",
}


def _models() -> dict[str, dict]:
  """Fields of the model by the name of a row; its first word is its kind."""
  models = {"softmax": {"mixers": ("convolution", "full")}}
  for window in (8, 16, 32):
    models[f"sliding {window}"] = {
      "mixers": ("convolution", "sliding"),
      "window": window,
    }
  for features in (4, 8, 16):
    models[f"taylor {features}"] = {
      "mixers": ("convolution", "linear"),
      "mixer_options": {"linear": {**_TAYLOR, "feature_dim": features}},
    }
  models["based 8"] = {
    "mixers": ("convolution", "linear", "sliding"),
    "depth": 3,
    "window": 8,
    "mixer_options": {"linear": {**_TAYLOR, "feature_dim": 8}},
  }
  models["elu"] = {"mixers": ("convolution", "linear")}
  models["convolution"] = {"mixers": ("convolution",)}
  return models


def rows(variant: str) -> Sequence[study.Row]:
  """Softmax, windows, Taylor features, both, and controls."""
  made, models = [], _models()
  for name, fields in models.items():
    if variant == "test":
      # Two models have all the mixers, and compiling more is all that it costs.
      controls = ("softmax", "elu", "convolution")
      fields = models["softmax" if name in controls else "based 8"]
    config = sequences.get_config("mqar")
    config.data.options.update(
      length=_LENGTH,
      pairs=_PAIRS,
      vocabulary_size=128,
      random_non_queries=False,
    )
    config.model.update(
      width=64, depth=2, heads=1, mlp="none", position_encoding="none"
    )
    config.model.update(init_scale=0.125, **fields)
    config.data.eval_examples = 500
    config.batch_size = 32
    config.train_for = config.evaluate_every = "400 steps"
    config.checkpoint.every = "400 steps"
    config.optimizer.learning_rate = 5e-3
    if variant == "test":
      config = study.shrunk(config)
    made.append(study.Row(name, config))
  return made


def measure(run: study.Run) -> dict[str, int]:
  """The bytes of all that is kept of a row of the task's length."""
  model = run.task.model
  cache = jax.eval_shape(lambda: model.init_cache(1, _LENGTH))
  sizes = [x.size * x.dtype.itemsize for x in jax.tree.leaves(cache)]
  return {"state_bytes": sum(sizes)}


def tables(lines: Sequence[Mapping]) -> dict[str, str]:
  """State, accuracy in all and by the number of pairs."""
  made = []
  groups = [f"accuracy_{n}_pairs" for n in _PAIRS]
  for name in dict.fromkeys(line["row"] for line in lines):
    own = [line for line in lines if line["row"] == name]
    figures = [
      study.spread([100 * line[of] for line in own if of in line], 1)
      for of in ("accuracy", *groups)
    ]
    sizes = [f"{own[0]['parameters']:,}", f"{own[0]['state_bytes']:,}"]
    made.append([name, *sizes, str(len(own)), *figures])
  header = ("model", "parameters", "state, bytes", "seeds", "accuracy %")
  header += tuple(f"of {n} pairs" for n in _PAIRS)
  return {"based": study.markdown(header, made)}


def pictures(lines: Sequence[Mapping]) -> dict[str, bytes]:
  """Accuracy against bytes, the mean and the seeds."""
  figure = Figure(figsize=(6, 4), layout="constrained")
  axes = figure.add_subplot(
    xlabel="bytes of state of a row of 64 tokens",
    ylabel="accuracy of recall, %",
  )
  for kind, label in _KINDS.items():
    own = [line for line in lines if line["row"].split()[0] == kind]
    sizes = sorted({line["state_bytes"] for line in own})
    accuracies = [
      [100 * line["accuracy"] for line in own if line["state_bytes"] == size]
      for size in sizes
    ]
    (curve,) = axes.plot(sizes, [*map(np.mean, accuracies)], "o-", label=label)
    for size, values in zip(sizes, accuracies, strict=True):
      axes.plot([size] * len(values), values, ".", color=curve.get_color())
  axes.set_xscale("log", base=2)
  axes.xaxis.set_major_formatter(lambda size, _: f"{size:,.0f}")
  axes.grid(alpha=0.3)
  axes.legend(fontsize="small")
  file = io.BytesIO()
  # No version of the library, so that the same lines are the same file.
  figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
  return {"recall.png": file.getvalue()}
