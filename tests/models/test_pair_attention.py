"""The pair model against a plain restatement, and its networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import taps
from models.pair_attention import PairModel

FIELDS = {"classes": 3, "width": 8, "depth": 2, "heads": 2, "hidden": 5}
NETWORKS = {**FIELDS, "bias_rank": 3}
B, N = 2, 5
rng = np.random.default_rng(0)
TOKENS = rng.standard_normal((B, N, 4)).astype(np.float32)
PAIRS = rng.standard_normal((B, N, N, 3)).astype(np.float32)


@functools.cache
def variables_of(rank=3):
  model = PairModel(**FIELDS, bias_rank=rank)
  shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS, PAIRS)
  draw = np.random.default_rng(1)

  def one(leaf):
    scale = leaf.shape[0] ** -0.5 if leaf.ndim > 1 else 0.5
    return jnp.asarray(scale * draw.standard_normal(leaf.shape), leaf.dtype)

  return jax.tree.map(one, shapes)


@functools.cache
def applied(bias, method=None):
  model = PairModel(**NETWORKS, bias=bias)
  run = jax.jit(functools.partial(model.apply, method=method))
  return np.asarray(run(variables_of(), TOKENS, PAIRS))


def softmax(x):
  weights = np.exp(x - x.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


def norm(p, x):
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  return x * p["scale"] + p["bias"]


def dense(p, x, axes=1):
  return np.tensordot(x, p["kernel"], axes) + p.get("bias", 0.0)


def network(p, x):
  x = np.tanh(x @ p["dense_0"]["kernel"])
  x = np.tanh(x @ p["dense_1"]["kernel"])
  x = x @ p["dense_2"]["kernel"]
  return x.reshape(*x.shape[:2], 2, 3)


def layer(p, x, bias):
  """One layer and the error of its networks; one score after another."""
  gelu = lambda x: (
    x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  )
  y = norm(p["attention_norm"], x)
  q, k, v, gate = (dense(p[n], y) for n in ("query", "key", "value", "gate"))
  true = dense(p["bias"], y)  # [b, j, k, h]
  factors = (
    network(p[name], np.concatenate([y.mean(axis), TOKENS], -1))
    for name, axis in (("query_network", 2), ("key_network", 1))
  )
  product = np.einsum("bjhr,bkhr->bjkh", *factors)
  added = {"pair": true, "factors": product, "none": 0 * true}[bias]
  out = np.zeros_like(q)
  for b, i, h in np.ndindex(B, N, 2):
    # Row i: (i, j) looks at (i, k), and the third side is (j, k).
    score = q[b, i, :, h] @ k[b, i, :, h].T / 2 + added[b, :, :, h]
    out[b, i, :, h] = softmax(score) @ v[b, i, :, h]
  out = out / (1 + np.exp(-gate))
  x = x + dense(p["out"], out, 2)
  y = dense(p["expand"], norm(p["ffn_norm"], x))
  error = ((product - true) ** 2).mean((1, 2, 3))
  return x + dense(p["shrink"], gelu(y)), error


@functools.cache
def restated(bias):
  p = jax.tree.map(
    lambda x: np.asarray(x, np.float64), variables_of()["params"]
  )
  x = dense(p["embed"], PAIRS)
  x, first = layer(p["layer_0"], x, bias)
  x, second = layer(p["layer_1"], x.swapaxes(1, 2), bias)
  x = x.swapaxes(1, 2)
  x = norm(p["norm"], x + x.swapaxes(1, 2))
  return dense(p["logits"], x), first + second


@pytest.mark.parametrize("bias", ["pair", "factors", "none"])
def test_it_is_what_is_written_down(bias):
  logits, _ = restated(bias)
  assert np.abs(logits).max() > 1
  np.testing.assert_allclose(applied(bias), logits, atol=2e-5)
  np.testing.assert_allclose(applied(bias), applied(bias).swapaxes(1, 2))


def test_the_error_of_the_networks_is_that_of_each_layer():
  _, error = restated("pair")
  got = applied("pair", "imitation")
  np.testing.assert_allclose(got, error, rtol=1e-4)
  assert (got > 0.1).all()


def test_networks_change_nothing_where_they_are_not_asked():
  params = {
    name: {n: x for n, x in own.items() if not n.endswith("_network")}
    for name, own in variables_of()["params"].items()
  }
  plain = jax.jit(PairModel(**FIELDS).apply)({"params": params}, TOKENS, PAIRS)
  np.testing.assert_allclose(plain, applied("pair"), atol=1e-6)


def test_late_layers_keep_their_biases():
  """As in AlphaFold 3, of which the first 16 layers take factors."""
  params = jax.tree.map(lambda x: x, variables_of()["params"])
  for name in ("query_network", "key_network"):
    del params["layer_1"][name]
  model = PairModel(**NETWORKS, bias="factors", factored_layers=1)
  shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS, PAIRS)
  assert jax.tree.structure(shapes["params"]) == jax.tree.structure(params)
  # The bias of the second layer moves what comes out, that of the first not.
  gradient = jax.jit(
    jax.grad(lambda p: jnp.sin(model.apply({"params": p}, TOKENS, PAIRS)).sum())
  )(params)
  assert np.abs(gradient["layer_1"]["bias"]["kernel"]).max() > 0
  assert (gradient["layer_0"]["bias"]["kernel"] == 0).all()
  for name in ("query_network", "key_network"):
    kernel = gradient["layer_0"][name]["dense_0"]["kernel"]
    assert np.abs(kernel).max() > 0


def test_biases_are_read_and_replaced():
  model = PairModel(**NETWORKS)
  read = functools.partial(taps.read, model)

  @jax.jit
  def both(variables):
    _, biases = read(variables, TOKENS, PAIRS, names=["*/bias"])
    nothing = {name: jnp.zeros_like(own) for name, own in biases.items()}
    return biases, read(variables, TOKENS, PAIRS, edit=nothing)[0]

  biases, out = both(variables_of())
  assert {b.shape for b in biases.values()} == {(B, 2, N, N)}
  np.testing.assert_allclose(out, applied("none"), atol=1e-5)


def test_maps_of_rows_are_read_and_edited():
  model = PairModel(**NETWORKS)
  name = "layer_0/attention_weights"

  @jax.jit
  def run(variables, share):
    mix = lambda x, site: (1 - share) * x + share / N
    return taps.read(
      model, variables, TOKENS, PAIRS, names=[name], edit={name: mix}
    )

  out, values = run(variables_of(), 0.0)
  np.testing.assert_allclose(out, applied("pair"), atol=1e-5)
  assert values[name].shape == (B * N, 2, N, N)
  np.testing.assert_allclose(values[name].sum(-1), 1, atol=1e-5)
  other, values = run(variables_of(), 1.0)
  np.testing.assert_allclose(values[name], 1 / N, atol=1e-6)
  assert np.abs(other - out).max() > 1e-3


def test_half_precision_is_near():
  model = PairModel(**NETWORKS, bias="factors", dtype=jnp.bfloat16, remat=True)
  out = jax.jit(model.apply)(variables_of(), TOKENS, PAIRS)
  assert out.dtype == jnp.float32
  assert np.abs(out - applied("factors")).max() < 0.3


@pytest.mark.parametrize(
  ("fields", "error"),
  [
    ({"bias": "pairs"}, "there is no bias 'pairs'; did you mean pair"),
    ({"bias": "factors"}, "bias_rank is 0, and must be at least 1"),
    ({"heads": 3}, "heads is 3, which does not divide width 8"),
  ],
)
def test_fields_that_do_not_fit(fields, error):
  model = PairModel(**{**FIELDS, **fields})
  with pytest.raises(ValueError, match=error):
    jax.eval_shape(model.init, jax.random.key(0), TOKENS, PAIRS)
  with pytest.raises(ValueError, match="bias_rank is 0: a model without"):
    jax.eval_shape(
      functools.partial(PairModel(**FIELDS).apply, method="imitation"),
      variables_of(0),
      TOKENS,
      PAIRS,
    )
