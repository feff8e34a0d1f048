"""Restoration: losses, whole images measured, folded weights, the programs."""

import csv
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import eval as eval_program
import experiment
import tasks
from configs import span as configs
from experiment import ranges
from experiment.weights import load_weights
from input_pipeline import restoration as room
from models import span
from sample import sample
from tasks import restoration_evaluation
from train import train_and_evaluate
from training import optimizers, schedules, sharding
from training.durations import Clock

SHARED = pathlib.Path(__file__).parents[3] / "shared/data"
ROWS = 3


def make_config(**changes):
  config = configs.get_config("test")
  with config.unlocked():
    config.update_from_flattened_dict(changes)
  return config


def create(config):
  return tasks.create(config, tasks.find(config.task).sampling_info(config))


@pytest.fixture(scope="module")
def task():
  return create(make_config())


@pytest.fixture(scope="module")
def variables(task):
  """So that restored images are somewhere from black to white."""
  fresh = task.init(jax.random.key(0))
  return jax.tree.map(lambda x: 0.5 * x, fresh)


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  return {
    name: jnp.asarray(rng.integers(0, 256, (ROWS, n, n, 3)), jnp.uint8)
    for name, n in (("degraded", 8), ("clean", 16))
  }


@pytest.fixture
def folder(tmp_path):
  """Pairs of two sizes, neither square, the larger one smooth."""
  path = tmp_path / "pairs"
  path.mkdir()
  rng = np.random.default_rng(1)
  for name, shape in (("a", (26, 34, 3)), ("b", (22, 18, 3))):
    clean = room.imresize(rng.integers(0, 256, shape).astype(np.uint8), 2)
    clean = clean[: shape[0], : shape[1]]
    Image.fromarray(clean).save(path / f"{name}_HR.png")
    degraded = room.imresize(clean, 0.5)
    Image.fromarray(degraded).save(path / f"{name}_LR.png")
  return path


def size_of(path):
  with Image.open(path) as image:
    return image.size


@pytest.mark.parametrize("name", ["l1", "charbonnier"])
def test_losses_are_means_over_values(task, variables, batch, name):
  config = make_config(**{"loss.name": name, "loss.epsilon": 0.1})
  task = create(config)
  loss = jax.jit(task.loss)
  total, (collections, sums) = loss(variables, batch, jax.random.key(0))
  degraded, clean = (np.asarray(batch[n], np.float32) / 255 for n in batch)
  d = np.asarray(task.model.apply(variables, degraded), np.float64) - clean
  each = np.abs(d) if name == "l1" else np.sqrt(d**2 + 0.1**2)
  assert collections == {}
  np.testing.assert_allclose(total, each.mean() * ROWS, rtol=1e-5)
  assert (sums["weight"], sums["loss"]) == (ROWS, total)
  evaluated = jax.jit(task.evaluate_step)(variables, batch)
  np.testing.assert_allclose(evaluated["loss"], total, rtol=1e-6)
  assert evaluated["weight"] == ROWS


def test_the_gradient_is_finite_where_images_are_equal():
  task = create(make_config(**{"loss.name": "charbonnier"}))
  slope = jax.grad(lambda d: task.error(d).sum())(jnp.array([-1.0, 0.0, 1.0]))
  np.testing.assert_allclose(slope, [-1, 0, 1], atol=1e-6)


def test_whole_images_are_measured_as_they_are(variables, folder, tmp_path):
  config = make_config(**{"data.name": "folder", "data.folder": str(folder)})
  setup = experiment.create_evaluation(config)
  table = tmp_path / "table.csv"
  seen = []
  result = setup.task.evaluate(
    variables,
    setup.mesh,
    lambda pairs, total: seen.append(total) or pairs,
    per_image=str(table),
  )
  errors, losses, plain = [], [], []
  apply = jax.jit(setup.task.model.apply)
  for name in "ab":
    clean, degraded = (
      np.asarray(Image.open(folder / f"{name}_{kind}.png"))
      for kind in ("HR", "LR")
    )
    rows = degraded[None] / np.float32(255)
    restored = np.asarray(apply(variables, rows), np.float64)[0]
    losses.append(np.abs(restored - clean / 255).mean())
    pixels = np.rint(255 * np.clip(restored, 0, 1))
    bicubic = np.float64(room.imresize(degraded, 2))
    # Two pixels of each edge do not count, as images are enlarged by two.
    for image, into in ((pixels, errors), (bicubic, plain)):
      into.append(((image - clean)[2:-2, 2:-2] ** 2).mean())
  psnr = lambda errors: np.mean([10 * math.log10(255**2 / e) for e in errors])
  assert result["psnr_rgb"] == pytest.approx(psnr(errors), rel=1e-5)
  assert result["baseline_psnr_rgb"] == pytest.approx(psnr(plain), rel=1e-9)
  assert result["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
  assert (result["images"], seen) == (2, [2])
  with open(table) as file:
    rows = list(csv.DictReader(file))
  assert [(r["name"], r["height"], r["width"]) for r in rows] == [
    ("a", "26", "34"),
    ("b", "22", "18"),
  ]
  mean = np.mean([float(row["psnr_rgb"]) for row in rows])
  assert mean == pytest.approx(result["psnr_rgb"], abs=1e-4)
  assert not any(math.isnan(value) for value in result.values())
  report = setup.task.report(result)
  assert set(restoration_evaluation.MEASURES) | {"images"} <= set(report)
  assert "of 2 images" in setup.task.describe(result)
  # With tiles, of which one program is made, a border that is too thin to hide
  # the tiles' edges changes the figures a little.
  tiled = setup.task.evaluate(
    variables, setup.mesh, lambda p, _: p, tile=6, overlap=2
  )
  assert tiled["psnr_rgb"] == pytest.approx(result["psnr_rgb"], abs=0.5)
  assert tiled["psnr_rgb"] != result["psnr_rgb"]


def test_each_degradation_has_its_figures(folder):
  kinds = ("noise(sigma=5)", "noise(sigma=50)")
  config = make_config(
    **{
      "model.scale": 1,
      "data.scale": 1,
      "data.name": "folder",
      "data.folder": str(folder / "clean"),
      "data.degradations": kinds,
    }
  )
  (folder / "clean").mkdir()
  (folder / "a_HR.png").rename(folder / "clean/a.png")
  setup = experiment.create_evaluation(config)
  variables = setup.init_variables()
  rounded = setup.task.evaluate(variables, setup.mesh, lambda pairs, _: pairs)
  assert rounded["images"] == 2
  of_kinds = [rounded[f"psnr_y_{kind}"] for kind in kinds]
  assert np.mean(of_kinds) == pytest.approx(rounded["psnr_y"])
  assert of_kinds[0] != of_kinds[1]
  # All pixels count, as nothing is enlarged.
  pairs = list(room.eval_pairs(config.data))
  errors = [np.square(np.float64(p.degraded) - p.clean).mean() for p in pairs]
  assert rounded["baseline_psnr_rgb"] == pytest.approx(
    np.mean([10 * math.log10(255**2 / e) for e in errors])
  )
  config.evaluation.rounded = False
  exact = experiment.create_evaluation(config).task.evaluate(
    variables, setup.mesh, lambda pairs, _: pairs
  )
  difference = abs(exact["psnr_rgb"] - rounded["psnr_rgb"])
  assert 0 < difference < 0.1


def test_a_run_is_evaluated_folded(task, variables):
  deploy = create(make_config(**{"model.form": "deploy"}))
  received = deploy.received(variables)
  shapes = lambda tree: jax.tree.map(jnp.shape, tree)
  assert shapes(received) == shapes(deploy.init(jax.random.key(0)))
  x = jax.random.uniform(jax.random.key(1), (1, 7, 5, 3))
  np.testing.assert_allclose(
    deploy.model.apply(received, x),
    task.model.apply(variables, x),
    rtol=1e-4,
    atol=1e-4,
  )
  # What is folded already, and a model that is not, stay what they are.
  assert deploy.received(received) is received
  assert task.received(variables) is variables


# Trains, and compiles the network for six sizes of images.
@pytest.mark.slow
def test_the_three_programs(folder, tmp_path, capsys):
  run = str(tmp_path / "run")
  config = make_config(
    **{
      "data.name": "folder",
      "data.folder": str(folder),
      "data.train_folder": str(folder),
    }
  )
  train_and_evaluate(config, run)
  assert "restored.png" in capsys.readouterr().out
  assert size_of(f"{run}/restored.png") == (392, 262)
  saved = experiment.load_trained(run)
  with saved.unlocked():
    saved.model.form = "deploy"
  eval_program.main(saved, run, self_ensemble=True)
  line = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert line["images"] == 2
  assert math.isfinite(line["psnr_y"])
  assert math.isfinite(line["ssim_y"])
  # Where the pairs were is of no concern to an image of one's own.
  saved.data.folder = "gone"
  out = tmp_path / "out"
  sample(saved, run, input=str(folder), out=str(out), tile=8, overlap=4)
  told = capsys.readouterr()
  assert "4 in" in told.out
  found = {path.name: size_of(path) for path in out.iterdir()}
  assert found["a_LR.png"] == (34, 26)
  assert found["a_HR.png"] == (68, 52)
  assert len(found) == 4


# Compiles the network for images of five sizes, and for tiles.
@pytest.mark.slow
def test_the_public_network_on_set5(tmp_path):
  """The right value, 31.746 dB, by the command that the docs give."""
  data = SHARED / "super_resolution/Set5/x4"
  weights = SHARED / "span/span_ch28_x4.safetensors"
  if not (data.is_dir() and weights.is_file()):
    pytest.skip("shared/data has no span or super_resolution")
  config = configs.get_config("c28_x4")
  config.data.folder = str(data)
  setup = experiment.create_evaluation(config)
  table = tmp_path / "table.csv"
  loaded = load_weights(setup, str(weights))
  whole = lambda pairs, total: pairs
  result = setup.task.evaluate(loaded, setup.mesh, whole, per_image=str(table))
  with open(table) as file:
    rows = [float(row["psnr_y"]) for row in csv.DictReader(file)]
  np.testing.assert_allclose(
    rows, [33.55, 34.38, 27.83, 32.90, 30.08], atol=0.006
  )
  assert result["psnr_y"] == pytest.approx(31.7459, abs=1e-3)
  # Pillow's bicubic is not MATLAB's; published is 28.42.
  assert result["baseline_psnr_y"] == pytest.approx(28.43, abs=0.02)
  # Tiles cost nothing where they overlap enough, and little where not at all.
  for tile, overlap, least, most in ((64, 42, 0, 1e-3), (64, 0, 1e-3, 0.05)):
    tiled = setup.task.evaluate(
      loaded, setup.mesh, whole, tile=tile, overlap=overlap
    )
    assert least <= result["psnr_y"] - tiled["psnr_y"] + 1e-4 <= most


def test_variants():
  for variant in configs.VARIANTS:
    config = configs.get_config(variant)
    ranges.check(config)
    create(config)
    optimizers.check_unused(config.optimizer)
    clock = Clock(1000, config.batch_size)
    total = clock.steps(config.train_for, "train_for")
    clock = Clock(1000, config.batch_size, total)
    schedule = schedules.create_schedule(config.optimizer, clock)
    assert float(schedule(total // 2)) > 0
    optimizers.create_optimizer(config.optimizer, schedule)
  for name, count in (("c28_x4", 150_688), ("c26_x4", 130_828)):
    task = create(configs.get_config(name))
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
    assert isinstance(task.model, span.Span)
  with pytest.raises(ValueError, match="no variant 'x4'; it has photographs_x"):
    configs.get_config("x4")


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"model.name": "maxvit_tiny_224"}, "is of kind 'image'"),
    ({"data.scale": 3}, "data.scale=3 must be 2, by which model.name='span"),
    ({"loss.name": "l2"}, "loss.name='l2' must be one of l1, charbonnier"),
    ({"evaluation.tile": -1}, "evaluation.tile=-1 must be a whole number"),
  ],
)
def test_configs_that_do_not_fit(change, message):
  config = make_config()
  with config.unlocked():
    del config.model.channels, config.model.blocks
    config.update_from_flattened_dict(change)
  with pytest.raises(ValueError, match=message):
    experiment.create(config)


def test_tiles_that_do_not_fit_are_refused_before_training():
  config = make_config(**{"evaluation.tile": 8, "evaluation.overlap": 8})
  task = create(config)
  with pytest.raises(ValueError, match="overlap=8 must be from 0 to 7"):
    task.evaluations(sharding.create_mesh(config.mesh))


def test_pairs_of_another_scale():
  pair = room.Pair("a", np.zeros((4, 5, 3), np.uint8), np.zeros((8, 11, 3)))
  with pytest.raises(ValueError, match=r"a: the clean image is \[8, 11, 3\]"):
    restoration_evaluation.check_pair(pair, 2)
