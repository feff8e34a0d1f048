"""DiffQKV: heads and widths of queries, keys and values of their own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

import attention
import models
from models import decoding, positions, pretrained, sequence_mixers
from models.weight_maps.hub import sigma
from tests import parity_helper
from tests.models import language
from tests.models.test_transformer import assert_close, count

HEADS, DIM, WIDTH, LENGTH = 8, 4, 12, 9
OFFERED = {"heads": HEADS, "head_dim": DIM, "position_encoding": "rotary"}


def _mixer(**options):
  return sequence_mixers.create("full", OFFERED, options)


def _with_variables(mixer, dtype=jnp.float32):
  x = jnp.asarray(
    np.random.default_rng(1).standard_normal((2, LENGTH, WIDTH)), dtype
  )
  shapes = jax.eval_shape(mixer.init, jax.random.key(0), x)
  return x, parity_helper.randomise(shapes["params"], 2)


def _oracle(mixer, params, x):
  """Each head with a copy of its keys and values, by JAX's own attention."""

  def heads(name, x=x):
    return jnp.einsum("blw,whd->blhd", x, params[name]["kernel"])

  if mixer.query_hidden:
    hidden = x @ params["query_expand"]["kernel"]
    if mixer.query_form == "gated":
      gate = x @ params["query_gate"]["kernel"]
      hidden = hidden * gate / (1 + jnp.exp(-gate))
    q = heads("query", hidden)
  else:
    q = heads("query")
  k, v = heads("key"), heads("value")
  if mixer.key_dim:
    k = jnp.einsum("blhk,hkd->blhd", k, params["key_up"])
  places = jnp.arange(LENGTH)[None]
  q, k = (positions.rotate(x, places, {}) for x in (q, k))
  k, v = (jnp.repeat(x, HEADS // x.shape[2], axis=2) for x in (k, v))
  if v.shape[-1] < DIM:
    v = jnp.pad(v, [(0, 0)] * 3 + [(0, DIM - v.shape[-1])])
  out = jax.nn.dot_product_attention(q, k, v, is_causal=True)
  kernel = params["out"]["kernel"]
  return jnp.einsum("blhd,hdw->blw", out[..., : kernel.shape[1]], kernel)


CASES = [
  {"key_heads": 1, "value_heads": 4},
  {"key_heads": 2, "value_heads": 4, "value_dim": 3},
  {"key_heads": 8, "value_heads": 2, "query_hidden": 7},
  {"kv_heads": 2, "query_hidden": 7, "query_form": "linear"},
  {"key_heads": 4, "value_heads": 8, "key_dim": 2},
]


def _loss(apply, out_bar, params, x):
  out = apply(params, x)
  return (out * out_bar).sum(), out


@pytest.mark.parametrize("options", CASES, ids=lambda o: "-".join(o))
def test_equals_repeated_heads(options):
  mixer = _mixer(**options)
  x, params = _with_variables(mixer)
  out_bar = np.random.default_rng(3).standard_normal(x.shape).astype("f4")

  def run(apply):
    loss = functools.partial(_loss, apply, out_bar)
    grad = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    return grad(params, x)

  actual = run(lambda params, x: mixer.apply({"params": params}, x)[0])
  expected = run(functools.partial(_oracle, mixer))
  assert_close(actual, expected)


def test_in_bfloat16():
  mixer = _mixer(**CASES[-1], dtype=jnp.bfloat16)
  x, params = _with_variables(mixer, jnp.bfloat16)
  out = mixer.apply({"params": params}, x)[0]
  assert out.dtype == jnp.bfloat16
  expected = _oracle(mixer, params, x.astype(jnp.float32))
  error = np.abs(out.astype(jnp.float32) - expected).max()
  assert error < 0.03 * np.abs(expected).max()


@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_grouped_queries_are_a_special_case(kv_heads):
  usual = _mixer(kv_heads=kv_heads)
  ours = _mixer(key_heads=kv_heads, value_heads=kv_heads)
  x, params = _with_variables(usual)
  assert _with_variables(ours)[1].keys() == params.keys()
  out, _ = ours.apply({"params": params}, x)
  np.testing.assert_array_equal(out, usual.apply({"params": params}, x)[0])


@pytest.mark.parametrize("implementation", ["tpu_interpret", "gpu_interpret"])
def test_kernels_take_fewer_heads_of_keys(implementation):
  mixer = _mixer(key_heads=2, value_heads=4)
  x, params = _with_variables(mixer)
  fused = mixer.clone(implementation=implementation)
  places = np.arange(LENGTH) - [[0], [3]]
  places = jnp.asarray(np.maximum(places, -1), jnp.int32)

  @jax.jit
  def run(variables, x):
    # A step, among keys of which some are padding.
    cache = mixer.init_cache(2, LENGTH)
    _, cache = mixer.apply(variables, x[:, :-1], places[:, :-1], None, cache)
    end = x[:, -1:], places[:, -1:], None, cache
    return [
      (m.apply(variables, x)[0], m.apply(variables, *end)[0])
      for m in (fused, mixer)
    ]

  actual, expected = run({"params": params}, x)
  for ours, plain in zip(actual, expected, strict=True):
    np.testing.assert_allclose(ours, plain, atol=1e-5)


def test_values_of_the_largest_weights():
  rng = np.random.default_rng(0)
  scores, v = (
    rng.standard_normal((2, 4, 3, 7)),
    rng.standard_normal((2, 7, 2, 5)),
  )
  weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
  for renormalize in (False, True):
    kept = np.where(weights >= np.sort(weights)[..., -3:-2], weights, 0)
    if renormalize:
      kept /= kept.sum(-1, keepdims=True)
    expected = np.einsum("bhqk,bkhd->bqhd", kept, v.repeat(2, axis=2))
    arrays = (jnp.asarray(x, jnp.float32) for x in (weights, v))
    out = attention.apply_top_weights(*arrays, count=3, renormalize=renormalize)
    np.testing.assert_allclose(out, expected, atol=1e-6)
  weights, v = (jnp.asarray(x, jnp.float32) for x in (weights, v))
  # With all there are it is the sum of all.
  np.testing.assert_allclose(
    attention.apply_top_weights(weights, v, count=100),
    attention.apply_attention_weights(weights, v),
    atol=1e-6,
  )
  with pytest.raises(ValueError, match="count is 0"):
    attention.apply_top_weights(weights, v, count=0)
  v = v[:, :, jnp.array([0, 1, 1])]
  with pytest.raises(ValueError, match=r"v has shape \(2, 7, 3, 5\)"):
    attention.apply_top_weights(weights, v, count=1)


def test_a_step_of_decoding_reads_few_values():
  few = {"selective_values": {"count": 2}}
  mixer = _mixer(value_heads=4, value_dim=5, **few)
  x, params = _with_variables(mixer)
  places = jnp.tile(jnp.arange(LENGTH), (2, 1))
  dense = mixer.clone(selective_values={})
  variables, cache = {"params": params}, mixer.init_cache(2, LENGTH)
  _, cache = mixer.apply(variables, x[:, :-1], places[:, :-1], None, cache)
  end = x[:, -1:], places[:, -1:], None, cache
  out, _ = mixer.apply(variables, *end)
  assert np.abs(out - dense.apply(variables, *end)[0]).max() > 1e-2
  # No product has the values of all slots.
  program = jax.make_jaxpr(lambda *end: mixer.apply(variables, *end)[0])(*end)
  products = [
    [x.aval.shape for x in e.invars]
    for e in _equations(program.jaxpr)
    if e.primitive.name == "dot_general"
  ]
  assert len(products) > 4
  assert not any({LENGTH, 5} <= {*shape} for each in products for shape in each)
  with pytest.raises(ValueError, match=r"selective_values.*did you mean count"):
    mixer.clone(selective_values={"counts": 2}).apply(variables, *end)


def _equations(jaxpr):
  for equation in jaxpr.eqns:
    inner = list(core.jaxprs_in_params(equation.params))
    if not inner:
      yield equation
    for part in inner:
      yield from _equations(part)


def test_parameters_of_sigma_for_each_form_of_the_queries():
  """The sheet's 1.530, 1.749 and 1.912, and 8.10, 9.17 and 9.98 billions."""
  expected = {
    "sigma_1_5b": (1530505216, 1748609024, 1912186880),
    "sigma_10b": (8097370112, 9171111936, 9976418304),
  }
  for name, totals in expected.items():
    model = models.create(name)
    options = model.mixer_options["full"]
    forms = ({"query_hidden": 0}, {"query_form": "linear"}, {})
    counted = tuple(
      count(model.clone(mixer_options={"full": {**options, **form}}))
      for form in forms
    )
    assert counted == totals


def test_bytes_of_a_cache():
  """Sigma's 4 and 16 heads take 37.5 % less than 16 of both."""
  sigma = models.create("sigma_1_5b", dtype=jnp.bfloat16)
  grouped = sigma.clone(kv_heads=16, mixer_options={})
  ours, usual = (
    decoding.cache_bytes_per_token(model, 100) for model in (sigma, grouped)
  )
  assert ours["keys"] == 26 * 4 * 64 * 2
  assert ours["values"] == usual["keys"] == usual["values"] == 26 * 16 * 64 * 2
  assert 1 - (ours["keys"] + ours["values"]) / (2 * usual["keys"]) == 0.375
  assert ours["positions"] == ours["segments"] == 26 * 4
  small = language.model(
    mixers=("linear", "sliding"),
    depth=2,
    window=3,
    mixer_options={"sliding": {"value_heads": 4, "value_dim": 3}},
  )
  # A ring that is full and a memory do not grow.
  assert not any(decoding.cache_bytes_per_token(small, 10).values())
  whole = decoding.cache_bytes(small, 5, 10)
  assert whole["values"] == 5 * 3 * 4 * 3 * 4
  assert whole["memory"] > 0


def test_names_of_sigma_are_those_of_llama_but_for_its_queries():
  model = models.create(
    "sigma_1_5b",
    vocabulary_size=13,
    width=8,
    depth=1,
    heads=4,
    mlp_width=12,
    mixer_options={
      "full": {"key_heads": 1, "value_heads": 2, "query_hidden": 6}
    },
  )
  shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), int))
  variables = parity_helper.randomise(shapes, 0)
  names = {"layer/mixer/query_gate": "model.layers.{}.self_attn.own"}
  weight_map = sigma.weight_map(model, names)
  tensors = pretrained.to_tensors(variables, model, weight_map=weight_map)
  shapes = {
    name.removeprefix("model.layers.0.self_attn."): tensor.shape
    for name, tensor in tensors.items()
    if "self_attn" in name
  }
  assert shapes == {
    "q_up_proj.weight": (6, 8),
    "own.weight": (6, 8),
    "q_proj.weight": (8, 6),
    "k_proj.weight": (2, 8),
    "v_proj.weight": (4, 8),
    "o_proj.weight": (8, 8),
  }
  loaded = pretrained.from_tensors(tensors, model, weight_map=weight_map)
  jax.tree.map(np.testing.assert_array_equal, loaded, variables)
  with pytest.raises(ValueError, match=r"names has 'query'.*query_expand"):
    sigma.weight_map(model, {"query": "q"})
