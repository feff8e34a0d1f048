"""Values are read and replaced by name, and nothing else is computed."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.extend import core

import models
from models import halo_mixer, sequence_mixers, taps, token_mixers
from tests.models import small

MAP = "attention_weights"
MIXER_MAP = f"mixer/{MAP}"
QUERIES_KEYS_VALUES = ("queries", "keys", "values")
MIXERS = [
  *token_mixers.TOKEN_MIXERS,
  "global_attention",
  # A convolution has no map.
  *(m for m in sequence_mixers.SEQUENCE_MIXERS if m != "convolution"),
]


class Layer(nn.Module):
  """A mixer among other things, as a layer of a model."""

  mixer: functools.partial

  @nn.compact
  def __call__(self, x, _=None):
    y = self.mixer(name="mixer")(x)
    # A mixer of sequences has a cache beside it.
    y = y[0] if isinstance(y, tuple) else y
    return taps.tap(self, "hidden_state", x + y), None


class Layers(taps.Tapped):
  """Layers one after another, or in a scan."""

  mixer: functools.partial
  depth: int = 2
  scan: bool = False

  @nn.compact
  def __call__(self, x):
    if self.scan:
      axes = dict.fromkeys(("params", *taps.COLLECTIONS), 0)
      scanned = nn.scan(
        nn.remat(Layer),
        variable_axes=axes,
        split_rngs={"params": True},
        length=self.depth,
      )
      return scanned(self.mixer, name="layers")(x, None)[0]
    for i in range(self.depth):
      x, _ = nn.remat(Layer)(self.mixer, name=f"layer_{i}")(x)
    return x


def create(mixer="block_attention", implementation="xla", **fields):
  inputs = small.images(channels=8, size=4)
  options = {"head_dim": 4, "heads": 2, "implementation": implementation}
  if mixer in sequence_mixers.SEQUENCE_MIXERS:
    inputs = inputs.reshape(2, 16, 8)
    options |= {"kv_heads": 1, "window": 5}
    options |= {"output_gate": "headwise", "key_gate": True}
    options["causal"] = mixer != "hierarchical"
    # Its kernel has no decay.
    options["decay"] = "none" if implementation == "tpu" else "data"
    make = functools.partial(sequence_mixers.create, mixer, options)
  elif mixer == "global_attention":
    make = functools.partial(
      halo_mixer.GlobalAttention, 4, 2, implementation=implementation
    )
  else:
    options |= {"window_size": 2, "block_size": 2, "halo_size": 1}
    make = functools.partial(token_mixers.create, mixer, options)
  return Layers(make, **fields), inputs


def init(*args, **fields):
  model, images = create(*args, **fields)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  rng = np.random.default_rng(0)
  # Far from a start, where all that a mixer says is small.
  draw = lambda x: rng.normal(size=x.shape, scale=0.5).astype(np.float32)
  return model, jax.tree.map(draw, shapes), images


def read(model, *args, **options):
  return jax.jit(functools.partial(taps.read, model, **options))(*args)


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_map_of_every_mixer_is_read_and_replaced(mixer):
  model, variables, images = init(mixer)
  path = f"layer_1/{MIXER_MAP}"
  out, values = read(model, variables, images, names=[path])
  assert list(values) == [path]
  weights = values[path]
  if mixer != "flow":
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
  expected = jax.jit(model.apply)(variables, images)
  np.testing.assert_allclose(out, expected, atol=1e-5)

  def replaced(weights):
    edit = {path: weights}
    out, values = taps.read(model, variables, images, names=[path], edit=edit)
    return out[0, 0].sum(), (out, values[path])

  run = jax.jit(jax.grad(replaced, has_aux=True))
  gradient, (same, seen) = run(weights)
  np.testing.assert_allclose(same, expected, atol=1e-5)
  np.testing.assert_array_equal(seen, weights)
  assert jnp.abs(gradient).max() > 0
  # The output is linear in the last map, and its first row in this gradient.
  other = jnp.roll(weights, 1, -1)
  moved = run(other)[1][0][0, 0].sum() - same[0, 0].sum()
  np.testing.assert_allclose(moved, (gradient * (other - weights)).sum(), 1e-3)


def stacked(variables, depth):
  layers = (variables["params"][f"layer_{i}"] for i in range(depth))
  stack = jax.tree.map(lambda *layers: jnp.stack(layers), *layers)
  return {"params": {"layers": stack}}


def test_scanned_layers_are_named_as_others():
  model, variables, images = init(depth=3)
  scanned, in_scan = model.clone(scan=True), stacked(variables, 3)
  _, values = read(model, variables, images, names=["*"])
  edit = {f"layer_{i}/{MIXER_MAP}": jnp.zeros((2, 4, 2, 4, 4)) for i in (0, 2)}
  edit["layer_2/hidden_state"] = values["layer_0/hidden_state"]
  for edited in ({}, edit):
    out, values = read(model, variables, images, names=["*"], edit=edited)
    same, others = read(scanned, in_scan, images, names=["*"], edit=edited)
    np.testing.assert_allclose(same, out, rtol=1e-4, atol=1e-5)
    assert set(others) == set(values)
    for name, value in values.items():
      np.testing.assert_allclose(others[name], value, rtol=1e-4, atol=1e-5)
  with pytest.raises(ValueError, match="did you mean layer_"):
    taps.read(scanned, in_scan, images, names=["layers/hidden_state"])


def test_values_come_in_the_order_of_layers():
  """Also out of jit, for those who stack them."""
  model, images = create(depth=11)
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  expected = [f"layer_{i}/hidden_state" for i in range(11)]
  read = functools.partial(taps.read, model, names=["*/hidden_state"])
  _, values = jax.eval_shape(read, variables, images)
  assert list(values) == expected
  listed = taps.list_names(model, variables, images)
  assert [name for name in listed if name in expected] == expected


def test_statistics_of_batches_move_beside_what_is_read_and_edited():
  model, images = small.model(depths=(1, 1)), small.images()
  variables = jax.eval_shape(model.init, jax.random.key(0), images)
  edit = {"stage_1/*/hidden_state": lambda x, site: 0.5 * x}
  moving = {"train": True, "mutable": ["batch_stats"]}
  read = functools.partial(
    taps.read, model, names=["logits"], edit=edit, **moving
  )
  (out, state), values = jax.eval_shape(read, variables, images)
  shapes = functools.partial(jax.tree.map, jnp.shape)
  assert set(state) == {"batch_stats"}
  assert shapes(state["batch_stats"]) == shapes(variables["batch_stats"])
  assert values["logits"] == out
  edited = functools.partial(taps.edited(model, edit).apply, **moving)
  assert jax.eval_shape(edited, variables, images) == (out, state)


def _kernels(jaxpr):
  """How many kernels a program calls, those of its parts included."""
  return sum(
    equation.primitive.name == "pallas_call"
    or sum(map(_kernels, core.jaxprs_in_params(equation.params)))
    for equation in jaxpr.eqns
  )


@pytest.mark.parametrize("mixer", MIXERS)
def test_only_the_map_that_is_read_is_computed_in_the_open(mixer):
  model, images = create(mixer, implementation="tpu")
  variables = jax.eval_shape(model.init, jax.random.key(0), images)

  def count(apply, **options):
    program = jax.make_jaxpr(functools.partial(apply, **options))
    return _kernels(program(variables, images).jaxpr)

  read = functools.partial(taps.read, model)
  assert count(read, names=["layer_1/hidden_state"]) == 2
  assert count(read, names=[f"layer_1/{MIXER_MAP}"]) == 1
  # Flax's collection opens them all.
  assert count(model.apply, mutable=["intermediates"]) == 0


def test_misspelt_names_are_errors_with_the_near_ones():
  model, variables, images = init()
  wrong = f"layer_1/mixr/{MAP}"
  near = rf"{wrong}'; did you mean layer_1/{MIXER_MAP}"
  with pytest.raises(ValueError, match=near):
    taps.read(model, variables, images, names=[wrong])
  with pytest.raises(ValueError, match="no tap 'layer_7/"):
    taps.read(model, variables, images, names=["layer_7/*"])
  # Where nothing is near, all there is, with layers once.
  with pytest.raises(ValueError, match=r"known: \['layer_\*/hidden_state', '"):
    taps.read(model, variables, images, names=["xyz"])
  weights = jnp.zeros((2, 4, 2, 4, 4))
  with pytest.raises(ValueError, match=near):
    taps.read(model, variables, images, edit={wrong: weights})
  # Also where a model is applied.
  with pytest.raises(ValueError, match=near):
    taps.edited(model, {wrong: weights}).apply(variables, images)
  right = {f"layer_1/{MIXER_MAP}": weights[1:]}
  with pytest.raises(ValueError, match=f"{MAP} has shape"):
    taps.read(model, variables, images, edit=right)


def test_nothing_is_left_where_nobody_looks():
  model, variables, images = init()
  assert set(variables) == {"params"}
  of_mixers = ("attention_scores", MAP, "head_outputs", *QUERIES_KEYS_VALUES)
  names = sorted(
    f"layer_{i}/{name}"
    for i in (0, 1)
    for name in ("hidden_state", *(f"mixer/{name}" for name in of_mixers))
  )
  assert taps.list_names(model, variables, images) == names
  look = functools.partial(
    model.apply, mutable=["intermediates", "batch_stats"]
  )
  _, state = jax.eval_shape(look, variables, images)
  # All that there is, and by Flax's own way.
  assert set(state) == {"intermediates"}
  found = traverse_util.flatten_dict(state["intermediates"], sep="/")
  assert sorted(found) == names
  # 4 x 4 tokens are 4 windows of 4.
  assert found[f"layer_0/{MIXER_MAP}"].shape == (2, 4, 2, 4, 4)


def test_a_transformer_is_read_while_it_decodes():
  model = models.create(
    "transformer",
    vocabulary_size=13,
    width=8,
    depth=4,
    heads=2,
    mixers=("sliding", "full"),
    window=3,
    scan_layers=True,
  )
  tokens = jnp.ones((2, 1), jnp.int32)
  variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
  names = [f"layer_[23]/{name}" for name in ("hidden_state", MIXER_MAP)]
  step = functools.partial(taps.read, model, names=names, positions=tokens)
  cache = model.init_cache(2, 7)
  (logits, after), values = jax.eval_shape(step, variables, tokens, cache=cache)
  assert logits.shape == (2, 1, 13)
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, cache)
  # Of a query the keys that the cache has room for, a ring of three or all.
  assert {name: value.shape for name, value in values.items()} == {
    "layer_2/hidden_state": (2, 1, 8),
    "layer_3/hidden_state": (2, 1, 8),
    "layer_2/mixer/attention_weights": (2, 2, 1, 3),
    "layer_3/mixer/attention_weights": (2, 2, 1, 7),
  }
