"""Cells beside equations written out, in float64, and PyTorch's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import recurrent_cells
from models.recurrent_cells import scanning
from tests import parity_helper

BATCH, TIME, SIZE, WIDTH = 2, 4, 3, 5
MICRO_STEPS = 3


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def dense(x, parameters):
  return x @ parameters["kernel"] + parameters["bias"]


def lstm(p, x, state):
  y = dense(x, p["input"]) + state["hidden"] @ p["recurrent"]
  i, f, g, o = np.split(y, 4, axis=-1)
  cell = sigmoid(f) * state["cell"] + sigmoid(i) * np.tanh(g)
  return {"hidden": sigmoid(o) * np.tanh(cell), "cell": cell}


def gru(p, x, state):
  h = state["hidden"]
  r, z, n = np.split(dense(x, p["input"]), 3, axis=-1)
  r_h, z_h, n_h = np.split(h @ p["recurrent"], 3, axis=-1)
  z = sigmoid(z + z_h)
  n = np.tanh(n + sigmoid(r + r_h) * (n_h + p["bias"]))
  return {"hidden": (1 - z) * n + z * h}


def rhn(p, x, state):
  s = state["hidden"]
  for step in range(MICRO_STEPS):
    of_x = x @ p["input"]["kernel"] if step == 0 else np.zeros(2 * WIDTH)
    y = of_x + s @ p["recurrent"][step] + p["bias"][step]
    new, gate = np.tanh(y[:, :WIDTH]), sigmoid(y[:, WIDTH:])
    s = new * gate + s * (1 - gate)
  return {"hidden": s}


ORACLES = {"lstm": lstm, "gru": gru, "rhn": rhn}


def made(name):
  """A cell, random parameters, inputs and a random state, float64."""
  cell = recurrent_cells.find(name)
  module = cell(WIDTH, dtype=jnp.float64, param_dtype=jnp.float64)
  rng = np.random.default_rng(0)
  x = rng.standard_normal((BATCH, TIME, SIZE))
  state = jax.tree.map(
    lambda a: rng.standard_normal(a.shape), cell.empty(BATCH, WIDTH)
  )
  shapes = jax.eval_shape(module.init, jax.random.key(0), x, state)
  params = jax.tree.map(
    lambda a: rng.standard_normal(a.shape), shapes["params"]
  )
  return module, params, x, state


@pytest.mark.parametrize("name", ORACLES)
def test_a_cell_is_its_equations(name):
  with jax.enable_x64(True):
    module, params, x, state = made(name)
    apply = jax.jit(module.apply)
    hidden, last = apply({"params": params}, x, state)
    own = state
    for t in range(TIME):
      own = ORACLES[name](params, x[:, t], own)
      np.testing.assert_allclose(hidden[:, t], own["hidden"], rtol=1e-10)
    assert jax.tree.structure(last) == jax.tree.structure(own)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-10), last, own
    )
    # In two calls as in one.
    first, between = apply({"params": params}, x[:, :1], state)
    rest, _ = apply({"params": params}, x[:, 1:], between)
    np.testing.assert_allclose(
      np.concatenate([first, rest], 1), hidden, rtol=1e-10
    )


@pytest.mark.parametrize("name", ORACLES)
def test_gradients_are_differences_of_values(name):
  with jax.enable_x64(True):
    module, params, x, state = made(name)
    rng = np.random.default_rng(1)
    arguments = (params, x, state)
    toward = jax.tree.map(lambda a: rng.standard_normal(a.shape), arguments)

    @jax.jit
    def value(distance):
      params, x, state = jax.tree.map(
        lambda a, b: a + distance * b, arguments, toward
      )
      hidden, last = module.apply({"params": params}, x, state)
      return jnp.sin(hidden).sum() + sum(map(jnp.sum, jax.tree.leaves(last)))

    difference = (value(1e-6) - value(-1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(value)(0.0), difference, rtol=1e-6)


@pytest.mark.parametrize("name", ORACLES)
def test_in_bfloat16_the_state_stays_float32(name):
  with jax.enable_x64(True):
    _, params, x, state = made(name)
  module = recurrent_cells.find(name)(WIDTH, dtype=jnp.bfloat16)
  low = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (params, x, state))
  hidden, last = jax.jit(module.apply)({"params": low[0]}, low[1], low[2])
  assert hidden.dtype == jnp.float32
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(last)}
  assert dtypes == {jnp.dtype("float32")}
  own = state
  for t in range(TIME):
    own = ORACLES[name](params, x[:, t], own)
  np.testing.assert_allclose(last["hidden"], own["hidden"], atol=0.1)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_lstm_and_gru_are_pytorchs(name):
  torch = parity_helper.import_torch()
  with jax.enable_x64(True):
    module, params, x, state = made(name)
    hidden, _ = module.apply({"params": params}, x, state)
  cls = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[name]
  other = cls(SIZE, WIDTH, batch_first=True, dtype=torch.float64)
  bias = np.zeros(len(params["input"]["bias"]))
  if name == "gru":
    bias[2 * WIDTH :] = params["bias"]
  tensors = {
    "weight_ih_l0": params["input"]["kernel"].T,
    "weight_hh_l0": params["recurrent"].T,
    "bias_ih_l0": params["input"]["bias"],
    "bias_hh_l0": bias,
  }
  other.load_state_dict({n: torch.tensor(x) for n, x in tensors.items()})
  begin = [
    torch.tensor(state[n])[None] for n in ("hidden", "cell") if n in state
  ]
  expected, _ = other(
    torch.tensor(x), tuple(begin) if name == "lstm" else begin[0]
  )
  np.testing.assert_allclose(hidden, expected.detach().numpy(), rtol=1e-9)


def test_what_biases_begin_at():
  for name, place, expected in (
    ("lstm", lambda p: p["input"]["bias"], [0, 1, 0, 0]),
    ("rhn", lambda p: p["bias"][1], [0, -2]),
  ):
    cell = recurrent_cells.find(name)
    params = cell(WIDTH).init(
      jax.random.key(0), jnp.zeros((1, 1, SIZE)), cell.empty(1, WIDTH)
    )["params"]
    np.testing.assert_array_equal(place(params), np.repeat(expected, WIDTH))


def test_products_add_up_in_float32():
  x = jnp.ones((1, 512), jnp.bfloat16)
  assert scanning.product(x, jnp.ones((512, 1)), jnp.bfloat16)[0, 0] == 512
  assert scanning.product(1.001 * x, jnp.ones((512, 1)), jnp.float32).dtype == (
    jnp.float32
  )


def test_a_cell_that_is_not_known():
  with pytest.raises(ValueError, match="no cell 'gr'; did you mean gru"):
    recurrent_cells.find("gr")
