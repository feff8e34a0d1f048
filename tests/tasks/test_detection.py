"""Detection: targets, losses, what is found, and a run of it."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import tasks
from configs import shapes
from models import point_detector
from sample_metrics import boxes as box_metrics
from tasks import detection_targets
from training import sharding

SMALL = {"depth": 1, "width": 16, "heads": 2, "hidden_width": 16}


def config_of(variant="source", **model):
  config = shapes.get_config(variant)
  options = {**config.model.get("backbone_options", {}), **SMALL}
  options |= {"patch_size": 8, "image_size": 64, "class_token": False}
  config.model.update(dict(backbone_options=options, head_width=8, **model))
  config.batch_size = config.eval_batch_size = 4
  config.data.update(train_examples=4, eval_examples=6)
  config.train_for = config.evaluate_every = config.checkpoint.every = "2 steps"
  config.optimizer.warmup = "0 steps"
  return config


def task_of(**model):
  config = config_of(**model)
  task = tasks.find("detection")
  return task(config, task.room.dataset_info(config.data))


def test_places_get_the_smallest_box_that_they_are_in():
  rng = np.random.default_rng(0)
  low = rng.uniform(0, 20, (5, 3, 2))
  boxes = np.concatenate([low, low + rng.uniform(3, 20, (5, 3, 2))], -1)
  labels = rng.integers(-1, 4, (5, 3))
  # Between places, so that it goes to the nearest.
  boxes[0, 0], labels[0] = (9, 9, 11, 11), (2, -1, -1)
  centers = np.asarray(point_detector.places((4, 4), 8.0))
  found = detection_targets.assigned(
    jnp.asarray(centers), jnp.asarray(boxes), jnp.asarray(labels)
  )
  for image, p in itertools.product(range(5), range(len(centers))):
    own = []
    for box, label in zip(boxes[image], labels[image], strict=True):
      corner, end = box[:2], box[2:]
      within = ((centers > corner) & (centers < end)).all(-1)
      if not within.any():
        middle = (corner + end) / 2
        within[((centers - middle) ** 2).sum(-1).argmin()] = True
      if label >= 0 and within[p]:
        own.append((np.prod(end - corner), label, box))
    expected = min(own, key=lambda x: x[0]) if own else (0, -1, None)
    assert found[0][image, p] == expected[1]
    if own:
      np.testing.assert_allclose(found[1][image, p], expected[2], rtol=1e-6)
  assert (np.asarray(found[0][0]) >= 0).sum() == 1


def test_losses_are_their_formulas():
  rng = np.random.default_rng(1)
  logits = rng.normal(0, 3, (2, 5, 3))
  labels = np.array([[0, -1, 2, 1, -1], [-1] * 5])
  expected = np.zeros(2)
  for b, p, c in np.ndindex(logits.shape):
    share = 1 / (1 + np.exp(-logits[b, p, c]))
    if labels[b, p] == c:
      expected[b] -= 0.25 * (1 - share) ** 2 * np.log(share)
    else:
      expected[b] -= 0.75 * share**2 * np.log(1 - share)
  found = detection_targets.focal_loss(jnp.asarray(logits), jnp.asarray(labels))
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  low = rng.uniform(0, 10, (2, 6, 2))
  x, y = np.concatenate([low, low + rng.uniform(1, 9, (2, 6, 2))], -1)
  shared = box_metrics.intersection_over_union(x, y).diagonal()
  area = [np.prod(z[:, 2:] - z[:, :2], -1) for z in (x, y)]
  union = sum(area) / (1 + shared)
  corner, end = np.minimum(x, y)[:, :2], np.maximum(x, y)[:, 2:]
  around = np.prod(end - corner, -1)
  found = detection_targets.generalized_iou(jnp.asarray(x), jnp.asarray(y))
  np.testing.assert_allclose(
    found, shared - (around - union) / around, rtol=1e-5, atol=1e-6
  )
  assert float(found.min()) < 0
  gradient = jax.grad(lambda x: detection_targets.generalized_iou(x, x).sum())
  assert np.isfinite(gradient(jnp.zeros((2, 4)))).all()


def test_of_boxes_that_overlap_the_best_stays():
  rng = np.random.default_rng(2)
  low = rng.uniform(0, 8, (1, 20, 2))
  boxes = np.concatenate([low, low + rng.uniform(8, 12, (1, 20, 2))], -1)
  logits = rng.normal(size=(1, 20, 2))
  (found,) = np.asarray(
    detection_targets.found(jnp.asarray(logits), jnp.asarray(boxes), 15, 0.4)
  )
  order = np.argsort(-logits[0].ravel())[:15]
  kept = []
  for n in order:
    place, label = divmod(n, 2)
    rivals = [boxes[0, p] for p, other in kept if other == label]
    overlap = box_metrics.intersection_over_union(
      boxes[0, place][None], np.reshape(rivals, (-1, 4))
    )
    if not (overlap > 0.4).any():
      kept.append((place, label))
  there = found[:, 4] > 0
  assert 2 < there.sum() == len(kept) < 15
  np.testing.assert_allclose(
    found[there, :4], [boxes[0, p] for p, _ in kept], rtol=1e-6
  )
  np.testing.assert_array_equal(found[there, 5], [label for _, label in kept])
  assert (np.diff(found[there, 4]) <= 0).all()


def test_what_is_true_is_found_whatever_the_batches():
  """A model that knows: precision is 1, and padding counts nowhere."""
  task = task_of()
  batches = list(task.room.eval_batches(task.config.data, batch_size=6))
  true = batches[0]

  class Knows:
    def apply(self, variables, images, train):
      del variables, train
      pixels = jnp.round((images + 1) * 127.5)
      same = pixels[:, None] == true["image"][None].astype(np.float32)
      number = same.all((2, 3, 4)).argmax(1)
      labels = jnp.asarray(true["labels"])[number]
      logits = jnp.where(jax.nn.one_hot(labels, 4) > 0, 9.0, -9.0)
      rest = jnp.full((len(images), 61, 4), -9.0)
      boxes = jnp.asarray(true["boxes"])[number]
      return (
        jnp.concatenate([logits, rest], 1),
        jnp.pad(boxes, ((0, 0), (0, 61), (0, 0))),
      )

  task.model = Knows()
  step = jax.jit(task.evaluate_step)
  results = []
  for size in (6, 4):
    totals = {}
    for batch in task.room.eval_batches(task.config.data, batch_size=size):
      rows = {name: jnp.asarray(x) for name, x in batch.items()}
      if size == 4:
        rows["image"] = jnp.where(
          (rows["index"] < 0)[:, None, None, None],
          jnp.asarray(true["image"][:1]),
          rows["image"],
        )
      for name, x in step({}, rows).items():
        totals[name] = totals.get(name, 0) + np.asarray(x, np.float64)
    results.append(task.summarize(totals))
  for result in results:
    assert result["ap"] == result["ap50"] == 1
    assert result["images"] == 6
  assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-5)


def test_prototypes_move_in_training_alone():
  task = task_of(refinement="residual", thresholds=(-1.0, -1.0))
  batch = next(
    task.room.train_iterator(task.config.data, seed=0, global_batch_size=4)
  )
  batch = {name: jnp.asarray(x) for name, x in batch.items()}
  with jax.set_mesh(sharding.create_mesh(task.config.mesh, jax.devices()[:1])):
    variables = jax.jit(task.init)(jax.random.key(0))
    step = jax.jit(task.loss)
    loss, (moved, sums) = step(variables, batch, jax.random.key(1))
  assert np.isfinite(loss)
  assert sums["weight"] == 4
  before, after = (
    x["prototypes"]["refine"]["classes"] for x in (variables, moved)
  )
  assert not np.asarray(before).any()
  seen = set(np.unique(batch["labels"])) - {-1}
  there = np.asarray(after).any(-1)
  assert set(np.flatnonzero(there)) == seen
  images = (batch["image"].astype(jnp.float32)) / 127.5 - 1
  known = {**variables, **moved}
  plain = dataclasses.replace(task.model, refinement="none")
  params = {"params": variables["params"]}
  with_them, without = (
    model.apply(own, images)[0]
    for model, own in ((task.model, known), (plain, params))
  )
  assert np.abs(with_them - without).max() > 1e-4


def test_errors():
  config = config_of()
  config.model.backbone = "gpt2"
  task = tasks.find("detection")(config, task_of().info)
  with pytest.raises(
    ValueError, match="backbone is 'gpt2', of kind 'language'"
  ):
    task.init(jax.random.key(0))
  with pytest.raises(ValueError, match="no refinement 'some'"):
    task_of(refinement="some").init(jax.random.key(0))
  assert isinstance(shapes.get_config(), ml_collections.ConfigDict)
  with pytest.raises(ValueError, match="few_shot"):
    shapes.get_config("many")
