"""TauGate and p-adapter, against second statements of their formulas."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention import p_laplacian
from models import feed_forward, insertion, perceptron, taps
from tests.attention import test_p_laplacian as loops
from tests.models import language, small
from tests.models.test_insertion import randomised

IMAGES = small.images(3, 4, 1)
GATE = {"name": "tau_gate", "sharpness": 10.0}
GATES = (
  ("layer_1", {**GATE, "source": "layer_0"}),
  ("head/logits", {**GATE, "source": "layer_1"}),
)


def gated(**options):
  model = perceptron.Perceptron(widths=(9, 8), num_classes=4, inserts=GATES)
  if not options:
    return model
  return insertion.changed(model, "tau_gate", **options)


def neurons(params, gates, gate_of):
  """Both hidden layers behind their gates, and logits."""
  x = np.asarray(IMAGES, np.float64).reshape(len(IMAGES), -1)
  hidden = []
  for name, gate in zip(("layer_0", "layer_1"), gates, strict=True):
    own = {k: np.asarray(v, np.float64) for k, v in gate.items()}
    layer = {k: np.asarray(params[name][k], np.float64) for k in LEAVES}
    z = x @ layer["kernel"] + layer["bias"][None]
    x = own["scale"][None] * gate_of(z - own["threshold"][None])
    x = x * np.maximum(z, 0)
    hidden.append(x)
  head = params["head"]["logits"]
  logits = x @ np.asarray(head["kernel"]) + np.asarray(head["bias"])[None]
  return *hidden, logits


LEAVES = ("kernel", "bias")


@pytest.fixture(scope="module")
def variables():
  return randomised(gated(), IMAGES)


def gates_of(params):
  return params["layer_1"]["tau_gate"], params["head"]["logits"]["tau_gate"]


def test_gates_are_thresholds_and_gains(variables):
  params = variables["params"]
  sigmoid = lambda x: 1 / (1 + np.exp(-10 * x))
  wanted = neurons(params, gates_of(params), sigmoid)
  out, gates = taps.read(gated(), variables, IMAGES, names=["*/gate"])
  np.testing.assert_allclose(out, wanted[-1], rtol=1e-4, atol=1e-4)
  assert [*gates] == ["head/logits/tau_gate/gate", "layer_1/tau_gate/gate"]
  # 2 a neuron of both layers, and nothing else is inserted.
  sizes = [g.size for gate in gates_of(params) for g in gate.values()]
  assert sum(sizes) == 2 * (9 + 8)
  hard = neurons(params, gates_of(params), lambda x: (x > 0).astype(float))
  np.testing.assert_allclose(
    gated(hard=True).apply(variables, IMAGES), hard[-1], rtol=1e-4, atol=1e-4
  )
  # Soft gates that are sharp are hard ones.
  np.testing.assert_allclose(
    gated(sharpness=1e6).apply(variables, IMAGES), hard[-1], atol=1e-4
  )


def test_gradients_of_gates(variables):
  """dh/dthreshold = -scale s g (1 - g) relu(z), dh/dscale = g relu(z)."""
  factors = np.random.default_rng(0).standard_normal((3, 4))

  def total(params):
    out = gated().apply({"params": params}, IMAGES)
    return (out * jnp.asarray(factors, jnp.float32)).sum()

  params = variables["params"]
  grad = jax.jit(jax.grad(total))(params)["head"]["logits"]["tau_gate"]
  gate = gates_of(params)[1]
  first = np.asarray(neurons(params, gates_of(params), _sigmoid)[0])
  own = {k: np.asarray(params["layer_1"][k]) for k in LEAVES}
  z = first @ own["kernel"] + own["bias"][None]
  g = _sigmoid(z - np.asarray(gate["threshold"])[None])
  kernel = np.asarray(params["head"]["logits"]["kernel"])
  back = (factors @ kernel.T) * np.maximum(z, 0)
  slope = -10 * np.asarray(gate["scale"])[None] * g * (1 - g)
  for name, wanted in (("threshold", back * slope), ("scale", back * g)):
    np.testing.assert_allclose(
      grad[name], wanted.sum(0), rtol=1e-3, atol=1e-4, err_msg=name
    )


def _sigmoid(x):
  return 1 / (1 + np.exp(-10 * x))


def test_gates_begin_almost_open_and_can_be_ia3():
  base = perceptron.Perceptron(widths=(9, 8), num_classes=4)
  variables = gated().init(jax.random.key(0), IMAGES)
  _, gates = taps.read(gated(), variables, IMAGES, names=["*/gate"])
  plain = base.apply(variables, IMAGES, method="features")
  open_ = gated().apply(variables, IMAGES, method="features")
  # The gates of the first layer are what the second reads.
  z = (
    np.asarray(IMAGES).reshape(3, -1) @ variables["params"]["layer_0"]["kernel"]
  )
  gate = np.asarray(gates["layer_1/tau_gate/gate"])
  assert gate[z >= 0].min() >= 0.982
  np.testing.assert_array_equal(plain[0], open_[0])
  difference = np.abs(gate * np.maximum(z, 0) - np.maximum(z, 0))
  assert (difference <= 0.018 * np.maximum(z, 0) + 1e-6).all()
  # Without a threshold they are factors of the input.
  ia3 = (("layer_1", {"name": "ia3", "side": "input"}),)
  model = base.clone(inserts=ia3)
  factors = np.random.default_rng(0).standard_normal(9).astype(np.float32)
  own = {
    "tau_gate": {"threshold": jnp.full(9, -1e9), "scale": factors},
    "ia3": {"scale": factors},
  }
  params = variables["params"]
  params = {**params, "layer_1": {**params["layer_1"], **own}}
  only = gated().clone(inserts=GATES[:1])
  np.testing.assert_allclose(
    only.apply({"params": params}, IMAGES),
    model.apply({"params": params}, IMAGES),
    rtol=1e-5,
    atol=1e-6,
  )


def test_sharpness_grows_with_training_steps():
  model = gated(sharpness=5.0, last_sharpness=20.0, anneal_steps=3)
  variables = model.init(jax.random.key(0), IMAGES)
  state = variables.pop(insertion.STATE)
  params = variables["params"]
  seen = []
  for _ in range(5):
    now = {"params": params, insertion.STATE: state}
    seen.append(np.asarray(model.apply(now, IMAGES)))
    _, new = model.apply(now, IMAGES, train=True, mutable=[insertion.STATE])
    state = new[insertion.STATE]
  for out, sharpness in zip(seen, (5.0, 10.0, 15.0, 20.0, 20.0), strict=True):
    # The thresholds are parameters, and stay where 5 has put them.
    fixed = gated(sharpness=sharpness).apply({"params": params}, IMAGES)
    np.testing.assert_allclose(out, fixed, rtol=1e-5, atol=1e-6)


def test_gates_stand_in_feed_forward_layers():
  rule = ("mlp/shrink", {"name": "tau_gate", "source": "gate"})
  model = language.model(inserts=(rule,), dtype="bfloat16")
  tokens = jnp.arange(8).reshape(2, 4)
  variables = randomised(model, tokens)
  out, gates = taps.read(model, variables, tokens, names=["*/gate"])
  (gate,) = gates.values()
  assert (gate.dtype, gate.shape) == (jnp.float32, (2, 4, 24))
  assert np.isfinite(out).all()
  # What a tap says of a gate is what the model does.
  closed = {"layer_0/mlp/shrink/tau_gate/gate": jnp.zeros((2, 4, 24))}
  without, _ = taps.read(model, variables, tokens, edit=closed)
  params = dict(variables["params"])
  params["layer_0"] = dict(params["layer_0"])
  params["layer_0"]["mlp"] = jax.tree.map(
    jnp.zeros_like, params["layer_0"]["mlp"]
  )
  np.testing.assert_allclose(
    without, model.apply({"params": params}, tokens), atol=1e-6
  )


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"sharpness": 0.0}, "sharpness is 0.0 and last_sharpness 0.0"),
    ({"last_sharpness": 20.0}, "it needs both or neither"),
    ({"anneal_steps": 3}, "it needs both or neither"),
    ({"hrd": True}, "no field of TauGate 'hrd'"),
  ],
)
def test_gates_that_cannot_be(options, message):
  with pytest.raises(ValueError, match=message):
    gated(**options).init(jax.random.key(0), IMAGES)


def test_only_inserts_that_are_there_can_be_changed():
  with pytest.raises(ValueError, match="no insert 'lora'; its inserts are"):
    insertion.changed(gated(), "lora", rank=2)


def adapted(own, h, passed):
  """h + W_o(gelu(W_g h) * F')."""
  gate = h @ own["gate"]["kernel"] + own["gate"]["bias"]
  hidden = np.asarray(feed_forward.exact_gelu(gate)) * passed
  return h + hidden @ own["up"]["kernel"] + own["up"]["bias"]


def spread(x, heads):
  """[batch, n, heads * d] as [batch * heads, n, d]."""
  batch, n, width = x.shape
  x = x.reshape(batch, n, heads, width // heads).swapaxes(1, 2)
  return x.reshape(batch * heads, n, -1)


def joined(x, heads):
  """The inverse of `spread`."""
  _, n, d = x.shape
  x = x.reshape(-1, heads, n, d).swapaxes(1, 2)
  return x.reshape(len(x), n, heads * d)


def numbers(tree):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def mixing(own, exponent, mu):
  p = np.clip(own["exponent"], 1.001, 2)
  assert p == exponent
  return p, mu * (2 + np.tanh(own["smoothing"]))


def test_p_adapter_of_self_attention():
  options = {"name": "p_adapter", "width": 8, "mu": 0.3, "zero_init": False}
  model = language.model(inserts=(("mixer/out", options),))
  tokens = jnp.arange(10).reshape(2, 5)
  variables = randomised(model, tokens)
  own = variables["params"]["layer_0"]["mixer"]["out"]["p_adapter"]
  own["exponent"] = jnp.asarray(1.5)
  seen = {}

  def watch(run, args, kwargs, context):
    y = run(*args, **kwargs)
    if context.method_name == "__call__":
      seen["/".join(context.module.path[-1:])] = args, y
    return y

  with nn.intercept_methods(watch):
    _, maps = taps.read(model, variables, tokens, names=["*/attention_weights"])
  (weights,) = maps.values()  # [2, 4, 5, 5]
  params = numbers(variables["params"]["layer_0"]["mixer"]["out"])
  own = params["p_adapter"]
  (x,), out = seen["out"]  # [2, 5, 4, 4], [2, 5, 16]
  nodes = np.repeat(numbers(seen["value"][1]), 2, axis=2)
  project = lambda x: np.einsum("bnhd,hdc->bnc", x, params["kernel"])
  f = project(nodes) @ own["features"]["kernel"] + own["features"]["bias"]
  p, mu = mixing(own, 1.5, 0.3)
  passed = loops.loops_self(
    numbers(weights).reshape(8, 5, 5), spread(f, 4), p, mu
  )
  wanted = adapted(own, project(numbers(x)), joined(passed, 4))
  # GELU's approximation is off by more.
  np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)


class Cross(taps.Tapped):
  """Cross-attention whose map is in the open."""

  heads: int = 2

  @nn.compact
  def __call__(self, x, image):
    split = lambda y: y.reshape(*y.shape[:2], self.heads, -1)
    q = split(nn.Dense(6, name="query")(x))
    k, v = (split(nn.Dense(6, name=name)(image)) for name in ("key", "value"))
    weights = nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
    out = taps.with_open_map(
      self,
      lambda: jnp.einsum("bhqk,bkhd->bqhd", weights, v),
      lambda: weights,
      lambda weights: jnp.einsum("bhqk,bkhd->bqhd", weights, v),
    )
    return nn.Dense(5, name="out")(out.reshape(*out.shape[:2], 6))


@pytest.mark.parametrize("pooled", [0, 4])
def test_p_adapter_of_cross_attention(pooled):
  options = {"name": "p_adapter", "width": 4, "graph": "bipartite"}
  options |= {"pooled": pooled, "zero_init": False}
  model = Cross(inserts=(("out", options),))
  x = jax.random.normal(jax.random.key(0), (2, 3, 5))
  image = jax.random.normal(jax.random.key(1), (2, 7, 5))
  variables = randomised(model, x, image)
  params = numbers(variables["params"])
  own = params["out"]["p_adapter"]
  dense = lambda layer, x: x @ layer["kernel"] + layer["bias"]
  q, k, v = (
    dense(params[name], numbers(y))
    for name, y in (("query", x), ("key", image), ("value", image))
  )
  scores = np.einsum("bqd,bkd->bqk", spread(q, 2), spread(k, 2))
  weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
  h = dense(params["out"], joined(weights @ spread(v, 2), 2))
  features = [
    spread(dense(own["features"], dense(params["out"], nodes)), 2)
    for nodes in (q, v)
  ]
  if pooled:
    average = lambda x, axis: numbers(
      p_laplacian.adaptive_average(jnp.asarray(x, jnp.float32), pooled, axis)
    )
    weights, features[1] = average(weights, -1), average(features[1], 1)
  p, mu = mixing(own, np.clip(own["exponent"], 1.001, 2), 0.1)
  passed = loops.loops_bipartite(weights, *features, p, mu)
  wanted = adapted(own, h, joined(passed, 2))
  ours = model.apply(variables, x, image)
  np.testing.assert_allclose(ours, wanted, rtol=1e-3, atol=1e-4)


def test_p_adapter_has_as_many_parameters_as_published():
  model = language.model(
    width=768,
    heads=12,
    kv_heads=0,
    mlp_width=8,
    inserts=(("mixer/out", {"name": "p_adapter", "width": 96}),),
  )
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)
  )
  own = shapes["params"]["layer_0"]["mixer"]["out"]["p_adapter"]
  assert sum(x.size for x in jax.tree.leaves(own)) == 222_146


def test_p_adapter_refuses_a_cache():
  rule = ("mixer/out", {"name": "p_adapter", "width": 8})
  model = language.model(inserts=(rule,))
  tokens = jnp.zeros((1, 3), jnp.int32)
  variables = model.init(jax.random.key(0), tokens)
  cache = model.init_cache(1, 8)
  with pytest.raises(ValueError, match="in one call, without a cache"):
    model.apply(variables, tokens, cache=cache)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"width": 6}, r"width is 6; p_adapter at layer_0/mixer/out .* of 4"),
    ({"exponent": 1.0}, "exponent of p_adapter .* is 1.0; it must be above 1"),
    ({"mu": 0.0}, "mu of p_adapter .* is 0.0; it must be positive"),
    ({"graph": "tree"}, "no graph of p_adapter 'tree'"),
    ({"pooled": 2}, "pooled is 2, but graph='self'"),
    ({"value": "query_norm"}, "reads 'query_norm', but no module"),
  ],
)
def test_p_adapters_that_cannot_be(options, message):
  rule = ("mixer/out", {"name": "p_adapter", **options})
  model = language.model(inserts=(rule,))
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
