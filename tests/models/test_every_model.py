"""What holds of every name in `models.list()`: a contract for each kind."""

import dataclasses
import functools
import importlib
import inspect
import math

import jax
import jax.numpy as jnp
import pytest

import interpret
import models
from models import registry


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_every_model_of_images_has_an_expected_count(family):
  module = importlib.import_module(family)
  if module.KIND != "image":
    return
  name = family.removeprefix("models.")
  tests = importlib.import_module(f"tests.models.test_{name}")
  # The family's test compares these numbers with what `init` makes.
  assert set(tests.COUNTS) == set(module.VARIANTS)


def test_names_that_others_rely_on():
  names = set(models.list())
  assert {f"halonet_h{i}" for i in range(8)} <= names
  assert {f"duoformer_r50_{n}s" for n in (2, 3, 4)} <= names
  published = (
    "50_160 101_160 101_192 152_192 152_224 152_256 200_256 270_256 350_256 "
    "350_320 420_320"
  )
  assert {f"resnetrs_{name}" for name in published.split()} <= names


def _check_image_model(name):
  model = models.create(name, num_classes=7)
  assert models.image_size(name) > 0
  fields = {field.name for field in dataclasses.fields(model)}
  shared = {"num_classes", "dtype", "param_dtype", "remat"}
  assert shared | {"stochastic_depth_rate"} <= fields
  for method in (model.features, model.classify, model.__call__):
    assert inspect.signature(method).parameters["train"].default is False
  assert isinstance(model.size_multiple, int)


def _check_language_model(name):
  model = models.create(name, **_narrow(name))
  shared = {"vocabulary_size", "width", "depth", "dtype", "param_dtype"}
  assert shared | {"remat"} <= {f.name for f in dataclasses.fields(model)}
  assert inspect.signature(model.__call__).parameters["train"].default is False
  with pytest.raises(ValueError, match=f"{name} is a model of language"):
    models.image_size(name)

  tokens = jax.ShapeDtypeStruct((2, 7), jnp.int32)
  variables = jax.eval_shape(model.init, jax.random.key(0), tokens)

  def shape_of(*args, **options):
    call = lambda variables, *args: model.apply(variables, *args, **options)
    return jax.eval_shape(call, variables, *args)

  logits = jax.ShapeDtypeStruct((2, 7, model.vocabulary_size), jnp.float32)
  assert shape_of(tokens) == logits
  assert shape_of(tokens, method="hidden_states").shape == (2, 7, model.width)
  if not model.causal:
    return
  # A cache keeps its shapes, so that a scan can carry it.
  cache = jax.eval_shape(lambda: model.init_cache(2, 16))

  def step(variables, tokens, positions, cache):
    return model.apply(variables, tokens, positions=positions, cache=cache)

  for length in (7, 1):
    tokens = jax.ShapeDtypeStruct((2, length), jnp.int32)
    out, after = jax.eval_shape(step, variables, tokens, tokens, cache)
    assert (out.shape, out.dtype) == ((2, length, 13), jnp.float32)
    assert after == cache


def _narrow(name):
  """Fields that make a language model small and leave its structure."""
  fields = {field: value for field, (_, value) in models.fields(name).items()}
  narrow = {"width": 16, "heads": 2, "mlp_width": 24, "window": 3}
  narrow |= {"vocabulary_size": 13, "max_length": 16, "dtype": jnp.bfloat16}
  narrow["mixers"] = tuple(dict.fromkeys(fields["mixers"]))
  narrow["depth"] = len(narrow["mixers"])
  # What is 0 follows from the rest.
  narrow["kv_heads"] = 1 if fields["kv_heads"] else 0
  narrow["head_dim"] = 8 if fields["head_dim"] else 0
  options = {"key_heads": 1, "value_heads": 2, "query_hidden": 24}
  narrow["mixer_options"] = {
    mixer: {**own, **{k: v for k, v in options.items() if own.get(k)}}
    for mixer, own in fields["mixer_options"].items()
  }
  return {k: v for k, v in narrow.items() if k in fields}


def _check_generation_model(name):
  model = models.create(name, **SMALL_GENERATION)
  shared = {"width", "grid", "token_dim", "dtype", "param_dtype", "remat"}
  assert shared <= {f.name for f in dataclasses.fields(model)}
  with pytest.raises(ValueError, match=f"{name} is a model of generation"):
    models.image_size(name)
  example = model.example_inputs()
  variables = jax.eval_shape(
    functools.partial(model.init, **example), jax.random.key(0)
  )

  def shape_of(method, *args):
    call = lambda variables, *args: model.apply(variables, *args, method=method)
    return jax.eval_shape(call, variables, *args)

  condition = shape_of("condition", example["labels"])
  tokens, visible = example["tokens"], jnp.zeros((1, 3), jnp.int32)
  z = shape_of("encode_decode", condition, tokens, visible)
  places = math.prod(model.grid)
  assert (z.shape, z.dtype) == ((1, places, model.width), jnp.bfloat16)
  # Several draws of noise for what was computed once.
  x_t, z = tokens[None].repeat(4, 0), jnp.zeros((1, *z.shape), z.dtype)
  velocity = shape_of("velocity", x_t, example["t"][None], z)
  assert (velocity.shape, velocity.dtype) == (x_t.shape, jnp.float32)
  latents = model.unpatchify(tokens)
  assert model.patchify(latents).shape == tokens.shape


def _check_autoencoder(name):
  model = models.create(
    name, width=8, groups=4, blocks=1, dtype="bfloat16", remat=True
  )
  shared = {"channels", "latent_channels", "scaling_factor", "shift", "dtype"}
  shared |= {"param_dtype", "remat"}
  assert shared <= {f.name for f in dataclasses.fields(model)}
  with pytest.raises(ValueError, match=f"{name} is a model of autoencoder"):
    models.image_size(name)
  variables = jax.eval_shape(
    functools.partial(model.init, **model.example_inputs()), jax.random.key(0)
  )

  def shape_of(method, *shape):
    call = lambda variables, x: model.apply(variables, x, method=method)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(call, variables, x)

  side, latents = model.size_multiple, (2, 1, 2, model.latent_channels)
  images = jax.ShapeDtypeStruct(
    (2, side, 2 * side, model.channels), jnp.float32
  )
  moments = shape_of("encode", *images.shape)
  assert moments.shape == (*latents[:-1], 2 * latents[-1])
  assert moments.dtype == jnp.float32
  assert shape_of("decode", *latents) == images


def _check_diffusion_model(name):
  known = models.fields(name)
  small = {field: n for field, n in SMALL_DIFFUSION.items() if field in known}
  model = models.create(name, **small)
  shared = {"sample_shape", "channels", "num_classes", "dtype", "param_dtype"}
  assert shared | {"remat"} <= {f.name for f in dataclasses.fields(model)}
  assert inspect.signature(model.__call__).parameters["train"].default is False
  with pytest.raises(ValueError, match=f"{name} is a model of diffusion"):
    models.image_size(name)
  example = model.example_inputs()
  assert list(example)[:3] == ["x", "time", "label"]
  variables = jax.eval_shape(
    functools.partial(model.init, **example), jax.random.key(0)
  )
  x = jnp.zeros((2, *model.sample_shape, model.channels))
  label = jnp.zeros((2,), jnp.int32)
  out = jax.eval_shape(model.apply, variables, x, jnp.ones((2,)), label)
  channels = model.channels * (1 + getattr(model, "learned_variance", False))
  assert (out.shape, out.dtype) == ((*x.shape[:-1], channels), jnp.float32)


def _check_pair_model(name):
  model = models.create(name, classes=5, dtype="bfloat16", remat=True)
  shared = {"classes", "width", "depth", "dtype", "param_dtype", "remat"}
  assert shared <= {f.name for f in dataclasses.fields(model)}
  assert inspect.signature(model.__call__).parameters["train"].default is False
  with pytest.raises(ValueError, match=f"{name} is a model of pair"):
    models.image_size(name)
  inputs = tuple(model.example_inputs().values())
  variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
  logits = jax.eval_shape(model.apply, variables, *inputs)
  assert logits == jax.ShapeDtypeStruct((1, 2, 2, 5), jnp.float32)


def _check_restoration_model(name):
  known = models.fields(name)
  small = {field: n for field, n in SMALL_RESTORATION.items() if field in known}
  if "refinement_depth" in known:
    small |= {"depths": (1, 1, 1, 1), "refinement_depth": 1}
  model = models.create(name, **small)
  shared = {"scale", "dtype", "param_dtype", "remat"}
  assert shared <= {f.name for f in dataclasses.fields(model)}
  assert inspect.signature(model.__call__).parameters["train"].default is False
  with pytest.raises(ValueError, match=f"{name} is a model of restoration"):
    models.image_size(name)
  side = model.size_multiple
  x = jax.ShapeDtypeStruct((2, side, 2 * side, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), x)
  out = jax.eval_shape(model.apply, variables, x)
  larger = (2, model.scale * side, 2 * model.scale * side, 3)
  assert out == jax.ShapeDtypeStruct(larger, jnp.float32)


def _check_detection_model(name):
  model = models.create(name, num_classes=5, dtype="bfloat16", remat=True)
  shared = {"num_classes", "backbone", "dtype", "param_dtype", "remat"}
  assert shared <= {f.name for f in dataclasses.fields(model)}
  assert inspect.signature(model.__call__).parameters["train"].default is False
  with pytest.raises(ValueError, match=f"{name} is a model of detection"):
    models.image_size(name)
  x = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), x)
  logits, boxes = jax.eval_shape(model.apply, variables, x)
  assert logits == jax.ShapeDtypeStruct((2, 64, 5), jnp.float32)
  assert boxes == jax.ShapeDtypeStruct((2, 64, 4), jnp.float32)


def _check_potential(name):
  model = models.create(
    name, width=16, heads=2, depth=1, dtype="bfloat16", remat=True
  )
  shared = {"elements", "cutoff", "max_neighbors", "forces", "energy_reduce"}
  shared |= {"dtype", "param_dtype", "remat"}
  assert shared <= {f.name for f in dataclasses.fields(model)}
  assert inspect.signature(model.__call__).parameters["train"].default is False
  with pytest.raises(ValueError, match=f"{name} is a model of potential"):
    models.image_size(name)
  variables = jax.eval_shape(
    functools.partial(model.init, **model.example_inputs()), jax.random.key(0)
  )
  numbers = jax.ShapeDtypeStruct((2, 4), jnp.int32)
  positions = jax.ShapeDtypeStruct((2, 4, 3), jnp.float32)
  made = jax.eval_shape(model.apply, variables, numbers, positions)
  assert made.energy == jax.ShapeDtypeStruct((2,), jnp.float32)
  assert made.forces == positions


def _check_forecasting_model(name):
  model = models.create(name, size=5, dtype="bfloat16", remat=True)
  shared = {"size", "width", "depth", "dtype", "param_dtype", "remat"}
  assert shared <= {f.name for f in dataclasses.fields(model)}
  assert inspect.signature(model.__call__).parameters["train"].default is False
  with pytest.raises(ValueError, match=f"{name} is a model of forecasting"):
    models.image_size(name)
  example = model.example_inputs()
  variables = jax.eval_shape(
    functools.partial(model.init, **example), jax.random.key(0)
  )
  states = jnp.zeros((2, 7, 5))
  out, carry = jax.eval_shape(model.apply, variables, states)
  assert (out.shape, out.dtype) == (states.shape, jnp.float32)

  def step(variables, state, carry):
    return model.apply(variables, state, carry, method="step")

  # What is carried keeps its shapes, so that a scan can.
  state, after = jax.eval_shape(step, variables, states[:, 0], carry)
  assert (state.shape, state.dtype) == ((2, 5), jnp.float32)
  assert after == carry


def _check_vision_language_model(name):
  model = models.create(name, vocabulary_size=13, dtype="bfloat16", remat=True)
  shared = {"vision", "compression", "dtype", "param_dtype", "remat"}
  assert shared <= {f.name for f in dataclasses.fields(model)}
  assert inspect.signature(model.__call__).parameters["train"].default is False
  with pytest.raises(ValueError, match=f"{name} is a model of vision_language"):
    models.image_size(name)
  side = model.vision["image_size"]
  images = jax.ShapeDtypeStruct((2, side, side, 1), jnp.float32)
  tokens = jax.ShapeDtypeStruct((2, 7), jnp.int32)
  variables = jax.eval_shape(model.init, jax.random.key(0), tokens, images)
  logits = jax.ShapeDtypeStruct((2, 7, 13), jnp.float32)
  assert jax.eval_shape(model.apply, variables, tokens, images) == logits
  # A text without an image, as one that goes on from a cache.
  assert jax.eval_shape(model.apply, variables, tokens) == logits


# What makes a model small and leaves its structure.
SMALL_DIFFUSION = {
  "width": 16,
  "depth": 1,
  "widths": (16, 8),
  "depths": (1, 1),
  "heads": 2,
  "dtype": "bfloat16",
  "remat": True,
}
SMALL_RESTORATION = {
  "blocks": 1,
  "depths": (2,),
  "dtype": "bfloat16",
  "remat": True,
}
SMALL_GENERATION = {
  "width": 16,
  "heads": 2,
  "connector_layers": 1,
  "encoder_layers": 1,
  "decoder_layers": 1,
  "flow_layers": 1,
  "queries": 4,
  "grid": (2, 3),
  "dtype": "bfloat16",
  "remat": True,
}
CONTRACTS = {
  "image": _check_image_model,
  "language": _check_language_model,
  "generation": _check_generation_model,
  "diffusion": _check_diffusion_model,
  "autoencoder": _check_autoencoder,
  "pair": _check_pair_model,
  "restoration": _check_restoration_model,
  "detection": _check_detection_model,
  "potential": _check_potential,
  "forecasting": _check_forecasting_model,
  "vision_language": _check_vision_language_model,
}


@pytest.mark.parametrize("name", models.list())
def test_the_contract_of_a_model(name):
  CONTRACTS[models.kind(name)](name)


@pytest.mark.parametrize(
  ("name", "fields"),
  [
    ("autoencoder_digits", {"width": 8, "groups": 4, "blocks": 1}),
    ("dimr_xl_2r", {"widths": (16, 8), "depths": (1, 1), "heads": 2}),
    ("dit_s_2", {"width": 16, "depth": 1, "heads": 2}),
    ("escaip_md22", {"width": 16, "heads": 2, "depth": 1}),
    ("forecasting_lstm", {"size": 5}),
    ("lina_d48w768", SMALL_GENERATION),
    ("pair_attention", {"classes": 5}),
  ],
)
def test_values_of_any_model_can_be_read(name, fields):
  model = models.create(name, **fields)
  example = model.example_inputs()
  init = functools.partial(model.init, **example)
  variables = jax.eval_shape(init, jax.random.key(0))
  named = interpret.list_taps(model, variables, example)
  ends = {name.rpartition("/")[2] for name in named}
  assert ends & {"hidden_state", "attention_weights"}


def test_unknown_sizes():
  with pytest.raises(ValueError, match=r"'halonet_h9'; did you mean"):
    registry.image_size("halonet_h9")
