"""A choice for each row, against dense masks in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import router, sequence_mixers, taps
from models.layers import Dtype
from models.transformer import stack_layers
from tests import parity_helper
from tests.models import language

WINDOW, SINK, POOLED = 3, 2, 2
OPTIONS = {"sink_tokens": SINK, "pooled_tokens": POOLED}
ROWS, LENGTH, HEADS, DIM = 3, 13, 2, 4
ROUTES = np.array([0.0, 1.0, 0.0], np.float32)


def create(mixer="routed", dtype: Dtype = jnp.float32, **offered):
  options = OPTIONS if mixer == "routed" else {}
  offered = {"heads": HEADS, "head_dim": DIM, "window": WINDOW, **offered}
  return sequence_mixers.create(mixer, {**offered, "dtype": dtype}, options)


def inputs(dtype=jnp.float32):
  x = np.random.default_rng(0).normal(size=(ROWS, LENGTH, 8))
  return jnp.asarray(2 * x, dtype)


def drawn(mixer, x):
  shapes = jax.eval_shape(mixer.init, jax.random.key(0), x)["params"]
  return {"params": parity_helper.randomise(shapes, 0)}


def visible(route):
  """[length, length]: what a row sees, from the sheet's formula."""
  q, k = np.arange(LENGTH)[:, None], np.arange(LENGTH)[None, :]
  near = (k < SINK) | (q - k < WINDOW)
  return (k <= q) & (near | (route > 0))


def attended(params, x, route):
  """What a row [length, width] becomes, in float64."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  project = lambda name: np.einsum("lw,whd->hld", x, params[name]["kernel"])
  q, k, v = map(project, ("query", "key", "value"))
  scores = np.einsum("hqd,hkd->hqk", q, k) / np.sqrt(DIM)
  weights = np.exp(scores - scores.max(-1, keepdims=True)) * visible(route)
  weights /= weights.sum(-1, keepdims=True)
  heads = np.einsum("hqk,hkd->qhd", weights, v)
  return np.einsum("qhd,hdw->qw", heads, params["out"]["kernel"])


def test_parameters_of_the_paper():
  x = jax.ShapeDtypeStruct((1, 128), jnp.float32)
  params = jax.eval_shape(router.Router().init, jax.random.key(0), x)["params"]
  count = lambda *names: sum(
    leaf.size for name in names for leaf in jax.tree.leaves(params[name])
  )
  assert count("expand", "feature") == 394_496
  assert count("hidden", "shrink", "logits") == 197_506


def test_every_row_begins_with_full_attention():
  x = 100 * np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)
  variables = router.Router().init(jax.random.key(3), x)
  logits = router.Router().apply(variables, x)
  np.testing.assert_array_equal(logits, np.tile([0, 4.5], (64, 1)))
  # Kaiming's uniform with a = sqrt(5) is 1 / sqrt(inputs) on either side.
  kernel = np.abs(variables["params"]["feature"]["kernel"])
  assert 0.97 < kernel.max() * np.sqrt(128) <= 1
  assert kernel.mean() * np.sqrt(128) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("count", [1, 4, 5, 9])
def test_the_first_and_last_queries_are_pooled(count):
  rng = np.random.default_rng(count)
  q = rng.normal(size=(3, 11, 2, 5)).astype(np.float32)
  kept = np.zeros((3, 11), bool)
  kept[0], kept[1, 4:] = True, True
  expected = np.zeros((3, 5))
  for row in (0, 1):
    asked = q[row, kept[row]]
    both = np.concatenate([asked[:count], asked[-count:]])
    expected[row] = both.mean((0, 1))
  actual = router.pooled(jnp.asarray(q), jnp.asarray(kept), count)
  np.testing.assert_allclose(actual, expected, atol=1e-6)
  every = router.pooled(jnp.asarray(q[:1]), None, count)
  np.testing.assert_allclose(every, expected[:1], atol=1e-6)


def test_a_draw_is_hard_and_its_gradient_soft():
  rng, key = np.random.default_rng(0), jax.random.key(5)
  logits = rng.normal(size=(50, 2)).astype(np.float32)
  temperature, weights = 1.25, rng.normal(size=50)
  draw = functools.partial(router.straight_through, key=key)
  value, pull = jax.vjp(lambda x: draw(x, temperature=temperature), logits)
  uniform = np.asarray(jax.random.uniform(key, (50, 2)), np.float64)
  noisy = logits - np.log(-np.log(uniform + 1e-8) + 1e-8)
  apart = noisy[:, 1] - noisy[:, 0]
  np.testing.assert_array_equal(value, apart > 0)
  assert 10 < value.sum() < 40
  share = 1 / (1 + np.exp(-apart / temperature))
  slope = weights * share * (1 - share) / temperature
  (gradient,) = pull(weights.astype(np.float32))
  np.testing.assert_allclose(gradient, np.stack([-slope, slope], 1), atol=1e-6)


def run(mixer, variables, x, routes=ROUTES, names=(), **options):
  """Returns the output, with routes that are given, and what is tapped."""
  given = {} if routes is None else {"route": jnp.asarray(routes)}
  (out, _), values = taps.read(
    mixer, variables, x, names=names, edit=given, **options
  )
  return out, values


def test_a_streaming_token_sees_the_first_and_the_near():
  mixer, x = create(), inputs()
  name = "attention_weights"
  weights = run(mixer, drawn(mixer, x), x, names=[name])[1][name]
  for row, full in enumerate(ROUTES):
    expected = np.arange(LENGTH) + 1
    if not full:
      expected = np.minimum(expected, SINK + WINDOW)
    seen = (weights[row] > 0).sum(-1)
    np.testing.assert_array_equal(seen, np.tile(expected, (HEADS, 1)))
    for head in weights[row]:
      np.testing.assert_array_equal(head > 0, visible(full))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_batch_is_its_rows(dtype):
  """All at once by masks, one by one by branches, and mixed in training."""
  mixer, x = create(dtype=dtype), inputs(dtype)
  variables = drawn(mixer, x)
  expected = np.stack(
    [
      attended(variables["params"], np.asarray(row, np.float64), route)
      for row, route in zip(x, ROUTES, strict=True)
    ]
  )
  tolerance = 1e-5 if dtype == jnp.float32 else 0.03 * np.abs(expected).max()
  close = functools.partial(
    np.testing.assert_allclose, desired=expected, rtol=0, atol=tolerance
  )

  @jax.jit
  def outputs(variables, x):
    alone = [
      run(mixer, variables, x[i : i + 1], ROUTES[i : i + 1])[0]
      for i in range(ROWS)
    ]
    with router.routing(temperature=1.0):
      rngs = {"routing": jax.random.key(0)}
      mixed = run(mixer, variables, x, rngs=rngs)[0]
    return run(mixer, variables, x)[0], jnp.concatenate(alone), mixed

  for out in outputs(variables, x):
    assert out.dtype == dtype
    close(np.asarray(out, np.float64))


def test_gradients_of_a_batch_are_those_of_its_rows():
  mixer, x = create(position_encoding="rotary"), inputs()
  variables = drawn(mixer, x)
  weights = np.random.default_rng(2).normal(size=x.shape).astype(np.float32)

  def total(x, rows):
    out, _ = run(mixer, variables, x, ROUTES[rows])
    return (out * weights[rows]).sum()

  together = jax.jit(jax.grad(lambda x: total(x, slice(0, ROWS))))(x)
  for row in range(ROWS):
    rows = slice(row, row + 1)
    alone = jax.jit(jax.grad(lambda x, rows=rows: total(x, rows)))(x[rows])
    np.testing.assert_allclose(together[rows], alone, atol=2e-5)


def test_routers_learn_of_what_full_attention_would_change(monkeypatch):
  """The gradient is <cotangent, full - streaming> times that of the choice."""
  mixer, x = create(), inputs()
  variables = drawn(mixer, x)
  params = variables["params"]
  weights = np.random.default_rng(2).normal(size=x.shape).astype(np.float32)
  draws = []

  def straight_through(logits, key, temperature):
    draws.append((logits, temperature))
    return logits[:, 1] - logits[:, 0]

  monkeypatch.setattr(router, "straight_through", straight_through)

  def total(params):
    with router.routing(temperature=0.5):
      rngs = {"routing": jax.random.key(0)}
      out, _ = mixer.apply({"params": params}, x, rngs=rngs)
    return (out * weights).sum()

  gradient = jax.jit(jax.grad(total))(params)["router"]["logits"]["bias"]
  rows = np.asarray(x, np.float64)
  apart = sum(
    (w * (attended(params, row, 1) - attended(params, row, 0))).sum()
    for w, row in zip(weights, rows, strict=True)
  )
  np.testing.assert_allclose(gradient, [-apart, apart], rtol=1e-4)
  assert draws[0][1] == 0.5


def test_full_rows_are_those_of_the_full_mixer():
  mixer, full = (
    create(mixer, position_encoding="rotary", output_gate="headwise")
    for mixer in ("routed", "full")
  )
  x = inputs()
  variables = drawn(mixer, x)
  out, _ = run(mixer, variables, x, np.ones(ROWS, np.float32))
  params = {n: p for n, p in variables["params"].items() if n != "router"}
  expected, _ = full.apply({"params": params}, x)
  np.testing.assert_allclose(out, expected, atol=1e-6)


def routed_model(**overrides):
  return language.model(
    mixers=("routed",),
    mixer_options={"routed": {**OPTIONS, "sink_tokens": 1}},
    window=WINDOW,
    depth=2,
    **overrides,
  )


def always(variables, bias):
  """The same with routers that choose by the bias of their logits alone."""

  def change(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if "router/logits" not in name:
      return leaf
    return jnp.asarray(bias) if name.endswith("bias") else 0 * leaf

  return jax.tree_util.tree_map_with_path(change, variables)


# Rows begin at the places 0, 3 and 0, where the first to come of each decide.
PREFILLS = (2, 5)
PROMPT = np.zeros((3, language.LENGTH), bool)
PROMPT[0, :2] = PROMPT[2, :2] = PROMPT[1, 3:7] = True


STREAM = (4.5, 0.0)


@pytest.mark.parametrize(
  ("bias", "dtype", "scan"),
  [
    (None, jnp.float32, True),
    (STREAM, jnp.bfloat16, False),
  ],
)
def test_a_choice_lasts_while_decoding(bias, dtype, scan):
  model = routed_model(dtype=dtype)
  variables = language.variables(model, seed=4)
  if bias is not None:
    variables = always(variables, bias)
  arrays = language.packed()

  @jax.jit
  def outputs(variables, arrays):
    with router.routing(prompt=PROMPT):
      whole, routes = taps.read(
        model,
        variables,
        arrays[0],
        positions=arrays[1],
        segments=arrays[2],
        names=["*/route"],
      )
    return whole, routes

  expected, routes = outputs(variables, arrays)
  choices = np.stack(list(routes.values()))
  if bias is None:
    assert 0 < choices.sum() < choices.size
  else:
    assert not choices.any()
  if scan:
    model = model.clone(scan_layers=True)
    variables = {"params": stack_layers(variables["params"])}
  decode = jax.jit(lambda v, a: language.decode(model, v, a, PREFILLS))
  out = decode(variables, arrays)
  there = arrays[1] >= 0
  tolerance = 1e-5 if dtype == jnp.float32 else 0.04 * np.abs(expected).max()
  np.testing.assert_allclose(
    out[there], expected[there], rtol=0, atol=tolerance
  )


def test_a_step_of_streaming_rows_reads_no_more_than_it_sees():
  model, length = routed_model(), 20
  variables = always(language.variables(model), STREAM)
  tokens = language.tokens((2, length))
  begin = np.array([0, 4])
  positions = np.maximum(np.arange(length)[None, :] - begin[:, None], -1)
  cache = model.init_cache(2, length)
  step = jax.jit(model.apply)
  before = length - 3
  _, cache = step(
    variables, tokens[:, :before], positions=positions[:, :before], cache=cache
  )
  following = {
    "tokens": tokens[:, before : before + 1],
    "positions": positions[:, before : before + 1],
  }
  expected, _ = step(variables, **following, cache=cache)
  slot = np.arange(length)[None, :]
  seen = (slot == begin[:, None]) | (slot > before - WINDOW)
  seen = jnp.asarray(seen)[:, None, :, None]
  spoiled = {
    layer: {
      name: jnp.where(seen, x, jnp.nan) if name in ("keys", "values") else x
      for name, x in own.items()
    }
    for layer, own in cache.items()
  }
  out, _ = step(variables, **following, cache=spoiled)
  np.testing.assert_array_equal(out, expected)
  # As soon as one row is full, all slots are read.
  mixed = {
    layer: {**own, "route": own["route"].at[0].set(1)}
    for layer, own in spoiled.items()
  }
  assert jnp.isnan(step(variables, **following, cache=mixed)[0]).any()


ERRORS = [
  ({"window": 0}, {}, "window is 0; a routed mixer needs at least 1"),
  ({}, {"sink_tokens": -1}, "sink_tokens is -1.*at least 0"),
  ({}, {"pooled_tokens": 0}, "pooled_tokens is 0.*at least 1"),
  ({"causal": False}, {}, "causal is False"),
  ({}, {"scale_by": "log_length"}, "scale_by is 'log_length'.*'constant'"),
  ({}, {"selective_values": {"count": 2}}, "selective_values is FrozenDict"),
  ({}, {"sparse_decoding": {"sink": 1}}, "sparse_decoding is FrozenDict"),
  ({"key_dim": 2}, {}, "key_dim is 2; a routed mixer needs 0"),
]


@pytest.mark.parametrize(("offered", "options", "message"), ERRORS)
def test_errors_name_what_would_fit(offered, options, message):
  offered = {"heads": 2, "head_dim": 4, "window": 3, **offered}
  mixer = sequence_mixers.create("routed", offered, options)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(mixer.init, jax.random.key(0), jnp.zeros((1, 3, 8)))


def test_a_draw_and_a_cache_do_not_go_together():
  mixer, x = create(), inputs()
  cache = mixer.init_cache(ROWS, LENGTH)
  places = jnp.tile(jnp.arange(LENGTH)[None], (ROWS, 1))
  with (
    router.routing(temperature=1.0),
    pytest.raises(
      ValueError, match=r"temperature is 1\.0 and there is a cache"
    ),
  ):
    mixer.apply(drawn(mixer, x), x, places, None, cache)
