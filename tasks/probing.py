"""Probing: classification by a small head on a trunk that stays as it is."""

import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from input_pipeline import features as feature_data
from tasks import losses, neighbors
from tasks.base import Batch, Progress, Shown, Variables
from tasks.classification import Classification
from training import evaluation

_KNN = types.MappingProxyType(
  {
    "neighbors": (
      0,
      "Classify by so many nearest neighbours in the training split too.",
    ),
    "temperature": (0.07, "Of the weights of neighbours."),
  }
)


class Probing(Classification):
  """Classification with a frozen trunk, of images or of what it made of them.

  With `config.data.features` the trunk ran once (`tools/cache_features.py`),
  and batches have its maps: map_0, map_1 and so on, what the model's
  `features` gives. The model and its variables are the same in both cases, so
  what was trained on features evaluates images.
  """

  room = feature_data
  evaluate_options = types.MappingProxyType(
    {**Classification.evaluate_options, **_KNN}
  )

  def __init__(self, config: ml_collections.ConfigDict, info: Any):
    """Makes the model, and compares it with the features, if there are any.

    Raises:
      ValueError: for a field of the config that does not fit.
    """
    super().__init__(config, info)
    self._record = None
    if config.data.features:
      self._record = feature_data.read_record(
        config.data.features, config.data.eval_split
      )
      self._check_features()

  @staticmethod
  def default_config() -> ml_collections.ConfigDict:
    """Those of classification, with a frozen trunk."""
    config = Classification.default_config()
    # A folder of tools/cache_features.py; "" runs the trunk in each step.
    config.data.features = ""
    config.model.name = "probed_vit_base_16_224"
    config.frozen_trunk = True
    return config

  def made_by(self) -> dict[str, Any]:
    """What decides over features, as in JSON: images, model and weights."""
    config = self.config
    init = config.init.to_dict()
    start = {name: init[name] for name in ("weights", "step", "ema", "part")}
    if not config.init.weights:
      # A trunk that was drawn.
      start["seed"] = config.seed
    model = config.model.to_dict()
    for name in ("probe", "probe_options"):
      model.pop(name, None)
    made = {"images": feature_data.image_fields(config.data), "init": start}
    made |= {"model": model, "dtype": config.dtype}
    return _as_in_json(made)

  def map_shapes(self) -> list[tuple[int, ...]]:
    """Those of an image's maps, [rows, columns, width]."""
    size = self.config.data.image_size
    images = jnp.zeros((1, size, size, self.config.data.channels))

    def run(key):
      variables = self.model.init(key, images)
      return self.model.apply(variables, images, method="features")

    maps = jax.eval_shape(run, jax.random.key(0))
    return [x.shape[1:] for x in maps]

  def batch_spec(
    self, rows: int, *, train: bool
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """As `Classification.batch_spec`, or map_0, map_1, ... for image."""
    spec = super().batch_spec(rows, train=train)
    if self._record is None:
      return spec
    del spec["image"]
    maps = {
      f"map_{i}": jax.ShapeDtypeStruct((rows, *shape), self._record.dtype)
      for i, shape in enumerate(self._record.shapes)
    }
    return maps | spec

  def prepare(self, key: jax.Array, batch: Batch) -> Batch:
    """As `Classification.prepare`; features are left as they are."""
    if self._record is None:
      return super().prepare(key, batch)
    batch = self._masked(batch)
    targets = jax.nn.one_hot(batch["label"], self.num_classes)
    smoothing = self.config.loss.label_smoothing
    return {**batch, "target": losses.smooth_labels(targets, smoothing)}

  def inputs(
    self, variables: Variables, batch: Batch
  ) -> tuple[Any, str | None]:
    """The maps and "classify", if a batch has them."""
    if self._record is None:
      return super().inputs(variables, batch)
    return self._maps(variables, batch), "classify"

  def logits(self, variables: Variables, batch: Batch) -> jax.Array:
    """In evaluation, float32 [batch, classes]."""
    if self._record is None:
      return super().logits(variables, batch)
    maps = self._maps(variables, batch)
    return self.model.apply(variables, maps, train=False, method="classify")

  def features(self, variables: Variables, batch: Batch) -> list[jax.Array]:
    """What the trunk makes of a batch of evaluation, [batch, ...] each."""
    if self._record is not None:
      return self._maps(variables, batch)
    images = self.normalize(batch["image"])
    return self.model.apply(variables, images, method="features")

  def evaluate(
    self,
    variables: Variables,
    mesh: jax.sharding.Mesh,
    progress: Progress,
    *,
    neighbors: int = 0,
    temperature: float = 0.07,
    **options: Any,
  ) -> dict[str, Any]:
    """Evaluates the split; with `neighbors` adds knn, their accuracy.

    Of the class token, or of the mean of the last map without one; examples to
    compare with are the training split's, as evaluation sees images.
    """
    if neighbors:
      knn = self._knn(variables, mesh, progress, neighbors, temperature)
    result = super().evaluate(variables, mesh, progress, **options)
    return result | ({"knn": knn} if neighbors else {})

  @staticmethod
  def describe(result: Mapping[str, Any]) -> str:
    """As of classification, and the accuracy of neighbours."""
    text = Classification.describe(result)
    return text + (
      f"; nearest neighbours {result['knn']:.2%}" if "knn" in result else ""
    )

  @staticmethod
  def report(result: Mapping[str, Any]) -> dict[str, Any]:
    """As of classification, and knn."""
    knn = {"knn": result["knn"]} if "knn" in result else {}
    return Classification.report(result) | knn

  def show(self, variables, evaluations, workdir) -> Shown:
    """Draws predictions, if there are images to draw."""
    if self._record is not None:
      return Shown()
    return super().show(variables, evaluations, workdir)

  def _maps(self, variables: Variables, batch: Batch) -> list[jax.Array]:
    del variables
    count = len(self._record.shapes)
    return [batch[f"map_{i}"].astype(jnp.float32) for i in range(count)]

  def _knn(self, variables, mesh, progress, count, temperature) -> float:
    neighbors.check(count, temperature)
    if jax.process_count() > 1:
      raise ValueError(
        f"neighbors is {count}; nearest neighbours are found in one process, "
        f"and there are {jax.process_count()}."
      )

    @jax.jit
    def embed(variables, batch):
      return neighbors.unit(self.features(variables, batch)[-1].mean((1, 2)))

    def collect(split):
      data = self.config.data.copy_and_resolve_references()
      data.eval_split = split
      rows = self.config.eval_batch_size
      spec = self.batch_spec(rows, train=False)
      batches = self.room.eval_batches(data, batch_size=rows)
      total = -(-self._examples(data) // rows)
      features, labels = [], []
      for batch in progress(batches, total):
        known = (batch["mask"] > 0) & (batch["label"] >= 0)
        put = evaluation.put_batch({n: batch[n] for n in spec}, mesh)
        features.append(np.asarray(embed(variables, put))[known])
        labels.append(batch["label"][known])
      return np.concatenate(features), np.concatenate(labels)

    if self.info.many_labels:
      raise ValueError(
        f"neighbors is {count}; they vote for one class, but images of "
        f"{self.config.data.label!r} have several."
      )
    data = self.config.data
    return neighbors.accuracy(
      collect(data.train_split),
      collect(data.eval_split),
      neighbors=count,
      temperature=temperature,
      num_classes=self.num_classes,
    )

  def _examples(self, data: ml_collections.ConfigDict) -> int:
    return self.room.dataset_info(data).num_eval_examples

  def _check_features(self) -> None:
    config = self.config
    if not config.frozen_trunk:
      raise ValueError(
        "frozen_trunk is False, but data.features are of a trunk that does not "
        "change: set it, or data.features=''."
      )
    for name in ("mixup_alpha", "cutmix_alpha"):
      if config.mixing[name]:
        raise ValueError(
          f"mixing.{name} is {config.mixing[name]}, which mixes images, but "
          "data.features has none: set it to 0."
        )
    wanted, have = self.made_by(), self._record.made
    for part, fields in wanted.items():
      if part != "images" and fields != have[part]:
        raise ValueError(
          f"{part} is {fields}, but data.features={config.data.features!r} "
          f"were made with {have[part]}: make them again with "
          "tools.cache_features."
        )


def _as_in_json(tree: Mapping[str, Any]) -> dict[str, Any]:
  """With lists for tuples, as what was read compares with."""
  if isinstance(tree, Mapping):
    return {name: _as_in_json(value) for name, value in tree.items()}
  if isinstance(tree, list | tuple):
    return [_as_in_json(value) for value in tree]
  return tree
