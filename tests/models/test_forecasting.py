"""Models that forecast: parts, and one answer whatever the calls."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from configs import forecasting as recipes
from models import forecasting, lag_attention, taps

SIZE, WINDOW, TIME = 3, 4, 9
ROWS = {
  "gru_attention_learned_rate": {"feed_forward": 2},
  "rhn_coupled": {},
  "transformer_input_dependent": {"depth": 1, "feed_forward": 1},
  "recurrent_transformer_additive": {"feed_forward": 1},
}


def create(row="rhn_attention_coupled", **fields):
  fields = recipes.GRID[row] | ROWS.get(row, {}) | fields
  small = {"size": SIZE, "width": 4, "heads": 2, "window": WINDOW}
  return models.create(**(small | fields))


def randomise(shapes, seed=0):
  """Parameters that are far from where a model begins."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda a: rng.standard_normal(a.shape).astype(np.float32), shapes
  )


@functools.cache
def made(row):
  """A model, random parameters, states [2, TIME, SIZE], and jitted calls."""
  model = create(row)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), **model.example_inputs())
  )
  states = np.random.default_rng(1).standard_normal((2, TIME, SIZE))
  apply = jax.jit(model.apply, static_argnames="method")
  return model, randomise(shapes), states.astype(np.float32), apply


@pytest.mark.parametrize("row", ROWS)
def test_any_cut_gives_the_same_forecasts(row):
  model, variables, states, apply = made(row)
  # Only a window for a stateless model, else three runs of three.
  states = states[:, :WINDOW] if model.stateless else states
  whole, carry = apply(variables, states)
  assert (whole.shape, whole.dtype) == (states.shape, jnp.float32)
  state, own = apply(variables, states[:, :1], method="begin")
  by_steps = [state]
  for t in range(1, states.shape[1]):
    state, own = apply(variables, states[:, t], own, method="step")
    by_steps.append(state)
  near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  near(np.stack(by_steps, 1), whole)
  jax.tree.map(near, own, carry)
  assert {a.dtype for a in jax.tree.leaves(carry)} == {jnp.dtype("float32")}
  if not model.stateless:
    parts, between = [], model.init_carry(2)
    for cut in np.split(states, 3, axis=1):
      part, between = apply(variables, cut, between)
      parts.append(part)
    near(np.concatenate(parts, 1), whole)
    jax.tree.map(near, between, carry)


@pytest.mark.parametrize("row", ROWS)
def test_nothing_sees_what_comes_later(row):
  model, variables, states, apply = made(row)
  states = states[:, :WINDOW] if model.stateless else states
  whole, _ = apply(variables, states)
  changed = states.copy()
  changed[:, 1] += 1
  other, _ = apply(variables, changed)
  differs = np.abs(other - whole).max((0, 2)) > 1e-5
  assert not differs[0]
  assert differs[1:4].all()


def test_layers_without_attention_are_read_and_edited():
  model, variables, states, _ = made("rhn_coupled")
  name = f"layer_{model.depth - 1}/hidden_state"

  @jax.jit
  def run(variables, states, amount):
    # Of one channel, as a norm behind takes away what all have.
    edit = {name: lambda x, site: x.at[..., 0].add(amount)}
    (out, _), values = taps.read(
      model, variables, states, names=["*"], edit=edit
    )
    return out, values[name]

  out, state = run(variables, states, 0.0)
  assert state.shape == (2, TIME, model.width)
  other, moved = run(variables, states, 2.0)
  np.testing.assert_allclose(moved[..., 0] - state[..., 0], 2.0, atol=1e-5)
  np.testing.assert_array_equal(moved[..., 1:], state[..., 1:])
  assert np.abs(other - out).max() > 1e-2


def test_a_forecast_is_the_model_on_its_own_output():
  for row in ("rhn_coupled", "transformer_input_dependent"):
    model, variables, states, apply = made(row)
    forecast = jax.jit(forecasting.forecast, static_argnums=(0, 3))
    got = forecast(model, variables, states, 3)
    state, carry = apply(variables, states, method="begin")
    for t in range(3):
      np.testing.assert_allclose(got[:, t], state, rtol=1e-4, atol=1e-4)
      state, carry = apply(variables, state, carry, method="step")


def test_a_stateless_model_sees_its_window_alone():
  _, variables, states, apply = made("transformer_input_dependent")
  long, _ = apply(variables, states, method="begin")
  short, _ = apply(variables, states[:, -WINDOW:], method="begin")
  np.testing.assert_array_equal(long, short)
  # With less to begin with, what is not there is not seen.
  _, carry = apply(variables, states[:, :1], method="begin")
  noise = jax.tree.map(np.array, carry)
  noise["inputs"][:, :-1] = 1e3
  for own in (carry, noise):
    state, _ = apply(variables, states[:, 1], own, method="step")
    expected, _ = apply(variables, states[:, :WINDOW])
    np.testing.assert_allclose(state, expected[:, 1], atol=1e-4)


def test_recurrence_reaches_beyond_the_window():
  # Two layers of keys of four states see seven states.
  _, variables, states, apply = made("recurrent_transformer_additive")
  whole, _ = apply(variables, states)
  for place, seen in ((1, False), (2, True)):
    changed = states.copy()
    changed[:, place] += 1
    other, _ = apply(variables, changed)
    assert (np.abs(other - whole)[:, 8].max() > 1e-6) == seen


def dense_attention(p, x, heads, window):
  """Attention with a bias a lag, in float64, one query after another."""
  x = np.asarray(x, float)
  q, k, v = (
    np.einsum("btw,whd->bthd", x, p[n]["kernel"]) + p[n]["bias"]
    for n in ("query", "key", "value")
  )
  out = np.zeros(q.shape)
  for b, t, h in itertools.product(*map(range, q.shape[:3])):
    seen = range(max(0, t - window + 1), t + 1)
    scores = np.array(
      [
        q[b, t, h] @ k[b, s, h] / np.sqrt(q.shape[-1]) + p["bias"][h, t - s]
        for s in seen
      ]
    )
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    out[b, t, h] = sum(
      w * v[b, s, h] for w, s in zip(weights, seen, strict=True)
    )
  return np.einsum("bthd,hdw->btw", out, p["out"]["kernel"]) + p["out"]["bias"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_to_lags_is_the_sum_written_out(dtype):
  module = lag_attention.LagAttention(2, WINDOW, dtype=dtype)
  x = np.random.default_rng(0).standard_normal((2, 6, 4)).astype(np.float32)
  valid = jnp.ones((2, 6), bool)
  shapes = jax.eval_shape(module.init, jax.random.key(0), x, valid, None)
  variables = randomise(shapes)
  expected = dense_attention(
    jax.tree.map(lambda a: np.asarray(a, float), variables["params"]),
    x,
    2,
    WINDOW,
  )
  apply = jax.jit(module.apply)
  whole, _ = apply(variables, x, valid, None)
  parts, state = [], module.empty(2, WINDOW, 4)
  for cut in (slice(0, 3), slice(3, 6)):
    out, state = apply(variables, x[:, cut], valid[:, cut], state)
    parts.append(out)
  tolerance = {"float32": 1e-5, "bfloat16": 0.15}[dtype]
  for got in (whole, np.concatenate(parts, 1)):
    got = np.asarray(got, float)
    np.testing.assert_allclose(got, expected, atol=tolerance)


def test_maps_of_attention_are_in_the_open():
  model, variables, states, _ = made("recurrent_transformer_additive")
  name = "layer_1/attention/attention_weights"
  read = jax.jit(lambda *args: taps.read(model, *args, names=[name])[1])
  weights = read(variables, states)[name]
  # The first places are those before, where nothing is.
  assert weights.shape == (2, 2, TIME, TIME + WINDOW - 1)
  assert not weights[..., : WINDOW - 1].any()
  np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


def test_a_new_model_says_that_all_stays():
  states = jnp.ones((1, 2, SIZE))
  for increment, share in ((True, 1), (False, 0)):
    model = create("rhn_coupled", increment=increment)
    init = jax.jit(model.init_with_output)
    (out, _), _ = init(jax.random.key(0), states)
    np.testing.assert_array_equal(out, share * states)


@pytest.mark.parametrize(
  ("fields", "error"),
  [
    ({"cell": "grru"}, "no cell 'grru'; did you mean"),
    (
      {"cell": "none", "attention": False},
      "nothing looks at the states before",
    ),
    ({"cell": "none"}, "cell_gate is 'coupled', but cell is 'none'"),
    ({"recurrence": True}, "recurrence is True, but the cell 'rhn'"),
    ({"gate": "open"}, "no gate 'open'"),
    ({"cell_gate": "coupling"}, "no cell_gate 'coupling'; did you mean"),
    ({"heads": 3}, "heads is 3, which does not divide width 4"),
    ({"window": 0}, "window is 0"),
  ],
)
def test_fields_that_do_not_fit(fields, error):
  with pytest.raises(ValueError, match=error):
    jax.eval_shape(
      create(**fields).init, jax.random.key(0), jnp.zeros((1, 1, SIZE))
    )


def test_inputs_that_do_not_fit():
  model = create("transformer_additive")
  for states, carry, error in (
    (jnp.zeros((1, 2, 4)), None, r"must be floating point \[batch, time, 3\]"),
    (jnp.zeros((1, 0, SIZE)), None, "at least one time"),
    (jnp.zeros((1, 2, SIZE), jnp.int32), None, "states is int32"),
    (jnp.zeros((1, 5, SIZE)), None, "5 times, .*at most window=4"),
    (jnp.zeros((1, 2, SIZE)), {}, "carry is given"),
  ):
    with pytest.raises(ValueError, match=error):
      model.init(jax.random.key(0), states, carry)
  with pytest.raises(ValueError, match="nothing to carry"):
    model.init_carry(2)
