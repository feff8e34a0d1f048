"""Training on meshes of eight devices, and compiled for eight chips."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

import experiment
import models
from configs import digits, language, lina
from input_pipeline import images, latents, text
from tests import compiler_flags
from training import paths

ROOT = Path(__file__).parent.parent


def train_on(job, meshes, folder):
  """Runs `mesh_program.py`, with eight devices; returns what it found."""
  flags = "--xla_force_host_platform_device_count=8"
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"{compiler_flags.QUICK} {flags}",
    "PYTHONPATH": str(ROOT),
  }
  program = ROOT / "tests" / "mesh_program.py"
  done = subprocess.run(
    [sys.executable, str(program), job, str(folder), *meshes],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


# Each compiles a training step for every mesh.
@pytest.mark.slow
@pytest.mark.kill
@pytest.mark.parametrize(
  ("job", "meshes"),
  [
    ("digits", ("all", "model")),
    ("lina", ("all",)),
    ("language", ("data", "all", "model", "sequence")),
  ],
)
def test_eight_devices_train_as_one_and_resume_what_one_saved(
  job, meshes, tmp_path
):
  found = train_on(job, meshes, tmp_path)
  assert found["one"]["moved"] > 0.05
  for name in meshes:
    assert found[name]["distance"] < 1e-5, (name, found)
    assert found[name]["resumed"] < 1e-5, (name, found)
    assert abs(found[name]["loss"] / found["one"]["loss"] - 1) < 1e-5
    split = [" over fsdp and model " in line for line in found[name]["said"]]
    assert any(split) == (name != "data")


IMAGES = images.DatasetInfo(
  num_eval_examples=5, class_names=("a", "b"), num_train_examples=64
)
PIXELS = latents.DatasetInfo(
  num_eval_examples=5,
  class_names=tuple("0123456789"),
  image_shape=(8, 8, 1),
  num_train_examples=64,
)
TEXT = text.TextInfo(256, None, num_eval_examples=10, num_train_examples=1000)
SMALL = {
  "digits": (
    lambda: digits.get_config("tiny"),
    IMAGES,
    {
      "data.image_size": 32,
      "model.widths": (64,),
      "model.head_dim": 32,
      "model.window_size": 8,
    },
  ),
  "lina": (
    lambda: lina.get_config("test"),
    PIXELS,
    {"model.width": 128, "model.heads": 4},
  ),
  "language": (
    lambda: language.get_config("test"),
    TEXT,
    {"model.width": 128, "model.heads": 4, "data.length": 128},
  ),
}
ALL = {"data": 2, "fsdp": 2, "model": 2}


def create_small(job, mesh, devices):
  make, info, fields = SMALL[job]
  config = make()
  config.dtype = "bfloat16"
  config.update_from_flattened_dict(fields)
  config.mesh.update(mesh)
  return experiment.create(config, devices, info)


# Without a chip JAX cannot read what an earlier run kept, says so and compiles.
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")
@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.parametrize(
  ("job", "mesh", "kernels"),
  [
    ("digits", ALL, 4),
    ("lina", ALL, 8),
    ("language", ALL, 6),
    ("language", {"data": 8}, 6),
  ],
)
def test_kernels_are_in_the_step_for_eight_chips(job, mesh, kernels):
  devices = topologies.get_topology_desc(
    platform="tpu", topology_name="v5e:2x4"
  ).devices
  made = create_small(job, mesh, devices)
  with jax.set_mesh(made.mesh):
    compiled = made.train_step.lower(made.state, made.batch).compile()
  program = compiled.as_text()
  assert program.count('custom_call_target="tpu_custom_call"') >= kernels
  # The batch stays split where parameters are: these are what FSDP gathers.
  sizes = {leaf.size for leaf in jax.tree.leaves(made.state.params)}
  sizes |= {size // 2 for size in sizes}
  gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", program)
  assert bool(gathered) == (mesh is ALL)
  if job != "lina":
    for shape in set(gathered):
      assert math.prod(map(int, shape.split(","))) in sizes, shape


MODELS = {
  "maxvit_tiny_224": (
    dict(
      depths=(2,),
      widths=(32,),
      stem_widths=(8, 8),
      num_classes=2,
      bias_ranks={"stage_0/block_1/grid_attention": 2},
    ),
    (28, 28, 3),
  ),
  "halonet_h0": (dict(num_classes=2), (64, 64, 3)),
  "flowformer_224": (dict(widths=(24,), depths=(1,)), (32, 32, 3)),
  "vit_tiny_16_224": (dict(depth=1), (32, 32, 3)),
  "hat_s_x2": (dict(depths=(2,)), (16, 16, 3)),
}
SAMPLERS = {
  "dit_s_2": [
    dict(width=16, depth=1, heads=2, conditioning=conditioning)
    for conditioning in ("cross", "joint")
  ],
  "dimr_xl_2r": [dict(widths=(16, 8), depths=(1, 1), heads=2)],
}


def names_of(model, *args, **inputs):
  init = lambda: model.init(jax.random.key(0), *args, **inputs)
  variables = jax.eval_shape(init)
  return list(paths.flatten_with_names(variables))


def every_name(family):
  """The names of a family's variables, whatever its fields make."""
  tokens = jnp.zeros((1, 8), int)
  if family == "transformer":
    options = dict(width=16, depth=1, heads=2, vocabulary_size=8)
    options |= dict(attention_bias=True, mlp_bias=True, tied_head=False)
    options |= dict(head_bias=True, output_gate="elementwise")
    made = [
      models.create(family, scan_layers=scan, **options)
      for scan in (False, True)
    ]
    return [name for model in made for name in names_of(model, tokens)]
  if family == "lina":
    made = create_small("lina", {"data": 4}, jax.devices())
    return list(paths.flatten_with_names(made.state.params))
  if family in SAMPLERS:
    made = [models.create(family, **fields) for fields in SAMPLERS[family]]
    named = [names_of(model, **model.example_inputs()) for model in made]
    return [name for names in named for name in names]
  fields, shape = MODELS[family]
  model = models.create(family, **fields)
  return names_of(model, jnp.zeros((1, *shape)))


@pytest.mark.parametrize(
  ("family", "name"),
  [
    ("maxvit_tiny_224", "maxvit_tiny_224"),
    ("halonet_h0", "halonet_h0"),
    ("flowformer_224", "flowformer_224"),
    ("vit_tiny_16_224", "vit_base_16_224"),
    ("hat_s_x2", "hat_l_x4"),
    ("dit_s_2", "dit_xl_2"),
    ("dimr_xl_2r", "dimr_g_2r"),
    ("lina", "lina_d48w768"),
    ("transformer", "transformer"),
  ],
)
def test_each_rule_of_a_family_takes_something(family, name):
  rules = models.sharding_rules(name)
  patterns = paths.check_pairs("SHARDING_RULES", rules)
  groups = paths.group_by_rule("SHARDING_RULES", patterns, every_name(family))
  assert groups


def test_families_without_rules():
  assert models.sharding_rules("resnet50") == ()
  with pytest.raises(ValueError, match="there is no model 'resnet51'"):
    models.sharding_rules("resnet51")
