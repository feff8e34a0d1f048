"""Edits: functions of values, in their order, in scans and while decoding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interpret
import models
from models import decoding, taps
from models.layer_stacking import stack_layers
from tests import parity_helper

MAPS = "layer_*/mixer/attention_weights"
SOME_MAPS = "layer_[13]/mixer/attention_weights"
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 13, (2, 7)))


@functools.cache
def transformer(scan=False, **fields):
  model = models.create(
    "transformer",
    vocabulary_size=13,
    width=8,
    depth=4,
    heads=2,
    kv_heads=1,
    mixers=("sliding", "full"),
    window=3,
    **fields,
  )
  shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
  variables = parity_helper.randomise(shapes, 0)
  if scan:
    model = model.clone(scan_layers=True)
    variables = {"params": stack_layers(variables["params"], 2)}
  return model, variables


def both(run):
  """What a function of a model gives, in plain layers and in scanned ones."""
  return [jax.jit(functools.partial(run, m))(v) for m, v in map(made, (0, 1))]


def made(scan):
  return transformer(bool(scan))


def test_all_values_of_a_layer_are_there_with_their_shapes():
  model, variables = transformer()
  found = interpret.list_taps(model, variables, TOKENS)
  layer = {
    "input_state": (2, 7, 8),
    "mixer/queries": (2, 7, 2, 4),
    "mixer/keys": (2, 7, 1, 4),
    "mixer/values": (2, 7, 1, 4),
    "mixer/attention_scores": (2, 2, 7, 7),
    "mixer/attention_weights": (2, 2, 7, 7),
    "mixer/head_outputs": (2, 7, 2, 4),
    "mixer_output": (2, 7, 8),
    "middle_state": (2, 7, 8),
    "mlp/hidden": (2, 7, 32),
    "mlp_output": (2, 7, 8),
    "hidden_state": (2, 7, 8),
  }
  names = {f"layer_{i}/{n}": s for i in range(4) for n, s in layer.items()}
  names |= {
    "embedded_state": (2, 7, 8),
    "final_state": (2, 7, 8),
    "logits": (2, 7, 13),
  }
  assert {name: value.shape for name, value in found.items()} == names
  scanned, stacked = transformer(scan=True)
  assert interpret.list_taps(scanned, stacked, TOKENS) == found


@pytest.mark.parametrize("scan", [False, True])
def test_an_edit_of_any_value_moves_the_logits(scan):
  model, variables = transformer(scan)
  names = [
    name
    for name in interpret.list_taps(model, variables, TOKENS)
    if "layer_" not in name or "layer_1" in name
  ]

  def halve(number):
    return lambda x, site: jnp.where(site.given == number, 0.5 * x, x)

  edit = {name: halve(number) for number, name in enumerate(names)}

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(None, 0))
  def run(variables, given):
    return interpret.run(
      model, variables, TOKENS, read=names, edit=edit, given=given
    )

  # The last one halves nothing.
  out, values = run(variables, jnp.arange(len(names) + 1))
  np.testing.assert_allclose(
    out[-1], jax.jit(model.apply)(variables, TOKENS), rtol=1e-4, atol=1e-5
  )
  for number, name in enumerate(names):
    assert np.abs(out[number] - out[-1]).max() > 1e-4, name
    halved, value = (values[name][i] for i in (number, -1))
    # Scores of hidden keys are no numbers.
    np.testing.assert_allclose(halved, 0.5 * value, rtol=1e-4, atol=1e-6)


def test_edits_run_in_their_order_and_know_their_layers():
  def run(model, variables):
    edit = {
      "layer_*/hidden_state": lambda x, site: x + site.layer,
      "layer_[12]/hidden_state": lambda x, site: 2.0 * x,
      "layer_3/*_state": lambda x, site: x - 5.0,
    }
    names = ["layer_*/mlp_output", "layer_*/*_state"]
    return interpret.run(model, variables, TOKENS, read=names, edit=edit)

  (out, values), (same, others) = both(run)
  np.testing.assert_allclose(same, out, rtol=1e-4, atol=1e-5)
  for name, value in values.items():
    np.testing.assert_allclose(others[name], value, rtol=1e-4, atol=1e-5)
  of = lambda i, name: values[f"layer_{i}/{name}"]
  for i, expected in (
    (0, lambda x: x),
    (1, lambda x: 2.0 * (x + 1)),
    (3, lambda x: x + 3 - 5.0),
  ):
    added = of(i, "middle_state") + of(i, "mlp_output")
    np.testing.assert_allclose(of(i, "hidden_state"), expected(added), 1e-5)


def test_an_edit_sees_what_was_before_it_and_the_facts():
  def edit(weights, site):
    state = site.value("input_state")
    assert state.shape == (2, 7, 8)
    assert site.value("keys").shape == (2, 7, 1, 4)
    assert site.name in (*(f"layer_{i}/{m}" for i in range(4)), f"layer_*/{m}")
    facts = site.facts
    assert facts["query_positions"].shape == facts["key_positions"].shape
    uniform = jnp.broadcast_to(facts["visible"], weights.shape)
    uniform = uniform / uniform.sum(-1, keepdims=True)
    # Where the first channel of a key is positive.
    return jnp.where(state[:, None, None, :, 0] > 0, uniform, weights)

  m = "mixer/attention_weights"

  def run(model, variables):
    return interpret.run(
      model, variables, TOKENS, read=["*/input_state", MAPS], edit={MAPS: edit}
    )

  (out, values), (same, _) = both(run)
  np.testing.assert_allclose(same, out, rtol=1e-4, atol=1e-5)
  positive = values["layer_3/input_state"][..., 0] > 0
  keys = np.arange(7)
  expected = np.tri(7) / np.arange(1, 8)[:, None]
  got = values[f"layer_3/{m}"]
  for row, key in zip(*np.nonzero(positive), strict=True):
    seen = keys >= key
    np.testing.assert_allclose(
      got[row, 0, seen, key], expected[seen, key], rtol=1e-5
    )
  model, variables = transformer()
  reads = {MAPS: lambda x, site: site.value("nothing")}
  with pytest.raises(ValueError, match="reads 'nothing', but no tap"):
    interpret.run(model, variables, TOKENS, edit=reads)


def test_hidden_keys_stay_hidden_whatever_their_scores():
  seen = {}

  def edit(scores, site):
    seen.update(site.facts)
    return jnp.ones_like(scores)

  def run(model, variables):
    names = ["layer_1/mixer/attention_[sw]*"]
    edits = {"layer_1/mixer/attention_scores": edit}
    plain = interpret.run(model, variables, TOKENS, read=names)[1]
    return plain, interpret.run(
      model, variables, TOKENS, read=names, edit=edits
    )[1]

  for plain, edited in both(run):
    scores = plain["layer_1/mixer/attention_scores"]
    below = np.tri(7, dtype=bool)
    assert (np.isneginf(scores) == ~below).all()
    weights = plain["layer_1/mixer/attention_weights"]
    np.testing.assert_allclose(jax.nn.softmax(scores), weights, atol=1e-6)
    flat = np.broadcast_to(np.tri(7) / np.arange(1, 8)[:, None], weights.shape)
    np.testing.assert_allclose(
      edited["layer_1/mixer/attention_weights"], flat, atol=1e-6
    )


def test_other_arrays_compile_nothing():
  model, variables = transformer()
  traced = []

  def scale(x, site):
    traced.append(site.name)
    return x * site.given["factors"][site.layer]

  halved = interpret.edited(model, {"layer_*/hidden_state": scale})

  @jax.jit
  def loss(variables, factors):
    given = interpret.with_given(variables, {"factors": factors})
    return jnp.square(halved.apply(given, TOKENS)).mean()

  run = jax.jit(jax.grad(loss, argnums=1))
  gradient = run(variables, jnp.ones(4))
  count = len(traced)
  other = run(variables, jnp.arange(4.0))
  assert len(traced) == count
  assert (np.abs(gradient) > 0).all()
  # The last norm does not see a factor, but by its epsilon.
  assert np.abs(gradient[3]) < np.abs(gradient[:3]).min()
  assert not np.allclose(gradient, other)


def test_arrays_of_several_edits_are_joined():
  once = interpret.with_given({"params": {}}, {"a": 1, "b": 2})
  twice = interpret.with_given(once, {"b": 3, "c": 4})
  assert twice == interpret.with_given({"params": {}}, {"a": 1, "b": 3, "c": 4})
  assert interpret.with_given(twice, 5) == interpret.with_given(once, 5)


@dataclasses.dataclass(frozen=True)
class Received(taps.StatefulEdit):
  """Sharpens weights by what each key received so far, of all queries."""

  def init(self, value, site):
    return jnp.zeros((*value.shape[:2], value.shape[-1]))

  def __call__(self, value, site, state):
    sums = jnp.cumsum(value, axis=2) + state[:, :, None]
    new = value * sums
    new = new / jnp.maximum(new.sum(-1, keepdims=True), 1e-9)
    real = (site.facts["query_positions"] >= 0)[:, None, :, None]
    return new, state + jnp.where(real, value, 0).sum(2)


@pytest.mark.parametrize("scan", [False, True])
def test_what_an_edit_remembers_goes_with_the_cache(scan):
  model, variables = transformer(scan)
  edited = interpret.edited(model, {SOME_MAPS: Received()})
  whole = jax.jit(edited.apply)(variables, TOKENS)
  plain = jax.jit(model.apply)(variables, TOKENS)
  assert np.abs(whole - plain).max() > 1e-3

  @jax.jit
  def step(tokens, cache):
    return edited.apply(variables, tokens, cache=cache)

  parts, cache = [], model.init_cache(2, 9)
  for tokens in (TOKENS[:, :3], TOKENS[:, 3:4], TOKENS[:, 4:]):
    logits, cache = step(tokens, cache)
    parts.append(logits)
  np.testing.assert_allclose(
    jnp.concatenate(parts, axis=1), whole, rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize("scan", [False, True])
def test_generation_goes_on_with_edits(scan):
  model, variables = transformer(scan)
  edited = interpret.edited(model, {SOME_MAPS: Received()})
  apply = jax.jit(edited.apply)
  # A prompt of one token has nothing to fill the cache with.
  for prompt in ([3], [1, 4, 1, 5]):
    made = decoding.generate(edited, variables, [prompt], max_tokens=5, block=5)
    tokens = np.zeros((1, 9), np.int32)
    tokens[0, : len(prompt)] = prompt
    for end in range(len(prompt), len(prompt) + 5):
      tokens[0, end] = apply(variables, tokens)[0, end - 1].argmax()
    assert made == [tokens[0, len(prompt) : len(prompt) + 5].tolist()]


def test_a_model_with_arrays_for_edits_can_be_hashed():
  """Jit and decoding take models as static arguments."""
  model, variables = transformer()
  name, array = "layer_1/hidden_state", np.ones((2, 7, 8), np.int32)
  edited = interpret.edited(model, {name: array})
  assert hash(edited) == hash(edited.clone())
  assert edited == edited.clone()
  assert edited != interpret.edited(model, {name: array.copy()})
  apply = jax.jit(lambda model, v: model.apply(v, TOKENS), static_argnums=0)
  expected, _ = interpret.run(
    model, variables, TOKENS, edit={name: lambda x, site: jnp.ones_like(x)}
  )
  np.testing.assert_allclose(
    apply(edited, variables), expected, rtol=1e-4, atol=1e-5
  )


def test_what_cannot_be():
  model, variables = transformer()
  run = functools.partial(interpret.run, model, variables, TOKENS)
  with pytest.raises(ValueError, match="no tap to edit 'layer_9/x'"):
    run(edit={"layer_9/x": lambda x, site: x})
  with pytest.raises(ValueError, match="did you mean layer_1/hidden_state"):
    run(read="layer_1/hiden_state")
  with pytest.raises(
    ValueError, match=r"layer_1/hidden_state has shape \(2, 7\); it must have"
  ):
    run(edit={"layer_1/hidden_state": lambda x, site: x[..., 0]})
  for gave, message in (
    (lambda x, site: None, "gave nothing; it must give an array of shape"),
    (lambda x, site: (x, x), r"gave a tuple; .* \(2, 7, 8\)"),
    (lambda x, site: x + 1j, "hidden_state is complex64, which float32,"),
    (lambda x: x, r"takes \(x\); it is called with \(value, site\)"),
    (Received.__call__, r"'layer_1/hidden_state', which takes \(self, value"),
    ("zero", "must be an array or a function"),
  ):
    with pytest.raises(ValueError, match=message):
      run(edit={"layer_1/hidden_state": gave})
  edited = interpret.edited(model, {"logits": lambda x, site: 2 * x})
  with pytest.raises(ValueError, match="edits or inserts cannot be bound"):
    edited.bind(variables)
  with pytest.raises(ValueError, match="must have a pattern for each edit"):
    run(edit=lambda x, site: x)
  with pytest.raises(ValueError, match="inputs is a list; it must be an array"):
    interpret.run(model, variables, [[1, 2]])
  with pytest.raises(ValueError, match="pairs of a pattern and an edit"):
    interpret.edited(model, [("layer_1/hidden_state",)])
  with pytest.raises(ValueError, match="edits go with models"):
    interpret.edited(object(), {})
