"""Decoding equals the parallel form, for every mixer and position scheme."""

import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import mixer_base, sequence_mixers
from tests.models import language

# Two prefills, the second longer than the window, then steps.
PREFILLS = (2, 5)
WINDOW = 4
YARN = {"type": "yarn", "factor": 4.0, "original_length": 8}
POSITIONS = {
  "rotary": {"rotary": {"base": 100.0, "local_base": 10.0}},
  "partial": {"rotary": {"fraction": 0.5, "scaling": YARN}},
  "learned": {"position_encoding": "learned"},
  "alibi": {"position_encoding": "alibi"},
  "none": {"position_encoding": "none"},
}
ONE_HEAD = {"heads": 1, "kv_heads": 1, "head_dim": 16}
# Options of mixers beside their defaults.
OPTIONS = {
  "full": {},
  "sliding": {},
  "linear": {},
  "flow": {},
  "flow WikiText": {"clip": 5.0, "output_gate": "headwise"},
  "convolution": {},
  "full softplus": {"normalizer": "softplus", "scale_by": "log_length"},
  "sliding sink": {"normalizer": "softmax_with_sink", "scale_by": "log_length"},
  "full entropy": {"scale_by": "entropy", "trained_length": 3},
  "full sharp": {
    "normalizer": "reweighted_softplus",
    "normalizer_options": {"power": 3.0},
    "output_gate": "headwise",
  },
  "full LSSAR": {
    "qk_norm": "unit",
    "scale_by": "log_length",
    "normalizer": "reweighted_softplus",
    "normalizer_options": {"power": 15.0},
  },
  "full affine": {
    "normalizer": "affine",
    "normalizer_options": {"length": language.LENGTH},
  },
  "sliding affine": {"normalizer": "affine", "output_gate": "headwise"},
  "full sigmoid": {
    "normalizer": "sigmoid",
    "attention_soft_cap": 2.0,
    "attention_scale": 0.7,
    "output_gate": "elementwise",
  },
  "full unequal": {
    "key_heads": 1,
    "value_heads": 4,
    "value_dim": 6,
    "query_hidden": 10,
    "output_gate": "elementwise",
  },
  "full narrow keys": {"key_heads": 2, "value_heads": 1, "key_dim": 3},
  "sliding narrow keys": {"value_heads": 4, "key_dim": 2},
  # As many as there are: all weights.
  "full symmetric": {"projections": "symmetric", "kv_heads": 4},
  "sliding merged": {"projections": "merged", **ONE_HEAD},
  "full cholesky": {"projections": "cholesky", **ONE_HEAD},
  "full none": {"projections": "none", **ONE_HEAD},
  "full selective": {
    "value_heads": 4,
    "selective_values": {"count": 11, "renormalize": True},
  },
  # The budget covers the longest row.
  "full sparse": {
    "sparse_decoding": {"block": 2, "blocks": 4, "sink": 1, "local": 2},
    "key_heads": 2,
    "value_heads": 4,
    "output_gate": "headwise",
  },
  "full top": {
    "sparse_decoding": {"block": 1, "blocks": 7, "sink": 2, "local": 2}
  },
  "linear data": {
    "decay": "data",
    "key_gate": True,
    "value_gate": True,
    "feature_map": "taylor",
    "output_gate": "elementwise",
  },
  "linear narrow": {
    "feature_map": "taylor",
    "feature_dim": 2,
    "epsilon": 1e-12,
  },
  "convolution wide": {
    "size": 5,
    "expansion": 1,
    "attention_bias": True,
    "out_bias": True,
  },
  "linear head": {"decay": "head", "normalizer": "identity"},
  "full value": {"output_gate": "headwise", "gate_position": "value"},
  "sliding key": {"output_gate": "elementwise", "gate_position": "key"},
  "full query": {
    "output_gate": "shared",
    "gate_position": "query",
    "gate_activation": "silu",
  },
  "linear projection": {
    "output_gate": "elementwise",
    "gate_position": "projection",
    "gate_activation": "half_sigmoid",
    "gate_operation": "add",
  },
  "sliding same": {"output_gate": "input_independent"},
  "linear feature": {"decay": "feature", "decay_rank": 3},
  "linear delta": {
    "update": "delta",
    "feature_map": "identity",
    "normalizer": "identity",
    "qk_norm": "unit",
  },
  "linear gated delta": {
    "update": "delta",
    "feature_map": "identity",
    "normalizer": "identity",
    "qk_norm": "unit",
    "decay": "data",
    "short_convolution": 4,
    "output_norm": True,
    "output_gate": "elementwise",
  },
}
CASES = [
  *((mixer, scheme) for mixer in ("full", "sliding") for scheme in POSITIONS),
  *(("linear", scheme) for scheme in POSITIONS if scheme != "alibi"),
  *(("flow", scheme) for scheme in ("rotary", "none")),
  *(("convolution", scheme) for scheme in ("rotary", "learned")),
  *((mixer, "rotary") for mixer in OPTIONS if " " in mixer),
]


@pytest.mark.parametrize(("mixer", "scheme"), CASES)
def test_decoding_equals_the_parallel_form(mixer, scheme):
  name = mixer.split(" ")[0]
  model = language.model(
    mixers=(name,),
    mixer_options={name: OPTIONS[mixer]},
    window=WINDOW,
    **POSITIONS[scheme],
  )
  variables = language.variables(model)
  arrays = language.packed()
  # Each document by itself and without any of the arrays is what is right.
  expected = jax.jit(model.apply)(variables, language.alone(arrays[0]))

  @jax.jit
  def run(variables, arrays):
    packed = model.apply(
      variables, arrays[0], positions=arrays[1], segments=arrays[2]
    )
    whole = language.decode(model, variables, arrays, (language.LENGTH,))
    pieces = language.decode(model, variables, arrays, PREFILLS)
    return packed, whole, pieces

  # The power of 15 makes as much of what rounding does.
  tolerance = 1e-4 if "LSSAR" in mixer else 1e-5
  for out in run(variables, arrays):
    assert np.isfinite(out).all()
    language.assert_same_tokens(language.unpacked(out), expected, tolerance)


@pytest.mark.parametrize("kv_heads", [2, 4])
def test_decoding_in_bfloat16(kv_heads):
  model = language.model(dtype=jnp.bfloat16, kv_heads=kv_heads)
  variables, arrays = language.variables(model), language.packed()
  expected = jax.jit(model.apply)(variables, language.alone(arrays[0]))
  out = jax.jit(lambda v, a: language.decode(model, v, a, PREFILLS))(
    variables, arrays
  )
  tolerance = 0.04 * np.abs(expected).max()
  language.assert_same_tokens(language.unpacked(out), expected, tolerance)


@pytest.mark.parametrize(
  "mixer", ["full", "sliding", "linear", "flow", "convolution"]
)
def test_a_mixer_sees_what_it_says(mixer):
  """By the gradient of a token's output with respect to all inputs."""
  length, token = 9, 6
  for causal in (True, False):
    module = sequence_mixers.create(
      mixer, {"heads": 2, "head_dim": 4, "window": 3, "causal": causal}
    )
    x = jax.random.normal(jax.random.key(0), (1, length, 8))
    variables = jax.jit(module.init)(jax.random.key(1), x)

    def output(x, module=module, variables=variables):
      return module.apply(variables, x)[0][0, token].sum()

    seen = np.abs(np.asarray(jax.jit(jax.grad(output))(x)))[0].sum(-1) > 0
    offset = np.arange(length) - token
    expected = np.ones(length, bool) if not causal else offset <= 0
    if mixer == "sliding":
      expected &= np.abs(offset) < 3
    elif mixer == "convolution":
      # Three, its own the last or in their middle.
      expected &= np.abs(offset) < (3 if causal else 2)
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize(
  ("mixer", "options"),
  [
    ("sliding", {}),
    (
      "hierarchical",
      {"branchings": (2, 2), "self_term": False, "output_gate": "headwise"},
    ),
    ("hierarchical", {"branchings": ()}),
    ("convolution", {"size": 5}),
  ],
)
def test_bidirectional_attention_leaves_padding_and_other_segments_out(
  mixer, options
):
  options = {mixer: options}
  model = language.model(
    causal=False, mixers=(mixer,), window=3, mixer_options=options
  )
  variables = language.variables(model)
  apply = jax.jit(model.apply)
  tokens, positions, segments = language.packed()
  out = apply(variables, tokens, positions=positions, segments=segments)
  row, (start, end) = 2, language.PACKED[2][1]
  alone = apply(
    variables, np.tile(tokens[row : row + 1, start:end], (len(tokens), 1))
  )
  np.testing.assert_allclose(out[row, start:end], alone[0], atol=1e-5)
  start, end = language.PACKED[1][0]
  padded = apply(variables, tokens, positions=positions)[1, start:end]
  alone = apply(variables, tokens[:, start:end])[1]
  np.testing.assert_allclose(padded, alone, atol=1e-5)


def test_a_ring_holds_no_more_than_the_window():
  model = language.model(mixers=("sliding", "full"), depth=2, window=3)
  cache = model.init_cache(2, 50)
  assert cache["layer_0"]["keys"].shape == (2, 2, 3, 4)
  assert cache["layer_1"]["keys"].shape == (2, 2, 50, 4)
  # Each array can be donated.
  leaves = jax.tree.leaves(cache)
  assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)


@pytest.mark.parametrize("update", ["sum", "delta"])
def test_padding_moves_no_state(update):
  options = {"decay": "data", "key_gate": True, "update": update}
  options |= {"normalizer": "identity", "feature_map": "softmax"}
  offered = {"heads": 2, "head_dim": 4, "position_encoding": "rotary"}
  mixer = sequence_mixers.create("linear", offered, options)
  x = jax.random.normal(jax.random.key(0), (2, 3, 8))
  variables = jax.jit(mixer.init)(jax.random.key(1), x)
  places = jnp.asarray([[0, 1, 2], [0, -1, -1]])
  apply = jax.jit(mixer.apply)
  _, whole = apply(variables, x, places, None, mixer.init_cache(2, 3))
  _, first = apply(
    variables, x[:, :1], places[:, :1], None, mixer.init_cache(2, 3)
  )
  assert not jnp.allclose(whole["memory"][0], first["memory"][0], atol=1e-3)
  np.testing.assert_allclose(whole["memory"][1], first["memory"][1], atol=1e-6)


def test_the_logarithm_of_the_length_counts_what_is_seen():
  offered = {"heads": 2, "head_dim": 4, "window": 3}
  x = 5 * jax.random.normal(jax.random.key(0), (1, 6, 8))

  def outputs(mixer, **options):
    mixer = sequence_mixers.create(mixer, offered, options)
    variables = mixer.init(jax.random.key(1), x)
    return mixer.apply(variables, x)[0][0]

  for mixer, token, keys in (
    ("sliding", 5, 3),
    ("sliding", 1, 2),
    ("full", 5, 6),
  ):
    out = outputs(mixer, scale_by="log_length")[token]
    scale = np.log(4) * np.log(keys)
    expected = outputs(mixer, attention_scale=scale)[token]
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_entropy_scales_tokens_that_see_more_than_in_training():
  """sqrt(ln N / ln T), of causal tokens with T what each saw in training."""
  offered = {"heads": 2, "head_dim": 4, "window": 3}
  x = 5 * jax.random.normal(jax.random.key(0), (2, 6, 8))

  def outputs(mixer, places=(), **options):
    mixer = sequence_mixers.create(mixer, offered, options)
    variables = mixer.init(jax.random.key(1), x)
    return mixer.apply(variables, x, *places)[0]

  def scaled(now, trained):
    return 0.5 * np.sqrt(np.log(now) / np.log(trained))

  for mixer, causal, trained, token, scale in (
    ("full", True, 4, 5, scaled(6, 4)),
    ("full", True, 4, 2, 0.5),
    ("full", True, 9, 5, 0.5),
    ("full", False, 4, 0, scaled(6, 4)),
    ("full", False, 9, 0, scaled(6, 9)),
    # The window shows three keys, at whatever length.
    ("sliding", True, 4, 5, 0.5),
    ("sliding", True, 2, 5, scaled(3, 2)),
    ("sliding", False, 3, 3, scaled(5, 3)),
    ("sliding", False, 9, 3, 0.5),
  ):
    own = {"causal": causal}
    out = outputs(mixer, scale_by="entropy", trained_length=trained, **own)
    expected = outputs(mixer, attention_scale=scale, **own)
    case = f"{mixer}, causal {causal}, {trained}, token {token}"
    np.testing.assert_allclose(
      out[:, token], expected[:, token], atol=1e-6, err_msg=case
    )
  # At the length of training no bit changes.
  for causal in (True, False):
    out = outputs("full", scale_by="entropy", trained_length=6, causal=causal)
    np.testing.assert_array_equal(out, outputs("full", causal=causal))


@pytest.mark.parametrize("causal", [True, False])
def test_entropy_of_packed_and_padded_rows(causal):
  """What counts is the tokens of the own segment that are there."""
  offered = {"heads": 2, "head_dim": 4}
  x = 5 * jax.random.normal(jax.random.key(0), (2, 6, 8))
  segments = jnp.array([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
  positions = jnp.array([[0, 1, 0, 1, 2, 3], [0, 1, 2, -1, -1, -1]])
  if causal:
    seen = np.array([[1, 2, 1, 2, 3, 4], [1, 2, 3, 1, 1, 1]])
    trained = np.minimum(seen, 3)
  else:
    seen = np.array([[2, 2, 4, 4, 4, 4], [3, 3, 3, 3, 3, 3]])
    trained = np.full_like(seen, 3)

  def outputs(places, **options):
    options = {"causal": causal, **options}
    mixer = sequence_mixers.create("full", offered, options)
    variables = mixer.init(jax.random.key(1), x)
    return mixer.apply(variables, x, *places)[0]

  options = {"scale_by": "entropy", "trained_length": 3}
  got = outputs((positions, segments), **options)
  for b, i in np.argwhere(positions >= 0):
    now, then = np.maximum((seen[b, i], trained[b, i]), 2)
    scale = 0.5 * np.sqrt(np.log(now) / np.log(then))
    expected = outputs((positions, segments), attention_scale=float(scale))
    np.testing.assert_allclose(got[b, i], expected[b, i], atol=1e-6)
  first = outputs((None, segments), **options)
  np.testing.assert_allclose(first[0], got[0], atol=1e-6)


def test_the_mixer_of_the_documentation(monkeypatch):
  document = Path(__file__).parents[2] / "docs" / "language_mixers.md"
  (code,) = re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)
  mixers = {**sequence_mixers.SEQUENCE_MIXERS}
  monkeypatch.setattr(sequence_mixers, "SEQUENCE_MIXERS", mixers)
  names = {"nn": nn, "jnp": jnp, "mixer_base": mixer_base}
  exec(code, {**names, "sequence_mixers": sequence_mixers})
  model = language.model(mixers=("average",))
  variables, tokens = language.variables(model), language.tokens()
  expected = jax.jit(model.apply)(variables, tokens)
  positions = np.tile(np.arange(language.LENGTH, dtype=np.int32), (3, 1))
  arrays = (tokens, positions, np.zeros_like(positions))
  out = jax.jit(language.decode, static_argnums=(0, 3))(
    model, variables, arrays, PREFILLS
  )
  np.testing.assert_allclose(out, expected, atol=1e-5)


ERRORS = [
  ("linea", {}, r"sequence mixer 'linea'; did you mean linear"),
  ("full", {"normaliser": "softmax"}, r"'normaliser'; did you mean normalizer"),
  ("full", {"normalizer": "softmx"}, r"normalizer 'softmx'.*softmax"),
  ("full", {"qk_norm": "units"}, "qk_norm is 'units'; it must be 'unit'"),
  ("full", {"scale_by": "length"}, r"scale_by 'length'.*log_length"),
  ("full", {"kv_heads": 3}, r"kv_heads is 3; for heads=2.*\[1, 2\]"),
  ("full", {"key_heads": 3}, r"key_heads is 3; for heads=2.*\[1, 2\]"),
  ("full", {"value_dim": -1}, "value_dim is -1.*0 for head_dim=4"),
  (
    "full",
    {"query_hidden": 3, "query_form": "gate"},
    "query_form 'gate'; did you mean gated",
  ),
  ("full", {"sparse_decoding": {"blok": 1}}, "'blok'; did you mean block"),
  ("full", {"sparse_decoding": {"local": 0}}, "local is 0"),
  ("full", {"sparse_decoding": {"selection": "all"}}, "'all'.*'best'"),
  (
    "full",
    {"sparse_decoding": {"block": 4}, "key_dim": 2},
    "key_dim is 2; it needs key_dim=0",
  ),
  ("full", {"scale_by": "log_length", "causal": False}, "needs causal=True"),
  ("full", {"scale_by": "entropy"}, "trained_length is 0; .* at least 2"),
  ("full", {"head_dim": 5, "position_encoding": "rotary"}, "head_dim 5 is 5"),
  ("sliding", {}, "window is 0.*at least 1"),
  ("linear", {"feature_map": "tailor"}, r"feature_map.*taylor"),
  ("convolution", {"size": 1}, "convolution is 1; it must be at least"),
  ("hierarchical", {}, "no causal form is defined; it needs causal=False"),
  (
    "hierarchical",
    {"causal": False, "position_encoding": "alibi"},
    "'alibi', a bias of each score",
  ),
  (
    "hierarchical",
    {"causal": False, "segments_are": "levels"},
    "segments_are 'levels'; did you mean level",
  ),
  (
    "hierarchical",
    {"causal": False, "branchings": (4, 1)},
    r"branchings\[1\] is 1; it must be at least 2",
  ),
  ("linear", {"decay": "date"}, r"decay.*did you mean data"),
  ("linear", {"normalizer": "subtraction"}, "normalizer of linear"),
  ("linear", {"position_encoding": "alibi"}, "'alibi', a bias of scores"),
  ("linear", {"decay": "head", "causal": False}, "causal is False"),
  ("linear", {"short_convolution": 2, "causal": False}, "causal is False"),
  ("linear", {"short_convolution": 1}, "convolution is 1; it must be at least"),
  ("flow", {"feature_map": "sigmoit"}, r"feature_map.*did you mean sigmoid"),
  ("flow", {"competition": "head"}, "'head'; did you mean heads"),
  ("flow", {"competition": "heads"}, "'heads', which has no causal form"),
  ("flow", {"position_encoding": "alibi"}, "'alibi', a bias of scores"),
  ("linear", {"update": "Delta"}, r"update of linear.*delta"),
  ("linear", {"update": "delta"}, "update='delta' needs 'identity'"),
  (
    "linear",
    {"update": "delta", "normalizer": "identity", "qk_norm": "unit"},
    "feature_map is 'elu_plus_one' and qk_norm 'unit'.*without bound",
  ),
]


@pytest.mark.parametrize(("mixer", "options", "message"), ERRORS)
def test_errors_name_what_would_fit(mixer, options, message):
  offered = {"heads": 2, "head_dim": 4}

  def init(x):
    module = sequence_mixers.create(mixer, offered, options)
    return module.init(jax.random.key(0), x)

  with pytest.raises(ValueError, match=message):
    jax.eval_shape(init, jnp.zeros((1, 3, 8)))
