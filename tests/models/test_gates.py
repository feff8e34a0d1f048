"""Gates of a mixer: every place and kind against the paper's formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import sequence_mixers, taps
from tests import parity_helper

HEADS, KV_HEADS, DIM, WIDTH, LENGTH = 4, 2, 3, 10, 7
OFFERED = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM}
# (output_gate, gate_position, gate_activation, gate_operation): every value of
# each, and every kind of gate at every place but where there are no heads.
CASES = [
  ("elementwise", "output", "sigmoid", "multiply"),
  ("headwise", "output", "half_sigmoid", "multiply"),
  ("shared", "output", "sigmoid", "multiply"),
  ("input_independent", "output", "sigmoid", "multiply"),
  ("elementwise", "output", "silu", "add"),
  ("elementwise", "output", "identity", "add"),
  ("headwise", "value", "sigmoid", "multiply"),
  ("shared", "value", "silu", "add"),
  ("elementwise", "key", "silu", "multiply"),
  ("input_independent", "key", "half_sigmoid", "multiply"),
  ("elementwise", "query", "sigmoid", "multiply"),
  ("headwise", "query", "silu", "add"),
  ("elementwise", "projection", "half_sigmoid", "multiply"),
  ("input_independent", "projection", "silu", "add"),
]


def _options(case):
  fields = ("output_gate", "gate_position", "gate_activation", "gate_operation")
  return dict(zip(fields, case, strict=True))


def _inputs():
  shape = (2, LENGTH, WIDTH)
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _create(mixer="full", seed=1, **options):
  module = sequence_mixers.create(mixer, OFFERED, options)
  x = _inputs()
  shapes = jax.eval_shape(module.init, jax.random.key(0), x)
  params = parity_helper.randomise(shapes["params"], seed)
  return module, {"params": params}, x


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


ACTIVATIONS = {
  "sigmoid": _sigmoid,
  "half_sigmoid": lambda x: 0.5 + 0.5 * _sigmoid(x),
  "silu": lambda x: x * _sigmoid(x),
  "identity": lambda x: x,
}


def _gate(params, x, case, place, y):
  """The formula of a gate: `y` [batch, length, heads, dim] or [..., width]."""
  kind, position, activation, operation = case
  if place != position:
    return y
  if kind == "input_independent":
    logits = np.broadcast_to(params["gate"], y.shape)
  else:
    # [batch, length, heads, dim], or without heads or channels.
    logits = np.tensordot(x, params["gate"]["kernel"], 1)
  value = ACTIVATIONS[activation](logits)
  if kind == "headwise":
    value = value[..., None]
  if kind == "shared":
    value = value.mean(2, keepdims=True)
  return y * value if operation == "multiply" else y + value


def _attention(params, x, case):
  """Causal softmax attention with a gate, in float64."""
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  x = np.asarray(x, np.float64)
  gate = functools.partial(_gate, params, x, case)
  q, k, v = (
    gate(name, np.tensordot(x, params[name]["kernel"], 1))
    for name in ("query", "key", "value")
  )
  k, v = (np.repeat(y, HEADS // KV_HEADS, axis=2) for y in (k, v))
  scores = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(DIM)
  scores = np.where(np.tri(LENGTH, dtype=bool), scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  out = gate("output", np.einsum("bhij,bjhd->bihd", weights, v))
  out = np.einsum("bihd,hdw->biw", out, params["out"]["kernel"])
  return gate("projection", out)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_the_formula(case):
  module, variables, x = _create(**_options(case))
  expected = _attention(variables["params"], x, case)
  out = jax.jit(lambda v, x: module.apply(v, x)[0])(variables, x)
  np.testing.assert_allclose(out, expected, atol=1e-5)
  # It is a gate that matters, and its values are those that are read.
  plain = _attention(variables["params"], x, ("none", "none", *case[2:]))
  assert np.abs(expected - plain).max() > 0.02
  (read, _), values = taps.read(module, variables, x, names=["*gate_values"])
  np.testing.assert_allclose(read, expected, atol=1e-5)
  (values,) = values.values()
  assert values.dtype == jnp.float32
  # A gate that is open everywhere, or adds nothing, is no gate.
  neutral = jnp.full(values.shape, float(case[3] == "multiply"))
  (read, _), _ = taps.read(module, variables, x, edit={"gate_values": neutral})
  np.testing.assert_allclose(read, plain, atol=1e-5)


@pytest.mark.parametrize("position", ["query", "value", "output", "projection"])
def test_gradients(position):
  """By finite differences of the formula, in one direction."""
  case = ("elementwise", position, "silu", "multiply")
  module, variables, x = _create(**_options(case))
  rng = np.random.default_rng(2)
  weights = rng.standard_normal(x.shape)
  step = jax.tree.map(
    lambda p: rng.standard_normal(p.shape), variables["params"]
  )

  @jax.jit
  def gradient(params, x, weights):
    def loss(params):
      return (module.apply({"params": params}, x)[0] * weights).sum()

    return jax.grad(loss)(params)

  def moved(size):
    params = jax.tree.map(
      lambda p, s: np.asarray(p, np.float64) + size * s,
      variables["params"],
      step,
    )
    return (_attention(params, x, case) * weights).sum()

  along = jax.tree.map(
    lambda g, s: np.vdot(g, s),
    gradient(variables["params"], x, weights.astype(np.float32)),
    step,
  )
  expected = (moved(1e-5) - moved(-1e-5)) / 2e-5
  actual = sum(jax.tree.leaves(along))
  np.testing.assert_allclose(actual, expected, rtol=1e-3)


@pytest.mark.parametrize(
  "case", [CASES[0], CASES[2], CASES[4], CASES[6]], ids=" ".join
)
def test_bfloat16(case):
  module, variables, x = _create(**_options(case))
  expected = _attention(variables["params"], x, case)
  short = module.clone(dtype=jnp.bfloat16)
  out, _ = short.apply(variables, x.astype(jnp.bfloat16))
  assert out.dtype == jnp.bfloat16
  error = np.abs(np.asarray(out, np.float32) - expected).max()
  assert error < 0.04 * np.abs(expected).max()
  _, values = taps.read(short, variables, x, names=["gate_values"])
  assert values["gate_values"].dtype == jnp.float32


def test_gates_begin_half_open():
  plain, variables, x = _create()
  whole = plain.apply(variables, x)[0]
  for kind, gate in (
    ("input_independent", lambda module: module.init(jax.random.key(0), x)),
    (
      "headwise",
      lambda _: {"params": {"gate": {"kernel": jnp.zeros((10, 4))}}},
    ),
  ):
    gated = plain.clone(output_gate=kind)
    gate = gate(gated)["params"]["gate"]
    params = {**variables["params"], "gate": gate}
    out = gated.apply({"params": params}, x)[0]
    np.testing.assert_allclose(out, whole / 2, atol=1e-6)


# Millions in Table 1 of arXiv 2505.06708: 201, 1.6, 201, 25, 25, 0.2, 201, 100.
PARAMETERS = [
  ("elementwise", "output", 201_326_592),
  ("headwise", "output", 1_572_864),
  ("shared", "output", 201_326_592),
  ("elementwise", "value", 25_165_824),
  ("elementwise", "key", 25_165_824),
  ("headwise", "value", 196_608),
  ("elementwise", "query", 201_326_592),
  ("elementwise", "projection", 100_663_296),
]


@pytest.mark.parametrize(("kind", "position", "count"), PARAMETERS)
def test_parameters_of_the_paper_s_model(kind, position, count):
  layers, width = 24, 2048
  offered = {"heads": 32, "kv_heads": 4, "head_dim": 128}

  def parameters(**gate):
    module = sequence_mixers.create("full", {**offered, **gate})
    x = jax.ShapeDtypeStruct((1, 2, width), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return layers * sum(x.size for x in jax.tree.leaves(shapes))

  added = parameters(output_gate=kind, gate_position=position) - parameters()
  assert added == count


def test_logits_of_random_inputs_are_open_by_half():
  """A fresh gate: mean 0.5, for weights of 0.02 and normalised inputs."""
  module = sequence_mixers.create(
    "full", {**OFFERED, "output_gate": "elementwise"}
  )
  x = jax.random.normal(jax.random.key(0), (4, 32, 64))
  variables = module.init(jax.random.key(1), x)
  _, values = taps.read(module, variables, x, names=["gate_values"])
  assert float(values["gate_values"].mean()) == pytest.approx(0.5, abs=0.01)


ERRORS = [
  ({"output_gate": "element"}, "output_gate 'element'.*elementwise"),
  ({"gate_position": "values"}, "gate_position 'values'; did you mean value"),
  ({"gate_activation": "tanh"}, "gate_activation 'tanh'.*half_sigmoid"),
  ({"gate_operation": "times"}, "gate_operation 'times'.*multiply"),
  (
    {"output_gate": "headwise", "gate_position": "projection"},
    "output_gate is 'headwise', for heads.*'elementwise' and",
  ),
]


@pytest.mark.parametrize("mixer", ["full", "linear"])
@pytest.mark.parametrize(("options", "message"), ERRORS)
def test_gates_that_are_not_known(options, message, mixer):
  module = sequence_mixers.create(mixer, OFFERED, options)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(module.init, jax.random.key(0), _inputs())
