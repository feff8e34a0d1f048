"""Every tap against transformers: hooks, attentions, hidden states, a cache.

"Within 1e-5" is of the largest |x| of a value, or of 1 if that is less.
"""

import functools
import tempfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interpret
from interpret import ablation
from models import pretrained
from tests import parity_helper
from tests.interpret import transformers_taps
from tests.models import transformers_oracle as oracle

pytestmark = pytest.mark.parity
TOP = {"embedded_state", "final_state", "logits"}
# TransformerLens's hook_resid_pre, hook_q, ..., hook_resid_post.
OF_LAYER = (
  "input_state",
  "mixer/queries",
  "mixer/keys",
  "mixer/values",
  "mixer/attention_scores",
  "mixer/attention_weights",
  "mixer/head_outputs",
  "mixer_output",
  "middle_state",
  "mlp/hidden",
  "mlp_output",
  "hidden_state",
)
MAPS = ("attention_scores", "attention_weights")


class Pair(NamedTuple):
  """A model of transformers and ours with its weights."""

  case: oracle.Case
  theirs: Any
  model: Any
  variables: Any
  values: dict[str, np.ndarray]


@functools.cache
def _pair(name):
  case = oracle.CASES[name]
  theirs = case.model()
  assert theirs.config._attn_implementation == "eager"
  with tempfile.TemporaryDirectory() as folder:
    theirs.save_pretrained(folder)
    model, variables = pretrained.from_huggingface(folder)
  run = functools.partial(oracle.run, theirs, *oracle.batch())
  values = transformers_taps.read(case, theirs, run)
  return Pair(case, theirs, model, variables, values)


@pytest.fixture(scope="module", params=["gpt2", "qwen3"])
def pair(request):
  return _pair(request.param)


def _names(model):
  layers = range(model.depth)
  return TOP | {f"layer_{i}/{name}" for i in layers for name in OF_LAYER}


def _assert_same(name, ours, theirs):
  """Compares values of real tokens; what is hidden is -inf in both."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  assert ours.shape == theirs.shape, name
  hidden = np.isneginf(theirs)
  np.testing.assert_array_equal(np.isneginf(ours), hidden, name)
  ours, theirs = np.where(hidden, 0, ours), np.where(hidden, 0, theirs)
  largest = max(1.0, np.abs(theirs).max())
  np.testing.assert_allclose(
    ours, theirs, rtol=0, atol=1e-5 * largest, err_msg=name
  )
  assert theirs.std() > 1e-2, name


def _real(name, value, real):
  """The values of real tokens, [tokens, ...], queries of maps first."""
  if name.rsplit("/")[-1] in MAPS:
    value = np.moveaxis(np.asarray(value), 1, 2)
  return np.asarray(value)[real]


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gemma2"])
def test_every_tap_is_theirs(name):
  pair = _pair(name)
  tokens, positions = oracle.batch()
  real = positions >= 0
  names = _names(pair.model)
  assert pair.values.keys() == names
  known = interpret.list_taps(
    pair.model, pair.variables, tokens, positions=positions
  )
  assert known.keys() == names
  run = functools.partial(interpret.run, pair.model, read=["*"])
  _, values = jax.jit(run)(pair.variables, tokens, positions=positions)
  for name in sorted(names):
    assert known[name].shape == pair.values[name].shape
    theirs = _real(name, pair.values[name], real)
    _assert_same(name, _real(name, values[name], real), theirs)
  kv_heads = pair.model.kv_heads or pair.model.heads
  for part in ("keys", "values"):
    assert values[f"layer_0/mixer/{part}"].shape[2] == kv_heads


def test_an_edit_of_every_tap_changes_the_logits(pair):
  tokens, positions = oracle.batch()
  names = sorted(_names(pair.model))

  def add(i, chosen):
    def edit(value, site):
      noise = jax.random.normal(jax.random.key(i), value.shape, value.dtype)
      return value + jnp.where(chosen == i, noise, 0.0)

    return edit

  @jax.jit
  def run(variables):
    # One program for all taps.
    def edited(chosen):
      edit = [(name, add(i, chosen)) for i, name in enumerate(names)]
      return interpret.run(
        pair.model, variables, tokens, edit=edit, positions=positions
      )[0]

    return jax.lax.map(edited, jnp.arange(len(names) + 1))

  *logits, same = run(pair.variables)
  np.testing.assert_allclose(
    same[positions >= 0], pair.values["logits"][positions >= 0], atol=1e-4
  )
  for name, changed in zip(names, logits, strict=True):
    difference = np.abs(changed - same)[positions >= 0]
    assert difference.max() > 1e-3, name
    assert np.isfinite(difference).all(), name


def test_a_head_of_keys_is_seen_by_its_group_of_queries(pair):
  tokens, positions = oracle.batch()
  name = "layer_1/mixer/attention_weights"
  kv_heads = pair.model.kv_heads or pair.model.heads
  group = pair.model.heads // kv_heads

  @jax.jit
  def run(variables, keys):
    return interpret.run(
      pair.model,
      variables,
      tokens,
      read=[name],
      edit={"layer_1/mixer/keys": keys},
      positions=positions,
    )[1][name]

  keys = pair.values["layer_1/mixer/keys"]
  other = keys.copy()
  other[:, :, 1] = np.roll(keys[:, :, 1], 1, axis=-1)
  change = np.abs(run(pair.variables, other) - run(pair.variables, keys))
  moved = np.flatnonzero(change.max((0, 2, 3)) > 1e-2)
  np.testing.assert_array_equal(moved, np.arange(group, 2 * group))


def test_what_is_read_while_generating_is_what_one_pass_has(pair):
  tokens, positions = oracle.batch()
  names = sorted(_names(pair.model))
  prefill = 9

  @jax.jit
  def run(variables, cache, tokens, positions):
    (_, cache), values = interpret.run(
      pair.model,
      variables,
      tokens,
      read=names,
      cache=cache,
      positions=positions,
    )
    return cache, values

  cache = pair.model.init_cache(len(tokens), oracle.LENGTH)
  # The map of a prefill into a ring has other keys than slots.
  cache, _ = run(
    pair.variables, cache, tokens[:, :prefill], positions[:, :prefill]
  )
  for place in range(prefill, oracle.LENGTH):
    at = slice(place, place + 1)
    cache, values = run(pair.variables, cache, tokens[:, at], positions[:, at])
    if place % 4:
      continue
    for name in names:
      ours, theirs = np.asarray(values[name]), pair.values[name]
      if name.rsplit("/")[-1] not in MAPS:
        _assert_same(name, ours, theirs[:, at])
        continue
      # Token n is in slot n of the cache, or of its ring.
      slots = ours.shape[-1]
      seen = np.arange(max(0, place + 1 - slots), place + 1)
      _assert_same(name, ours[..., seen % slots], theirs[:, :, at][..., seen])


def test_a_head_that_is_ablated_has_no_output_projection(pair):
  torch = parity_helper.import_torch()
  tokens, positions = oracle.batch()
  real = positions >= 0
  found = ablation.sweep(
    pair.model, pair.variables, tokens, lambda x: x, positions=positions
  )
  assert found.grid.shape[:2] == (pair.model.depth, pair.model.heads)
  parts = transformers_taps.PARTS[pair.case.family]
  layers = pair.theirs.get_submodule(parts.layers)
  for layer, head in ((0, 3), (pair.model.depth - 1, 1)):
    out = layers[layer].get_submodule(parts.out)
    # GPT-2's layer has inputs first, PyTorch's outputs.
    weight = out.weight if pair.case.family == "gpt2" else out.weight.T
    dim = weight.shape[0] // pair.model.heads
    slice_ = weight.data[head * dim : (head + 1) * dim]
    kept = slice_.clone()
    slice_.zero_()
    try:
      with torch.no_grad():
        logits = oracle.run(pair.theirs, tokens, positions).logits.numpy()
    finally:
      slice_.copy_(kept)
    ours = np.asarray(found.grid[layer, head])
    _assert_same("logits", ours[real], logits[real])
    assert np.abs(logits - pair.values["logits"])[real].max() > 1e-2
