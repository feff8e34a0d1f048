"""Fields of the transformer, its two layouts, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models.transformer import VARIANTS, stack_layers, unstack_layers
from tests.models import language

# Of the models that are published, their heads included.
COUNTS = {
  "gpt2": 124439808,
  "gpt2_medium": 354823168,
  "gpt2_large": 774030080,
  "gpt2_xl": 1557611200,
  "llama3_8b": 8030261248,
  "llama3_70b": 70553706496,
  "llama3_2_1b": 1235814400,
  "llama3_2_3b": 3212749824,
  "qwen3_0_6b": 596049920,
  "qwen3_1_7b": 1720574976,
  "qwen3_4b": 4022468096,
  "qwen3_8b": 8190735360,
  "gemma2_2b": 2614341888,
  "gemma2_9b": 9241705984,
  "sigma_1_5b": 1912186880,
  "sigma_10b": 9976418304,
  "based_360m": 362620928,
  "based_1b": 1349453056,
  "bert_base": 109514298,
  "bert_large": 335174458,
  "modernbert_base": 149655232,
  "modernbert_large": 395881664,
}
# nanoGPT's setting for a CPU.
SHAKESPEARE = {
  "vocabulary_size": 65,
  "width": 128,
  "heads": 4,
  "depth": 4,
  "max_length": 64,
  "norm": "layer_norm",
  "norm_bias": False,
  "position_encoding": "learned",
  "mlp": "gelu",
}


def count(model):
  """Counts by a pattern of layers at a time: all repeats have as many."""
  tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)

  def of(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    return sum(x.size for x in jax.tree.leaves(shapes))

  pattern = len(model.mixers)
  if pattern == model.depth:
    return of(model)
  one, two = (of(model.clone(depth=n * pattern)) for n in (1, 2))
  return one + (model.depth // pattern - 1) * (two - one)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_of_public_sizes(name):
  assert count(models.create(name)) == COUNTS[name]


def test_every_public_size_has_a_count():
  assert {*COUNTS, "transformer"} == set(VARIANTS)
  assert count(models.create("transformer", **SHAKESPEARE)) == 804096


DEEP = {"depth": 4, "mixers": ("sliding", "full"), "window": 3}


def loss_and_gradients(model, variables, tokens):
  weights = np.random.default_rng(3).standard_normal(13).astype(np.float32)

  @jax.jit
  def run(params, tokens):
    def loss(params):
      logits = model.apply({"params": params}, tokens)
      return (jax.nn.softmax(logits) * weights[None, None, :]).sum(), logits

    return jax.value_and_grad(loss, has_aux=True)(params)

  (_, logits), gradients = run(variables["params"], tokens)
  return logits, gradients


@pytest.fixture(scope="module")
def plain():
  """Of a deep model: it, its variables, tokens, logits and gradients."""
  model = language.model(**DEEP)
  variables, tokens = language.variables(model), language.tokens()
  return model, variables, tokens, *loss_and_gradients(model, variables, tokens)


def assert_close(actual, expected, tolerance=1e-5):
  """Compares trees, each array relative to its largest number."""

  def compare(path, x, y):
    x, y = (np.asarray(a, np.float32) for a in (x, y))
    assert np.abs(y).max() > 0, path
    error = np.abs(x - y).max() / np.abs(y).max()
    assert error < tolerance, (jax.tree_util.keystr(path), error)

  jax.tree_util.tree_map_with_path(compare, actual, expected)


@pytest.mark.parametrize("remat", [False, True])
def test_a_scan_is_the_loop(plain, remat):
  model, variables, tokens, logits, gradients = plain
  scanned = model.clone(scan_layers=True, remat=remat)
  params = stack_layers(variables["params"], 2)
  shapes = jax.eval_shape(scanned.init, jax.random.key(0), tokens)["params"]
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
  actual, stacked = loss_and_gradients(scanned, {"params": params}, tokens)
  assert_close(actual, logits)
  assert_close(unstack_layers(stacked), gradients)


def test_remat_is_the_loop(plain):
  model, variables, tokens, logits, gradients = plain
  again = model.clone(remat=True)
  actual = loss_and_gradients(again, variables, tokens)
  assert_close(actual, (logits, gradients))
  # And it does compute again: only inputs of layers are kept.
  jaxpr = lambda model: str(
    jax.make_jaxpr(lambda p: model.apply({"params": p}, tokens))(
      variables["params"]
    )
  )
  assert jaxpr(again).count("remat") > 3 > jaxpr(model).count("remat")


def test_a_scan_decodes(plain):
  model, variables, tokens, logits, _ = plain
  scanned = model.clone(scan_layers=True)
  params = {"params": stack_layers(variables["params"], 2)}
  caches = (m.init_cache(3, language.LENGTH) for m in (scanned, model))
  actual, expected = next(caches), stack_layers(next(caches), 2)
  assert jax.tree.map(jnp.shape, actual) == jax.tree.map(jnp.shape, expected)

  @jax.jit
  def step(cache, tokens):
    return scanned.apply(params, tokens, cache=cache)

  for start, end in ((0, 5), (5, 10), (10, 11)):
    out, actual = step(actual, tokens[:, start:end])
    np.testing.assert_allclose(out, logits[:, start:end], atol=1e-5)


def test_layouts_go_there_and_back(plain):
  params = plain[1]["params"]
  back = unstack_layers(stack_layers(params, 2))
  assert jax.tree.all(jax.tree.map(np.array_equal, back, params))
  assert jax.tree.structure(back) == jax.tree.structure(params)
  with pytest.raises(ValueError, match=r"pattern is 3.*there are 4"):
    stack_layers(params, 3)
  with pytest.raises(ValueError, match="has 'layers'"):
    unstack_layers(params)


# Parts that the others do not have.
PARTS = {
  "gpt2": {
    "norm": "layer_norm",
    "position_encoding": "learned",
    "mlp": "gelu_tanh",
    "kv_heads": 0,
    **dict.fromkeys(("mlp_bias", "attention_bias", "out_bias"), True),
  },
  "gemma": {
    "norm_offset": True,
    "norm_placement": "sandwich",
    "mlp": "geglu_tanh",
    "attention_soft_cap": 5.0,
    "logit_soft_cap": 3.0,
    "embedding_scale": 4.0,
  },
  "encoder": {
    "causal": False,
    "norm": "layer_norm",
    "norm_placement": "post",
    "embedding_norm": True,
    "token_types": 2,
    "mlp": "squared_relu",
    "head_transform": True,
    "head_bias": True,
  },
  "gated norms": {
    "norm": "gated_rms_norm",
    "norm_gate_rank": 3,
    "mlp": "sigmoid_glu",
    "output_gate": "shared",
  },
  "factors": {"norm": "pre_affine_rms_norm", "qk_norm": True},
  "tanh": {"norm": "gated_dynamic_tanh", "norm_placement": "sandwich"},
  "linear": {
    "mixers": ("linear",),
    "mixer_options": {"linear": {"decay": "data"}},
    "mlp": "none",
    "qk_norm": True,
    "tied_head": False,
    "output_gate": "elementwise",
  },
}


@pytest.mark.parametrize("part", PARTS)
def test_bfloat16_is_close_and_gradients_reach_everything(part):
  model = language.model(**PARTS[part])
  variables, tokens = language.variables(model), language.tokens()
  logits, gradients = loss_and_gradients(model, variables, tokens)
  assert logits.shape == (3, language.LENGTH, 13)

  def reaches(path, x):
    path = jax.tree_util.keystr(path)
    assert np.isfinite(x).all(), path
    # One number for all keys of a query moves no softmax.
    unseen = "key'" in path and "bias" in path
    assert unseen or np.abs(x).max() > 1e-6, path

  jax.tree_util.tree_map_with_path(reaches, gradients)
  short = model.clone(dtype=jnp.bfloat16)
  out, rough = loss_and_gradients(short, variables, tokens)
  assert (out.dtype, logits.dtype) == (jnp.float32, jnp.float32)
  np.testing.assert_allclose(out, logits, atol=0.04 * np.abs(logits).max())

  def similar(x, y):
    x, y = np.ravel(x), np.ravel(y)
    return x @ y > 0.98 * np.linalg.norm(x) * np.linalg.norm(y)

  whole = [
    np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    for tree in (gradients, rough)
  ]
  assert similar(*whole)


def test_dropout_drops_in_training_only():
  model = language.model(dropout_rate=0.5)
  variables, tokens = language.variables(model), language.tokens()

  @jax.jit
  def run(key):
    rngs = {"dropout": key}
    return model.apply(variables, tokens, train=True, rngs=rngs)

  first, again, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
  assert jnp.array_equal(first, again)
  assert not jnp.allclose(first, other)
  still = language.model()
  assert jnp.array_equal(
    model.apply(variables, tokens), still.apply(variables, tokens)
  )


def test_initial_logits_are_those_of_no_knowledge():
  model = models.create("transformer", **SHAKESPEARE)
  tokens = np.zeros((1, 2), np.int32)
  params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
  layer = params["layer_0"]
  assert float(layer["mlp"]["expand"]["kernel"].std()) == pytest.approx(
    0.02, rel=0.1
  )
  for out in (layer["mlp"]["shrink"], layer["mixer"]["out"]):
    assert float(out["kernel"].std()) == pytest.approx(
      0.02 / np.sqrt(8), rel=0.1
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_mixture_of_tokens_is_that_of_their_embeddings(dtype):
  model = language.model(
    token_types=2, position_encoding="learned", classes=5, tied_head=False
  )
  model = model.clone(dtype=dtype)
  variables = language.variables(model)
  tokens, positions, segments = language.packed()
  places = {"positions": positions, "segments": segments}
  apply = jax.jit(model.apply)
  expected = apply(variables, tokens, **places)
  assert expected.shape == (*tokens.shape, 5)
  exact = jax.nn.one_hot(tokens, 13)
  kept = positions >= 0
  np.testing.assert_allclose(
    apply(variables, exact, **places)[kept], expected[kept], atol=1e-5
  )
  # Half of two tokens is what a model gives whose table has their mean.
  other = (tokens + 1) % 13
  mixed = apply(variables, (exact + jax.nn.one_hot(other, 13)) / 2, **places)
  table = variables["params"]["embed"]["embedding"]
  means = (table + jnp.roll(table, -1, 0)) / 2
  params = {**variables["params"], "embed": {"embedding": means}}
  expected = apply({"params": params}, tokens, **places)
  tolerance = 1e-5 if dtype == jnp.float32 else 0.05 * np.abs(expected).max()
  np.testing.assert_allclose(mixed[kept], expected[kept], atol=tolerance)


def test_mixtures_of_tokens_are_decoded_and_differentiated():
  model = language.model()
  variables = language.variables(model)
  mixtures = jax.nn.softmax(jax.random.normal(jax.random.key(0), (2, 6, 13)))
  apply = jax.jit(model.apply)
  expected = apply(variables, mixtures)
  cache, outs = model.init_cache(2, 6), []
  for start, end in ((0, 3), (3, 6)):
    out, cache = apply(variables, mixtures[:, start:end], cache=cache)
    outs.append(out)
  np.testing.assert_allclose(jnp.concatenate(outs, 1), expected, atol=1e-5)
  value = lambda x: (apply(variables, x)[:, 2] ** 2).sum()
  gradient = jax.jit(jax.grad(value))(mixtures)
  assert (np.abs(gradient).sum((0, 2)) > 0).tolist() == [True] * 3 + [False] * 3


ERRORS = [
  ({"depth": 3, "mixers": ("full", "linear")}, "must divide depth=3"),
  ({"mixers": ("fully",)}, "'fully'; did you mean full"),
  ({"kv_heads": 3}, "kv_heads is 3"),
  ({"heads": 3, "kv_heads": 0}, "does not divide width=16"),
  ({"head_dim": 5}, "head_dim 5 is 5 channels"),
  ({"norm": "rmsnorm"}, "did you mean rms_norm"),
  ({"norm": "layer_norm", "norm_offset": True}, "'layer_norm' has no offset"),
  (
    {"norm": "dynamic_tanh", "norm_offset": True},
    "norm='dynamic_tanh' has no offset.*pre_affine_rms_norm",
  ),
  ({"norm": "gated_rms_norm", "norm_gate_rank": 0}, "norm_gate_rank is 0"),
  ({"residual_clip": -1.0}, "residual_clip is -1.0; it must be a size"),
  ({"norm_placement": "after"}, "norm_placement 'after'"),
  ({"position_encoding": "rotory"}, "did you mean rotary"),
  ({"rotary": {"theta": 1.0}}, "field of rotary 'theta'"),
  ({"rotary": {"scaling": {"type": "ntk"}}}, "rotary scaling 'ntk'"),
  ({"rotary": {"scaling": {"type": "linear"}}}, "needs factor too"),
  ({"mlp": "swigl"}, "did you mean swiglu"),
  ({"mlp": "none", "head_transform": True}, "mlp 'none'"),
  ({"mixer_options": {"linear": {}}}, "mixer of mixer_options 'linear'"),
  ({"mixer_options": {"full": {"cap": 1.0}}}, "option of the mixer 'full'"),
  ({"scan_layers": True, "first_mixer_norm": False}, "unlike the others"),
  ({"classes": 3}, "classes is 3.*tied_head=False"),
  ({"max_length": 3, "position_encoding": "learned"}, "max_length=3 learned"),
]


@pytest.mark.parametrize(("fields", "message"), ERRORS)
def test_fields_that_do_not_fit(fields, message):
  model = language.model(**fields)
  tokens = jax.ShapeDtypeStruct((1, 5), jnp.int32)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(model.init, jax.random.key(0), tokens)


def test_arrays_that_do_not_fit():
  model = language.model()
  variables = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 2), int)
  )
  cache = model.init_cache(1, 4)
  call = lambda tokens, **more: jax.eval_shape(
    lambda variables: model.apply(variables, tokens, **more), variables
  )
  tokens = jnp.zeros((1, 3), jnp.int32)
  with pytest.raises(
    ValueError, match="tokens is float32; it must be integers"
  ):
    call(jnp.zeros((1, 3)))
  with pytest.raises(ValueError, match=r"tokens has shape \(3,\)"):
    call(tokens[0])
  with pytest.raises(ValueError, match=r"shape \(1, 3, 4\).*=13 numbers each"):
    call(jnp.zeros((1, 3, 4)))
  with pytest.raises(ValueError, match=r"tokens is int32.*must be floating"):
    call(jnp.zeros((1, 3, 13), jnp.int32))
  with pytest.raises(ValueError, match=r"positions has shape \(1, 2\)"):
    call(tokens, positions=tokens[:, :2])
  with pytest.raises(ValueError, match="segments is float32"):
    call(tokens, segments=jnp.zeros((1, 3)))
  with pytest.raises(ValueError, match="token_types=0"):
    call(tokens, token_types=tokens)
  long = jnp.zeros((1, 5), jnp.int32)
  with pytest.raises(ValueError, match=r"5 of them after 0 .* cache of 4"):
    call(long, cache=cache)
  cache = jax.tree.map(lambda x: x + 3 if x.ndim == 0 else x, cache)
  with pytest.raises(ValueError, match=r"3 of them after 3 .* at least 6"):
    call(tokens, cache=cache)
  model = model.clone(causal=False)
  with pytest.raises(ValueError, match="causal is False: nothing to decode"):
    call(tokens, cache=cache)
