"""Hierarchical attention: few examples, and in the place of trained softmax.

Claimed (arXiv 2509.15448): with the tree of a text an encoder of one layer
tells more than with softmax of the same size, and in late layers of a trained
encoder softmax can be replaced without training, for a part of the
multiply-adds. Measured: the share of sequences whose sentence with the marked
word is named rightly, from few examples and from more, one layer of
hierarchical attention over sentences against one of softmax; and the accuracy
of a trained encoder of four layers within sentences, with layers replaced.
Controls: softmax within each sentence, which knows the sentences too but sees
no other, and replacing the first layer instead of last ones. Ours: the task,
and all sizes.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from attention import hierarchical
from configs import sequences
from input_pipeline import sequences as room
from tasks.sequence_labeling import SequenceLabeling
from tools import study

_LENGTH, _SENTENCES = 64, 4
_FEW, _MORE = 2000, 50_000
_LEVEL = {
  "branchings": (),
  "segments_are": "level",
  "max_segments": _SENTENCES,
}
# Rows of one layer: the mixer, its options, whether it is told the sentences.
_ONE_LAYER = {
  "softmax": ("full", {}, False),
  "softmax in sentences": ("full", {}, True),
  "hierarchical": ("hierarchical", _LEVEL, True),
}
_DEEP = "softmax in sentences, 4 layers"
# Of those four, which are replaced, and by windows of what size.
_REPLACED = {
  "none": ((), ()),
  "4th, windows of 4": ((3,), (4,)),
  "3rd and 4th, windows of 4": ((2, 3), (4,)),
  "1st, windows of 4": ((0,), (4,)),
}


def rows(variant: str) -> Sequence[study.Row]:
  """One layer of each kind with few and more examples, and four of softmax."""
  made = []
  for name, (mixer, options, told) in _ONE_LAYER.items():
    for examples in (_FEW, _MORE):
      config = _config(examples, told)
      config.model.mixers = (mixer,)
      if options:
        config.model.mixer_options = {mixer: options}
      made.append(study.Row(f"{name}, {examples} examples", config))
  deep = _config(_MORE, True)
  deep.model.depth = 4
  deep.optimizer.learning_rate = 3e-3
  made.append(study.Row(_DEEP, deep))
  if variant == "test":
    made = [study.Row(row.name, study.shrunk(row.config)) for row in made]
  return made


def _config(examples: int, told: bool):
  config = sequences.get_config("marked_word")
  config.data.options.update(
    length=_LENGTH, sentences=_SENTENCES, segments=told
  )
  config.data.train_examples = examples
  config.data.eval_examples = 500
  config.train_for = config.evaluate_every = "400 steps"
  config.checkpoint.every = "400 steps"
  config.optimizer.learning_rate = 5e-3
  return config


def measure(run: study.Run) -> dict[str, float]:
  """Of four layers of softmax, the accuracy with layers replaced."""
  model = run.task.model
  if run.row.name != _DEEP:
    return {}
  found = {}
  for name, (layers, branchings) in _REPLACED.items():
    config = run.config.copy_and_resolve_references()
    config.model.mixers = tuple(
      "hierarchical" if i in layers else "full" for i in range(model.depth)
    )
    if layers:
      config.model.mixer_options = {"hierarchical": {"branchings": branchings}}
    task = SequenceLabeling(config, run.task.info)
    found[f"accuracy, {name}"] = _accuracy(task, run.variables, config)
    found[f"multiply-adds, {name}"] = sum(
      _SENTENCES
      * model.heads
      * hierarchical.multiply_adds(
        _LENGTH // _SENTENCES,
        branchings if i in layers else (),
        model.width // model.heads,
      )
      for i in range(model.depth)
    )
  return found


def _accuracy(task, variables, config) -> float:
  step = jax.jit(task.evaluate_step)
  batches = room.eval_batches(config.data, batch_size=config.eval_batch_size)
  totals = [
    step(variables, {k: v for k, v in batch.items() if k != "index"})
    for batch in batches
  ]
  totals = jax.tree.map(lambda *x: np.sum(x, axis=0), *totals)
  return task.summarize(totals)["accuracy"]


def tables(lines: Sequence[Mapping]) -> dict[str, str]:
  """Accuracy of one layer, and of four with some replaced."""
  made = []
  for name in _ONE_LAYER:
    figures, sizes = [], set()
    for examples in (_FEW, _MORE):
      own = [x for x in lines if x["row"] == f"{name}, {examples} examples"]
      figures.append(study.spread([100 * x["accuracy"] for x in own], 1))
      sizes |= {x["parameters"] for x in own}
    made.append([name, *(f"{size:,}" for size in sizes), *figures])
  header = ["one layer", "parameters"]
  header += [f"accuracy %, {n} examples" for n in (_FEW, _MORE)]
  deep = [line for line in lines if line["row"] == _DEEP]
  replaced = []
  for name in _REPLACED:
    adds = deep[0][f"multiply-adds, {name}"]
    accuracy = [100 * line[f"accuracy, {name}"] for line in deep]
    replaced.append([name, f"{adds:,}", study.spread(accuracy, 1)])
  return {
    "hierarchical": study.markdown(header, made),
    "hierarchical replaced": study.markdown(
      ["replaced of 4 layers", "multiply-adds of attention", "accuracy %"],
      replaced,
    ),
  }
