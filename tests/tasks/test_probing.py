"""Probing of images and of cached features: the same steps, k-NN, errors."""

import jax
import numpy as np
import pytest

import experiment
import tasks
from configs import probing
from experiment import batches
from input_pipeline import features
from input_pipeline.features import folder
from input_pipeline.images import digits
from tasks import neighbors
from tools import cache_features
from training import evaluation, fingerprints

TRUNK = {
  "patch_size": 8,
  "width": 8,
  "depth": 1,
  "heads": 2,
  "hidden_width": 16,
  "image_size": 16,
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp("digits")
  digits.prepare(path)
  return str(path)


def small(data_dir, probe="ep", **fields):
  config = probing.get_config("digits")
  config.data.data_dir = data_dir
  config.data.image_size = 16
  config.data.train_split = "train[:48]"
  config.data.eval_split = "test[:20]"
  config.data.num_threads = 0
  config.model.backbone_options = TRUNK
  config.model.probe = probe
  config.model.probe_options = {"queries": 2} if probe == "ep" else {}
  # A trunk that the seed draws.
  config.init.weights = config.init.part = ""
  config.batch_size = config.eval_batch_size = 8
  config.train_for = "20 steps"
  config.optimizer.warmup = "0 steps"
  config.update_from_flattened_dict(fields)
  return config


@pytest.fixture(scope="module")
def cached(data_dir, tmp_path_factory):
  """A folder with the features of both splits, in float32."""
  path = str(tmp_path_factory.mktemp("features") / "made")
  cache_features.cache_features(small(data_dir), path, dtype="float32")
  return path


def run(config, steps):
  """Trains, and returns the state, metrics of steps and the experiment."""
  built = experiment.create(config)
  found = []
  with jax.set_mesh(built.mesh):
    state = built.init()
    stream = batches.create_train_batches(built)
    for _ in range(steps):
      batch = evaluation.put_batch(next(stream), built.mesh)
      state, metrics = built.train_step(state, batch)
      found.append(float(metrics["loss"]))
  return state, found, built


@pytest.fixture(scope="module")
def trained(data_dir, cached):
  """The same run, of images and of features."""
  images = small(data_dir)
  held = small(data_dir, **{"data.features": cached})
  return run(images, 6), run(held, 6)


def test_features_train_as_images_do(trained):
  (state, losses, built), (held, held_losses, _) = trained
  np.testing.assert_allclose(held_losses, losses, rtol=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
    held.params["head"],
    state.params["head"],
  )
  # And of what is frozen nothing has moved.
  first = fingerprints.fingerprint(built.init_variables()["params"])
  for after in (state, held):
    last = fingerprints.fingerprint(after.params)
    same = {name for name in first if first[name] == last[name]}
    assert same == {name for name in first if name.startswith("trunk/")}


def test_images_are_evaluated_with_what_features_trained(trained):
  (_, _, images), (held, _, features_run) = trained
  variables = held.variables()
  with jax.set_mesh(images.mesh):
    of_images, of_features = (
      built.task.evaluate_split(built.mesh).run(variables)
      for built in (images, features_run)
    )
  assert of_images["examples"] == of_features["examples"] > 5
  assert of_images["loss"] == pytest.approx(of_features["loss"], rel=1e-4)
  assert of_images["accuracy"] == of_features["accuracy"]
  assert features_run.task.show(variables, [], "") == tasks.Shown()


def test_nearest_neighbours_of_both(trained):
  """Against cosines in float64 of what the trunk gives."""
  (state, _, images), (_, _, held) = trained
  variables = state.variables()
  found = []
  for built in (images, held):
    with jax.set_mesh(built.mesh):
      result = built.task.evaluate(
        variables, built.mesh, lambda x, _: x, neighbors=3, temperature=0.5
      )
    found.append(result["knn"])
  assert "knn" in images.task.report(result)
  assert "nearest neighbours" in images.task.describe(result)
  config = held.config.data
  bank, queries = (
    folder.open_split(config.features, split)
    for split in (config.train_split, config.eval_split)
  )
  right = 0
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  known = unit(np.asarray(bank.maps[1], np.float64)[:, 0, 0])
  for token, label in zip(queries.maps[1], queries.labels, strict=True):
    cosines = known @ unit(token[0, 0].astype(np.float64))
    nearest = np.argsort(-cosines)[:3]
    votes = np.zeros(5)
    np.add.at(votes, bank.labels[nearest], np.exp(cosines[nearest] / 0.5))
    right += votes.argmax() == label
  assert found[0] == found[1] == right / len(queries.labels)


def test_votes_are_weighted_by_cosines():
  bank = neighbors.unit(np.array([[1.0, 0], [0.6, 0.8], [0.6, -0.8], [-1, 0]]))
  labels = np.array([0, 1, 1, 2])
  options = dict(neighbors=3, num_classes=3)
  query = np.array([[1.0, 0.0]], np.float32)
  cold = neighbors.votes(query, bank, labels, temperature=0.1, **options)
  warm = neighbors.votes(query, bank, labels, temperature=10.0, **options)
  assert (int(cold.argmax()), int(warm.argmax())) == (0, 1)
  # Relative to the nearest: exp(-0.4 / T), twice.
  np.testing.assert_allclose(cold[0], [1, 2 * np.exp(-4), 0], rtol=1e-5)


def test_a_split_is_made_once(data_dir, cached, capsys):
  place = folder._place(cached, "test[:20]")
  before = (place / "map_0.npy").read_bytes()
  cache_features.cache_features(small(data_dir), cached, dtype="float32")
  assert (place / "map_0.npy").read_bytes() == before
  assert "is there already" in capsys.readouterr().out
  record = features.read_record(cached, "train[:48]")
  assert record.shapes == ((2, 2, 8), (1, 1, 8))
  # Those of the digits 5 to 9 among 48.
  assert 0 < record.examples <= 48
  other = small(data_dir, seed=1)
  with pytest.raises(ValueError, match=r"has made .* give another --out"):
    cache_features.cache_features(other, cached, dtype="float32")


def test_a_split_that_was_killed_is_not_there(data_dir, tmp_path):
  config, out = small(data_dir), str(tmp_path / "features")

  def stop(*args):
    raise KeyboardInterrupt

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(folder.storage, "write_whole", stop)
    with pytest.raises(KeyboardInterrupt):
      cache_features.cache_features(config, out)
  assert folder.find_record(out, config.data.train_split) is None
  with pytest.raises(ValueError, match="has no split"):
    features.read_record(out, config.data.train_split)


def test_values_that_do_not_fit_are_refused(tmp_path):
  record = features.Record(((1, 1, 2),), "float16", ("a",), {})
  batches = [([np.full((1, 1, 1, 2), 1e5, np.float32)], np.zeros(1, int))]
  with pytest.raises(ValueError, match="not finite in float16"):
    features.write_split(str(tmp_path), "train", record, batches, most=1)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"frozen_trunk": False}, "frozen_trunk is False"),
    ({"mixing.mixup_alpha": 0.2}, "mixing.mixup_alpha is 0.2"),
    ({"seed": 3}, r"init is .*'seed': 3"),
    ({"model.stage": 0}, r"model is .*'stage': 0"),
    ({"data.mean": (0.5,)}, r"data.mean is \[0.5\], which acts on images"),
    ({"data.train_transform": "flip|resize"}, "set it to data.eval_transform"),
    ({"data.eval_split": "test"}, "has no split 'test'"),
  ],
)
def test_features_of_something_else_are_refused(
  data_dir, cached, fields, message
):
  config = small(data_dir, **{"data.features": cached})
  if "model.stage" in fields:
    config.model.stage = -1
  config.update_from_flattened_dict(fields)
  with pytest.raises(ValueError, match=message):
    tasks.create(config, tasks.find("probing").room.dataset_info(config.data))


def test_bad_options(data_dir):
  config = small(data_dir)
  with pytest.raises(ValueError, match="dtype is 'int8'"):
    cache_features.cache_features(config, "nowhere", dtype="int8")
  config.task = "classification"
  with pytest.raises(ValueError, match="task is 'classification'"):
    cache_features.cache_features(config, "nowhere")
  bank = (np.eye(2, dtype=np.float32), np.arange(2))
  for options, message in (
    (dict(neighbors=3, temperature=1.0), "there are 2 examples"),
    (dict(neighbors=-1, temperature=1.0), "neighbors is -1"),
    (dict(neighbors=1, temperature=0.0), "temperature is 0.0"),
  ):
    with pytest.raises(ValueError, match=message):
      neighbors.accuracy(bank, bank, num_classes=2, **options)
