"""LINA: totals, golden numbers, padding that acts on nothing, bad input."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from models import lina_attention, lina_layers, taps
from models.flow_head import FlowHead
from models.lina_attention import Gates, mix
from tests.models import lina_small
from tests.models.lina_small import PLACES


def sine(shape, c, s=1.0):
  """g of the fact sheets, [1, heads, tokens, ...] with the heads behind."""
  n = np.arange(math.prod(shape)) + 1
  x = (s * np.sin(0.7 * n + c)).reshape(shape).swapaxes(1, 2)
  return jnp.asarray(x, jnp.float32)


HEADS = [sine((1, 2, 5, 4), c) for c in range(3)]
GATES = [1 + sine((1, 2, 5, 1), c, 0.1)[..., 0] for c in (3, 4)]
GOLDEN = {
  "division": (
    "division",
    Gates(),
    5.510243,
    [0.786648748, 0.426243391, -0.134630893, -0.632186165],
    [0.310870477, 0.229366484, 0.0399878491, -0.168197696],
  ),
  "gates": (
    "division",
    Gates(*GATES),
    6.73064252,
    [0.81308875, 0.477435511, -0.0827631084, -0.604036945],
    None,
  ),
  # The gate of the denominator by itself, and equal to the other.
  "split gate": (
    "division",
    Gates(*GATES, GATES[0]),
    6.73064252,
    [0.81308875, 0.477435511, -0.0827631084, -0.604036945],
    None,
  ),
  "subtraction": (
    "subtraction",
    Gates(),
    -0.552840989,
    [0.498478248, 0.265675074, -0.0920792385, -0.406527246],
    None,
  ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_numbers(case):
  normalizer, gates, total, first, last = GOLDEN[case]
  out = np.asarray(mix(*HEADS, gates, normalizer), np.float64)
  np.testing.assert_allclose(out.sum(), total, rtol=3e-6)
  np.testing.assert_allclose(out[0, 0, 0], first, rtol=3e-6)
  if last is not None:
    np.testing.assert_allclose(out[0, 4, 1], last, rtol=1e-5)


@pytest.mark.parametrize("case", GOLDEN)
def test_half_precision_ends_at_the_projections(case):
  normalizer, gates, *_ = GOLDEN[case]
  half = [x.astype(jnp.bfloat16) for x in HEADS]
  out = mix(*half, gates, normalizer)
  exact = mix(*(x.astype(jnp.float32) for x in half), gates, normalizer)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("gate", lina_attention.GATES)
def test_gates_of_one_are_none(gate):
  fields = {"heads": 2, "grid": (2, 3)}
  x = jax.random.normal(jax.random.key(1), (1, 8, 8))
  gated = lina_attention.LinaAttention(**fields, gate=gate)
  variables = gated.init(jax.random.key(0), x)
  gates = {
    path: leaf
    for path, leaf in traverse_util.flatten_dict(variables["params"]).items()
    if path[0] in lina_attention.GATE_LEAVES
  }
  assert {path[0] for path in gates} == set(lina_attention.GATES[gate])
  if gate == "data":
    # A sigmoid is one where its argument is large.
    for path, leaf in gates.items():
      value = 30.0 if path[1] == "bias" else 0.0
      variables["params"][path[0]][path[1]] = jnp.full_like(leaf, value)
  else:
    heads = 1 if gate == "shared" else 2
    assert all(leaf.shape == (8, heads) for leaf in gates.values())
    assert all((leaf == 1).all() for leaf in gates.values())
  plain = lina_attention.LinaAttention(**fields)
  rest = {k: v for k, v in variables["params"].items() if (k,) not in gates}
  rest = {k: v for k, v in rest.items() if k not in lina_attention.GATE_LEAVES}
  np.testing.assert_allclose(
    gated.apply(variables, x), plain.apply({"params": rest}, x), atol=2e-6
  )


def test_the_head_begins_with_no_velocity():
  x_t, t, z = jnp.ones((2, 3)), jnp.full((2,), 500.0), jnp.ones((2, 8))
  head = FlowHead(8, 2)
  variables = head.init(jax.random.key(0), x_t, t, z)
  assert (head.apply(variables, x_t, t, z) == 0).all()


def test_initial_weights_are_pytorch_s():
  layer = lina_layers.dense((4, 50), 16)
  params = layer.init(jax.random.key(0), jnp.zeros((1, 16)))["params"]
  for leaf in params.values():
    assert 0.23 < np.abs(leaf).max() <= 0.25
    assert np.std(leaf) == pytest.approx(0.25 / math.sqrt(3), rel=0.1)


PADDED = {
  "division": {},
  "subtraction": {"normalizer": "subtraction"},
  "softmax": {"attention": "softmax", "gate": "none"},
}


@pytest.mark.parametrize("case", PADDED)
def test_padding_acts_on_nothing(case):
  model, variables = lina_small.model_and_variables(**PADDED[case])
  tokens = jax.random.normal(jax.random.key(1), (2, PLACES, 3))
  condition = jax.random.normal(jax.random.key(2), (2, 4, 16))
  rows = [[7, 2, 9], [4]]
  visible = jnp.array([[12, 7, 12, 2, 9], [12, 12, 12, 4, 12]])
  seen = np.zeros((2, PLACES, 1), bool)
  for row, places in zip(seen, rows, strict=True):
    row[places] = True
  direction = jax.random.normal(jax.random.key(3), (2, PLACES, 16))

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
  def run(params, condition, tokens, visible, direction):
    z = model.apply(
      {"params": params}, condition, tokens, visible, method="encode_decode"
    )
    return (z * direction).sum(), z

  # What is not visible may hold anything.
  hidden = jnp.where(seen, tokens, jnp.nan)
  params = variables["params"]
  (_, z), (grads, *of_inputs) = run(
    params, condition, hidden, visible, direction
  )
  total = jax.tree.map(jnp.zeros_like, params)
  for i, places in enumerate(rows):
    of_row = slice(i, i + 1)
    alone = jnp.array([places])
    arrays = (x[of_row] for x in (condition, tokens))
    (_, wanted), (row_grads, *wanted_inputs) = run(
      params, *arrays, alone, direction[of_row]
    )
    np.testing.assert_allclose(z[of_row], wanted, atol=3e-6)
    for have, want in zip(of_inputs, wanted_inputs, strict=True):
      np.testing.assert_allclose(have[of_row], want, atol=1e-5)
    total = jax.tree.map(jnp.add, total, row_grads)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=3e-5), grads, total
  )


MAPS = {**PADDED, "split gate": {"gate": "split"}}


@pytest.mark.parametrize("case", MAPS)
def test_the_map_is_read(case):
  fields = {"gate": "key_value", **MAPS[case]}
  layer = lina_attention.LinaAttention(2, **fields, implementation="xla")
  x = jax.random.normal(jax.random.key(1), (2, 5, 8))
  lengths = jnp.array([5, 3])
  variables = layer.init(jax.random.key(0), x)
  for name in variables["params"].keys() & set(lina_attention.GATE_LEAVES):
    gate = jax.random.uniform(jax.random.key(2), (5, 2))
    variables["params"][name] = 0.5 + gate
  read = functools.partial(taps.read, layer, names=["attention_weights"])
  out, values = jax.jit(read)(variables, x, lengths)
  weights = values["attention_weights"]
  assert weights.shape == (2, 2, 5, 5)
  assert (weights[1, ..., 3:] == 0).all()
  if case == "softmax":
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
  np.testing.assert_allclose(out, layer.apply(variables, x, lengths), atol=2e-6)


def test_a_text_is_padded_with_what_is_stored():
  model, variables = lina_small.model_and_variables(text_width=6)
  texts = jax.random.normal(jax.random.key(1), (2, 3, 6))
  condition = jax.jit(functools.partial(model.apply, method="condition"))
  padding = variables["constants"]["text_embed"]["padding"]
  assert padding.shape == (512, 6)
  none = texts.at[0].set(padding[:3]).at[1, 2].set(padding[2])
  lengths = jnp.array([0, 2])
  # What is no text may hold anything.
  texts = texts.at[0].set(jnp.nan)
  have = condition(variables, texts, lengths)
  np.testing.assert_allclose(have, condition(variables, none), atol=1e-6)


def test_positions():
  table = np.asarray(lina_layers.sincos_2d((2, 3), 8))
  # Row 1, column 2; frequencies 1 and 0.01.
  f = np.array([1, 0.01])
  wanted = [np.sin(2 * f), np.cos(2 * f), np.sin(f), np.cos(f)]
  np.testing.assert_allclose(table[5], np.concatenate(wanted), atol=1e-6)


def test_patches():
  model = lina_small.model(patch_size=2, token_dim=12)
  latents = jnp.arange(6 * 8 * 3.0).reshape(1, 6, 8, 3)
  tokens = model.patchify(latents)
  np.testing.assert_array_equal(tokens[0, 5], latents[0, 2:4, 2:4].reshape(-1))
  np.testing.assert_array_equal(model.unpatchify(tokens), latents)
  with pytest.raises(ValueError, match=r"latents has shape \(1, 6, 6, 3\).*8"):
    model.patchify(latents[:, :, :6])


BAD_FIELDS = {
  "gate 'key_valu'; did you mean key_value": {"gate": "key_valu"},
  "normalizer 'divide'; did you mean division": {"normalizer": "divide"},
  "attention 'soft'; did you mean softmax": {"attention": "soft"},
  "gate is 'key_value'.*needs gate='none'": {"attention": "softmax"},
  "gate is 'split'.*needs normalizer='division'": {
    "gate": "split",
    "normalizer": "subtraction",
  },
  "width is 18.* multiple of heads=2 and of 4": {"width": 18},
  "queries is 5; .*as 4": {"queries": 5},
  "grid is": {"grid": (0, 4)},
  "token_dim is 3; patch_size=2 needs a multiple of 4": {"patch_size": 2},
}


@pytest.mark.parametrize("message", BAD_FIELDS)
def test_bad_fields(message):
  with pytest.raises(ValueError, match=message):
    lina_small.shapes(lina_small.model(**BAD_FIELDS[message]))


def test_bad_arrays():
  model, variables = lina_small.model_and_variables()

  def check(message, method, *args):
    with pytest.raises(ValueError, match=message):
      model.apply(variables, *args, method=method)

  check("labels has 6; they are 0 to 4, and 5 for no", "condition", ints(5, 6))
  check("labels has -1", "condition", ints(-1))
  check("labels is float32; it must be integers", "condition", jnp.zeros(2))
  check("lengths are of texts", "condition", ints(1), ints(1))
  condition, tokens = jnp.zeros((1, 4, 16)), jnp.zeros((1, PLACES, 3))
  decode = "encode_decode"
  places = ints(1, 2)[None]
  check("tokens has shape", decode, condition, tokens[:, :5], places)
  check("condition has shape", decode, condition[:, :3], tokens, places)
  check("visible has 13;.*12 for pad", decode, condition, tokens, places + 11)
  check("visible is float32", decode, condition, tokens, places * 1.0)
  many = jnp.zeros((1, 13), jnp.int32)
  check("V must be at most", decode, condition, tokens, many)
  z = jnp.zeros((1, PLACES, 16))
  check("t has shape", "velocity", tokens, jnp.zeros((1, 5)), z)
  check("z has shape", "velocity", tokens, jnp.zeros((1, PLACES)), z[..., :3])
  model, variables = lina_small.model_and_variables(text_width=6)
  check("text has shape", "condition", jnp.zeros((1, 3, 5)))
  check("at most 512", "condition", jnp.zeros((1, 513, 6)))


def test_a_class_that_does_not_exist_is_nan_where_values_are_unknown():
  model, variables = lina_small.model_and_variables()
  condition = jax.jit(functools.partial(model.apply, method="condition"))
  x = condition(variables, ints(5, 6, -1))
  assert np.isfinite(x[0]).all()
  assert np.isnan(x[1:]).all()


def ints(*values):
  return jnp.array(values, jnp.int32)
