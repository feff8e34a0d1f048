"""Edits of sinks: one pass against decoding, padding, heads, scanned layers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interpret
import models
from interpret import attention_redistribution as redistribution
from interpret import sink_edits
from models import decoding
from models.layer_stacking import stack_layers
from tests import parity_helper
from tests.interpret import image_text

LENGTH, PREFILL, PAD = 12, 7, 3
TOKENS = np.random.default_rng(0).integers(0, 13, (2, LENGTH), np.int32)
IMAGE = (2, 7)
VAR = sink_edits.Redistribution(
  dimensions=(1, 4), threshold=1.0, least_ratio=0.3
)
ACT = sink_edits.Calibration(threshold=0.16, least_observers=3, running=True)
EDITS = {"redistribution": VAR, "calibration": ACT}


@functools.cache
def transformer(scan=False, **fields):
  model = image_text.WithImage(
    vocabulary_size=13,
    width=12,
    depth=3,
    heads=2,
    kv_heads=1,
    mlp_width=12,
    image=IMAGE,
    **fields,
  )
  shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS[:, :2])
  variables = parity_helper.randomise(shapes, 0)
  if scan:
    model = model.clone(scan_layers=True)
    variables = {"params": stack_layers(variables["params"], 1)}
  return model, variables


def compiled(model):
  """`apply` of arrays by name, compiled."""
  return jax.jit(lambda variables, **given: model.apply(variables, **given))


def in_pieces(model, variables, pieces, slots, **first):
  """Logits of tokens that go through a cache; `first` goes with the first."""
  cache, parts = model.init_cache(2, slots), []
  step = compiled(model)
  for piece in pieces:
    out, cache = step(variables, **piece, cache=cache, **first)
    parts.append(out)
    first = {}
  return jnp.concatenate(parts, axis=1)


def pieces_of(arrays):
  """A prompt, then token by token."""
  ends = [0, PREFILL, *range(PREFILL + 1, arrays["tokens"].shape[1] + 1)]
  return [
    {name: array[:, start:end] for name, array in arrays.items()}
    for start, end in itertools.pairwise(ends)
  ]


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", EDITS)
def test_decoding_equals_one_pass(name, scan):
  model, variables = transformer(scan)
  edited = interpret.edited(model, {"layer_[12]/mixer/att*ts": EDITS[name]})
  whole = compiled(edited)(variables, tokens=TOKENS)
  plain = compiled(model)(variables, tokens=TOKENS)
  # Positions in the image are no queries, and see no sink behind them.
  assert np.abs(whole - plain)[:, PREFILL + 1 :].max() > 1e-2
  pieces = pieces_of({"tokens": TOKENS})
  decoded = in_pieces(edited, variables, pieces, LENGTH + 2)
  np.testing.assert_allclose(decoded, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", EDITS)
def test_padding_on_the_left_changes_nothing(name):
  model, variables = transformer()
  edited = interpret.edited(model, {sink_edits.PATTERN: EDITS[name]})
  apply = compiled(edited)
  alone = apply(variables, tokens=TOKENS)
  tokens = np.concatenate([np.full((2, PAD), 5, np.int32), TOKENS], axis=1)
  positions = np.maximum(np.arange(LENGTH + PAD) - PAD, -1)
  positions = np.tile(positions.astype(np.int32), (2, 1))
  arrays = {"tokens": tokens, "positions": positions}
  decoded = in_pieces(edited, variables, pieces_of(arrays), LENGTH + PAD)
  np.testing.assert_allclose(decoded[:, PAD:], alone, rtol=1e-4, atol=1e-4)


def test_what_the_redistribution_makes_of_a_layer():
  """The map of the middle layer, from the unedited one and what enters."""
  model, variables = transformer()
  name, state = "layer_1/mixer/attention_weights", "layer_1/input_state"
  read = functools.partial(
    interpret.run, model, read=[name, state], inputs=TOKENS
  )
  _, values = jax.jit(read)(variables)
  _, edited = jax.jit(functools.partial(read, edit={name: VAR}))(variables)
  sinks = redistribution.sink_mask(values[state], (1, 4), 1.0)
  places = np.tile(np.arange(LENGTH), (2, 1))
  image = (places >= 2) & (places < 7)
  assert 0 < (image & sinks).sum() < image.sum()
  expected = redistribution.redistribute(
    values[name], image, np.asarray(sinks), least_ratio=0.3, queries=~image
  )
  np.testing.assert_allclose(edited[name], expected, atol=1e-6)
  moved = np.abs(edited[name] - values[name]).max((0, 1, 3))
  assert (moved[: IMAGE[1]] == 0).all()
  assert moved[IMAGE[1] :].max() > 0.05


@pytest.mark.parametrize("start", [0, 2, np.array([1, 3], np.int32)])
def test_images_come_with_the_prompt(start):
  model = models.create(
    "vision_language",
    vocabulary_size=13,
    width=12,
    depth=2,
    heads=2,
    mlp_width=12,
    vision={
      "width": 8,
      "depth": 1,
      "heads": 2,
      "hidden_width": 8,
      "patch_size": 4,
      "image_size": 8,
      "class_token": False,
    },
    vision_levels=(1,),
  )
  images = np.random.default_rng(1).normal(size=(2, 8, 8, 1))
  images = images.astype(np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS, images)
  variables = parity_helper.randomise(shapes, 2)
  edit = sink_edits.Redistribution((3,), 1.0, least_ratio=0.2)
  edited = interpret.edited(model, {sink_edits.PATTERN: edit})
  seen = {"images": images, "image_start": start}
  whole = compiled(edited)(variables, tokens=TOKENS, **seen)
  plain = compiled(model)(variables, tokens=TOKENS, **seen)
  changed = np.abs(whole - plain).max(-1)
  for row, begin in enumerate(np.broadcast_to(start, 2)):
    # Words before an image see nothing of it.
    np.testing.assert_allclose(changed[row, :begin], 0, atol=1e-6)
    assert changed[row, begin:].max() > 1e-3
  pieces = pieces_of({"tokens": TOKENS})
  decoded = in_pieces(edited, variables, pieces, LENGTH + 4, **seen)
  np.testing.assert_allclose(decoded, whole, rtol=1e-4, atol=1e-4)


def test_texts_without_an_image_are_refused():
  model = models.create(
    "transformer", vocabulary_size=13, width=12, depth=2, heads=2
  )
  shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
  edited = interpret.edited(model, {sink_edits.PATTERN: VAR})
  with pytest.raises(ValueError, match="reads 'image_span', but no tap"):
    jax.eval_shape(edited.apply, shapes, TOKENS)


def _calibrated_row(weights, rows, query, threshold):
  """A query's weights when `rows` queries were seen; a loop, one head."""
  new = weights[query].astype(np.float64)
  sums = weights[:rows].astype(np.float64).sum(0)
  sinks = [
    key for key in range(1, rows - 2) if sums[key] / (rows - key) > threshold
  ]
  freed = 0.6 * sum(new[key] for key in sinks)
  rest = new.sum() - sum(new[key] for key in sinks)
  for key in range(len(new)):
    new[key] *= 0.4 if key in sinks else 1 + freed / rest
  return new, len(sinks)


@pytest.mark.parametrize("by_length", [False, True])
def test_a_prompt_is_judged_as_a_whole_and_steps_by_all_before(by_length):
  """Of the last layer, whose maps are of inputs that nobody changed."""
  model, variables = transformer()
  name = "layer_2/mixer/attention_weights"
  _, values = interpret.run(model, variables, TOKENS, read=name)
  weights = np.asarray(values[name])
  edit = sink_edits.Calibration(
    threshold=1.6 if by_length else 0.16,
    by_length=by_length,
    least_observers=3,
  )

  edited = interpret.edited(model, {name: edit})

  @jax.jit
  def step(tokens, cache):
    (_, cache), values = interpret.run(
      edited, variables, tokens, read=name, cache=cache
    )
    return cache, values[name]

  cache, start, found = model.init_cache(2, LENGTH), 0, 0
  for piece in pieces_of({"tokens": TOKENS}):
    cache, made = step(piece["tokens"], cache)
    stop = start + piece["tokens"].shape[1]
    threshold = 1.6 / stop if by_length else 0.16
    for b, h, q in np.ndindex(2, 2, stop - start):
      expected, count = _calibrated_row(
        weights[b, h], stop, start + q, threshold
      )
      found += count
      np.testing.assert_allclose(made[b, h, q], expected, atol=1e-5)
    start = stop
  assert found > 20


def test_heads_by_pairs_and_by_a_table():
  model, variables = transformer()
  name = sink_edits.PATTERN
  pairs = interpret.edited(
    model, {name: sink_edits.Calibration(0.16, heads=((1, 0), (2, 1)))}
  )
  given = interpret.edited(
    model, {name: sink_edits.Calibration(0.16, heads="given")}
  )
  table = np.zeros((3, 2), bool)
  plain = compiled(model)(variables, tokens=TOKENS)
  apply = compiled(given)
  with_heads = lambda: interpret.with_given(variables, {"heads": table})
  np.testing.assert_array_equal(apply(with_heads(), tokens=TOKENS), plain)
  table[1, 0] = table[2, 1] = True
  by_table = apply(with_heads(), tokens=TOKENS)
  by_pairs = compiled(pairs)(variables, tokens=TOKENS)
  np.testing.assert_allclose(by_table, by_pairs, atol=1e-5)
  assert np.abs(by_table - plain).max() > 1e-2
  scanned, stacked = transformer(scan=True)
  scanned = interpret.edited(
    scanned, {name: sink_edits.Calibration(0.16, heads=((1, 0), (2, 1)))}
  )
  same = compiled(scanned)(stacked, tokens=TOKENS)
  np.testing.assert_allclose(same, by_pairs, rtol=1e-4, atol=1e-4)
  with pytest.raises(ValueError, match=r"heads is 'given', but there is no"):
    given.apply(variables, TOKENS)
  for few in (table[:, :1], table[:2], table[0]):
    with pytest.raises(ValueError, match=r"given\['heads'\] has shape \("):
      jax.eval_shape(
        given.apply, interpret.with_given(variables, {"heads": few}), TOKENS
      )
  wrong = sink_edits.Calibration(0.16, heads=((1, 2),))
  with pytest.raises(ValueError, match=r"heads has \(1, 2\).*from 0 to 1"):
    interpret.run(model, variables, TOKENS, edit={name: wrong})


def test_generation_is_that_of_one_pass():
  model, variables = transformer()
  prompts = [TOKENS[0, :9].tolist(), TOKENS[1, :8].tolist()]
  edit = {sink_edits.PATTERN: VAR, "layer_*/mixer/*weights": ACT}
  edited = interpret.edited(model, edit)
  made = decoding.generate(edited, variables, prompts, max_tokens=3)
  apply = compiled(edited)
  for prompt, new in zip(prompts, made, strict=True):
    text = [*prompt, *new]
    tokens = np.asarray([[*text, *[0] * (LENGTH - len(text))]], np.int32)
    logits = apply(variables, tokens=tokens)
    last = logits[0, len(prompt) - 1 : len(text) - 1]
    assert last.argmax(-1).tolist() == new


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_go_through(dtype):
  model, variables = transformer(dtype=dtype)
  edits = {sink_edits.PATTERN: VAR, "layer_*/mixer/*weights": ACT}

  def loss(variables, edit):
    out, _ = interpret.run(model, variables, TOKENS, edit=edit)
    return jnp.square(out.astype(jnp.float32)).mean()

  gradient = jax.jit(jax.grad(functools.partial(loss, edit=edits)))(variables)
  plain = jax.jit(jax.grad(functools.partial(loss, edit=())))(variables)
  for given, other in zip(
    jax.tree.leaves(gradient), jax.tree.leaves(plain), strict=True
  ):
    assert jnp.isfinite(given).all()
    assert not np.allclose(given, other, rtol=1e-3, atol=1e-6)


def test_windows_take_tokens_one_by_one():
  model, variables = transformer(mixers=("sliding",), window=4)
  edited = interpret.edited(model, {sink_edits.PATTERN: ACT})
  singly = [{"tokens": TOKENS[:, i : i + 1]} for i in range(LENGTH)]
  whole = compiled(edited)(variables, tokens=TOKENS)
  decoded = in_pieces(edited, variables, singly, LENGTH)
  np.testing.assert_allclose(decoded, whole, rtol=1e-4, atol=1e-4)
  with pytest.raises(ValueError, match="several tokens come at once"):
    in_pieces(edited, variables, pieces_of({"tokens": TOKENS}), LENGTH)


@functools.cache
def _knocked_out():
  """The map of a layer as it is, without its sinks, and without others."""
  model, variables = transformer()
  name, state = "layer_1/mixer/attention_weights", "layer_1/input_state"

  @functools.partial(jax.jit, static_argnames="edits")
  def read(variables, edits, given):
    return interpret.run(
      model, variables, TOKENS, read=[name, state], edit=edits, given=given
    )[1]

  fields = {"dimensions": (1, 4), "threshold": 1.0}
  own = sink_edits.KnockOut(**fields)
  others = sink_edits.KnockOut(**fields, at_random=True)
  plain = read(variables, (), None)
  maps = [read(variables, ((name, own),), None)[name]]
  maps += [
    read(variables, ((name, others),), {"draw": i})[name] for i in (0, 1)
  ]
  return plain[name], plain[state], maps


def test_knocked_out_sinks_leave_the_others_alone():
  weights, state, (own, *_) = _knocked_out()
  sinks = np.asarray(redistribution.sink_mask(state, (1, 4), 1.0))
  places = np.arange(LENGTH)
  image = (places >= IMAGE[0]) & (places < IMAGE[1])
  out = (sinks & image)[:, None, None] & ~image[:, None]
  out = np.broadcast_to(out, weights.shape)
  assert (weights[out] > 0).any()
  np.testing.assert_array_equal(own[out], 0)
  np.testing.assert_array_equal(own[~out], weights[~out])


def test_at_random_as_many_image_tokens():
  weights, state, (own, first, second) = _knocked_out()
  gone = [
    np.asarray((weights > 0) & (made == 0))[:, 0, -1]
    for made in (own, first, second)
  ]
  places = np.arange(LENGTH)
  for out in gone:
    assert not out[:, (places < IMAGE[0]) | (places >= IMAGE[1])].any()
    assert out.sum(1).tolist() == gone[0].sum(1).tolist()
  assert (gone[1] != gone[2]).any()
  edit = sink_edits.KnockOut((1,), 1.0, at_random=True)
  model, variables = transformer()
  with pytest.raises(ValueError, match=r"no given\['draw'\]"):
    interpret.run(model, variables, TOKENS, edit={sink_edits.PATTERN: edit})
  assert state.shape == (2, LENGTH, 12)
