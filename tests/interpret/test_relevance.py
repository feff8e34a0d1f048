"""Propagation over lists of layers: identities, conservation, real models."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from interpret import relevance
from interpret import relevance_layers as kinds
from interpret import relevance_rules as rules


def _flat(x):
  return x.reshape(len(x), -1)


def _cnn(use_bias):
  """Overlapping pools, strides, paddings, groups, a mean."""
  conv = functools.partial(nn.Conv, use_bias=use_bias)
  return nn.Sequential(
    [
      conv(6, (3, 3), strides=2, padding=((2, 1), (1, 0))),
      nn.relu,
      kinds.MaxPool((3, 3), (2, 2)),
      conv(8, (3, 3), padding=1, feature_group_count=2),
      nn.relu,
      kinds.AveragePool((2, 2)),
      kinds.Moved(_flat),
      nn.Dense(9, use_bias=use_bias),
      nn.relu,
      nn.Dense(4, use_bias=use_bias),
    ]
  )


@functools.cache
def _made(use_bias):
  model = _cnn(use_bias)
  x = jnp.abs(jax.random.normal(jax.random.key(0), (3, 19, 17, 3)))
  variables = jax.jit(model.init)(jax.random.key(1), x)
  leaves, tree = jax.tree.flatten(variables)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  # Biases too, which begin as zeros.
  leaves = [
    leaf + 0.2 * jax.random.normal(key, leaf.shape)
    for leaf, key in zip(leaves, keys, strict=True)
  ]
  return model, jax.tree.unflatten(tree, leaves), x


def test_zero_everywhere_is_gradient_times_input():
  model, variables, x = _made(True)
  layers = relevance.of_sequential(model)
  propagate = jax.jit(functools.partial(relevance.propagate, layers))
  target = jnp.array([3, 0, 2])
  output, found = propagate(variables, x, target)
  np.testing.assert_allclose(output, model.apply(variables, x), atol=1e-5)

  def chosen(x):
    logits = model.apply(variables, x)
    return jnp.take_along_axis(logits, target[:, None], axis=1).sum()

  expected = x * jax.grad(chosen)(x)
  np.testing.assert_allclose(found[0], expected, atol=1e-5)
  # Biases take something, so that it is no accident that sums are kept below.
  totals = relevance.sums(found)
  assert totals.shape == (len(layers) + 1, 3)
  assert jnp.abs(totals[0] - totals[-1]).min() > 1e-3


@pytest.mark.parametrize(
  "rule",
  [
    rules.z_plus,
    rules.alpha_beta,
    functools.partial(rules.alpha_beta, alpha=1.0, beta=0.0),
  ],
)
def test_conservation_without_biases(rule):
  model, variables, x = _made(False)
  layers = relevance.of_sequential(model)
  rules_of = {kinds.Conv: rule, kinds.Dense: rule}
  layers = relevance.with_rules(layers, rules_of)
  _, found = jax.jit(functools.partial(relevance.propagate, layers))(
    variables, x
  )
  totals = relevance.sums(found)
  scale = jnp.abs(found[0]).sum((1, 2, 3))
  assert scale.min() > 1e-3
  np.testing.assert_allclose(
    (totals - totals[-1:]) / scale[None], 0.0, atol=1e-5
  )


def test_pixels_that_are_negative_conserve_by_their_box():
  model, variables, x = _made(False)
  x = jnp.clip(x - 0.8, -1.0, 1.0)
  layers = relevance.with_rules(
    relevance.of_sequential(model),
    {kinds.Conv: rules.z_plus, kinds.Dense: rules.z_plus},
    first=functools.partial(rules.z_box, low=-1.0, high=1.0),
  )
  assert layers[3].rule is rules.z_plus
  _, found = relevance.propagate(layers, variables, x)
  totals = relevance.sums(found)
  np.testing.assert_allclose(totals[0], totals[-1], rtol=1e-4)


def test_rules_of_the_repository():
  model, variables, x = _made(True)
  layers = relevance.of_sequential(model)
  layers = relevance.with_rules(layers, relevance.REPOSITORY_RULES)
  by_kind = {type(layer): getattr(layer, "rule", None) for layer in layers}
  assert by_kind[kinds.Dense] is rules.z_plus
  assert by_kind[kinds.Conv] is rules.zero
  _, found = relevance.propagate(layers, variables, x)
  totals = relevance.sums(found)
  # Dense layers and pools keep it; a convolution's bias takes R b / z.
  np.testing.assert_allclose(totals[4:], totals[-1:].repeat(7, 0), rtol=1e-4)
  z, _ = layers[0].forward(variables["params"], x)
  bias = variables["params"]["layers_0"]["bias"]
  kept = (found[1] * (1 - bias[None, None, None] / z)).sum((1, 2, 3))
  np.testing.assert_allclose(totals[0], kept, rtol=1e-4)
  assert jnp.abs(totals[0] / totals[1] - 1).max() > 1e-3


@pytest.mark.parametrize("rules_of", [{}, relevance.REPOSITORY_RULES])
def test_map_changes_with_the_last_layer(rules_of):
  model, variables, x = _made(True)
  layers = relevance.with_rules(relevance.of_sequential(model), rules_of)
  kernel = variables["params"]["layers_9"]["kernel"]
  anew = jax.random.normal(jax.random.key(5), kernel.shape)
  other = {**variables["params"]}
  other["layers_9"] = {**other["layers_9"], "kernel": anew}
  propagate = jax.jit(functools.partial(relevance.propagate, layers))
  maps = [
    propagate(params, x, jnp.array(1))[1][0]
    for params in (variables, {"params": other})
  ]
  one, two = (np.asarray(m).reshape(3, -1) for m in maps)
  for a, b in zip(one, two, strict=True):
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.999


@functools.cache
def _vit(**fields):
  model = models.create(
    "vit_tiny_16_224",
    num_classes=3,
    patch_size=4,
    width=12,
    depth=2,
    heads=3,
    hidden_width=20,
    image_size=12,
    **fields,
  )
  x = jax.random.normal(jax.random.key(0), (2, 12, 12, 3))
  variables = jax.jit(model.init)(jax.random.key(1), x)
  leaves, tree = jax.tree.flatten(variables)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  leaves = [
    leaf + 0.3 * jax.random.normal(key, leaf.shape)
    for leaf, key in zip(leaves, keys, strict=True)
  ]
  return model, jax.tree.unflatten(tree, leaves), x


@pytest.mark.parametrize(
  "fields",
  [
    {},
    {"class_token": False, "position": "none", "last_norm": False},
    {"shared_norm": True},
  ],
)
def test_list_of_a_vit_computes_what_the_model_does(fields):
  model, variables, x = _vit(**fields)
  layers = relevance.of_vit(model)
  output, _ = jax.jit(functools.partial(kinds.forward, layers))(
    variables["params"], x
  )
  expected = jax.jit(model.apply)(variables, x)
  np.testing.assert_allclose(output, expected, atol=1e-5)


def _held_vit(params, x, constant_weights):
  """The ViT with constants held: what x times its gradient is by LRP-0.

  GELU is x times a constant, deviations and, if asked for, attention weights
  are constants; and otherwise products pass half of their gradients on.
  """
  hold = jax.lax.stop_gradient

  def norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    x = x / hold(jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6))
    return x * p["scale"][None, None] + p["bias"][None, None]

  def dense(p, x, axes=1):
    y = jnp.tensordot(x, p["kernel"], axes)
    return y + jnp.broadcast_to(p["bias"], y.shape)

  def half(y):
    return y / 2 + hold(y / 2)

  def mix(p, x):
    q, k, v = (dense(p["qkv"], x)[:, :, i] for i in range(3))
    scores = half(jnp.einsum("bqhd,bkhd->bhqk", q, k)) / 2.0  # dim is 4.
    weights = jax.nn.softmax(scores)
    if constant_weights:
      out = jnp.einsum("bhqk,bkhd->bqhd", hold(weights), v)
    else:
      out = half(jnp.einsum("bhqk,bkhd->bqhd", weights, v))
    return dense(p["out"], out, 2)

  def feed(p, x):
    y = dense(p["expand"], x)
    y = y * hold(jax.scipy.stats.norm.cdf(y))
    return dense(p["shrink"], y)

  p = params["embed"]
  x = x.reshape(2, 3, 4, 3, 4, 3).transpose(0, 1, 3, 2, 4, 5)
  x = jnp.tensordot(x.reshape(2, 9, 48), p["conv"]["kernel"].reshape(48, 12), 1)
  x += p["conv"]["bias"][None, None]
  token = jnp.broadcast_to(p["class_token"], (2, 1, 12))
  x = jnp.concatenate([token, x], 1) + p["position"][None]
  for i in range(2):
    p = params[f"block_{i}"]
    x += mix(p["mixer"], norm(p["norm"], x))
    x += feed(p["ffn"], norm(p["ffn_norm"], x))
  x = norm(params["final_norm"], x)[:, 0]
  return dense(params["head"]["logits"], x)


@pytest.mark.parametrize("constant_weights", [True, False])
def test_vit_is_gradient_times_input_of_held_constants(constant_weights):
  model, variables, x = _vit()
  rule = rules.attention
  if constant_weights:
    rule = rules.attention_constant_weights
  layers = relevance.of_vit(model, rule)
  target = jnp.array([2, 0])
  output, found = jax.jit(functools.partial(relevance.propagate, layers))(
    variables, x, target
  )

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def gradient(x):
    logits = _held_vit(variables["params"], x, constant_weights)
    return logits[jnp.arange(2), target].sum(), logits

  slope, logits = gradient(x)
  np.testing.assert_allclose(output, logits, atol=1e-4)
  scale = jnp.abs(x * slope).max()
  np.testing.assert_allclose(found[0] / scale, x * slope / scale, atol=1e-4)


def test_vit_conserves_without_biases_and_with_constant_weights():
  model, variables, x = _vit(class_token=False, position="none")
  params = jax.tree_util.tree_map_with_path(
    lambda path, leaf: jnp.zeros_like(leaf) if path[-1].key == "bias" else leaf,
    variables,
  )
  totals = {}
  for rule in (rules.attention_constant_weights, rules.attention):
    layers = relevance.of_vit(model, rule)
    propagate = jax.jit(functools.partial(relevance.propagate, layers))
    totals[rule] = relevance.sums(propagate(params, x)[1])
  kept = totals[rules.attention_constant_weights]
  np.testing.assert_allclose(kept, kept[-1:].repeat(len(kept), 0), rtol=1e-3)
  # Softmax keeps a share of AttnLRP's.
  lost = totals[rules.attention]
  assert jnp.abs(lost[0] / lost[-1] - 1).min() > 1e-3


def test_bfloat16_activations():
  model, variables, x = _made(True)
  layers = relevance.with_rules(
    relevance.of_sequential(model), relevance.REPOSITORY_RULES
  )
  propagate = jax.jit(functools.partial(relevance.propagate, layers))
  target = jnp.array(2)
  _, wide = propagate(variables, x, target)
  output, found = propagate(variables, x.astype(jnp.bfloat16), target)
  assert output.dtype == jnp.bfloat16
  assert {r.dtype for r in found} == {jnp.dtype("float32")}
  for one, other in zip(found[0], wide[0], strict=True):
    alike = jnp.vdot(one, other)
    alike /= jnp.linalg.norm(one) * jnp.linalg.norm(other)
    assert alike > 0.98


def test_start():
  model, variables, x = _made(True)
  layers = relevance.of_sequential(model)
  output, found = relevance.propagate(layers, variables, x)
  winner = np.asarray(output).argmax(-1)
  np.testing.assert_array_equal(
    found[-1], np.asarray(output) * np.eye(4)[winner]
  )
  both = sum(relevance.propagate(layers, variables, x, c)[1][0] for c in (0, 1))
  start = output * jnp.array([[1.0, 1.0, 0.0, 0.0]])
  _, found = relevance.propagate(layers, variables, x, start)
  np.testing.assert_allclose(found[0], both, atol=1e-5)


def test_errors():
  model, variables, x = _made(True)
  layers = relevance.of_sequential(model)
  with pytest.raises(ValueError, match=r"target is 4; classes are 0 to 3"):
    relevance.propagate(layers, variables, x, 4)
  with pytest.raises(ValueError, match=r"must be like the output, \(3, 4\)"):
    relevance.propagate(layers, variables, x, jnp.ones((3, 5)))
  with pytest.raises(ValueError, match="'layer_0'; did you mean layers_0"):
    relevance.propagate([kinds.Conv("layer_0")], variables, x)
  with pytest.raises(ValueError, match="MaxPool has no rule to choose"):
    relevance.with_rules(layers, {kinds.MaxPool: rules.zero})
  with pytest.raises(ValueError, match="kind of layer at layers_0 'BatchNorm'"):
    relevance.of_sequential(nn.Sequential([nn.BatchNorm()]))
  with pytest.raises(ValueError, match="has padding='CIRCULAR'"):
    relevance.of_sequential(
      nn.Sequential([nn.Conv(2, (3, 3), padding="CIRCULAR")])
    )
  with pytest.raises(ValueError, match="must be of images"):
    relevance.of_sequential(nn.Sequential([nn.Conv(2, (3,))]))
  with pytest.raises(ValueError, match="model has mixer='mlp'"):
    relevance.of_vit(models.create("mixer_small_16_224", num_classes=2))
  vit, variables, x = _vit()
  with pytest.raises(ValueError, match="x gives 5 tokens"):
    relevance.propagate(relevance.of_vit(vit), variables, x[:, :8, :8])
