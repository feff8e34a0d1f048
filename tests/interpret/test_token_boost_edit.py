"""Boosted tokens in a model: one pass, with a cache, in scanned layers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interpret
import models
from interpret import token_boost, token_boost_edit
from models.layer_stacking import stack_layers
from tests import parity_helper
from tests.interpret import image_text

SCORES = token_boost_edit.SCORES
FIRST = "layer_1/mixer/attention_scores"
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 5)))
IMAGES = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 4, 1)))
IMAGE_TOKENS = 6
GAINS = jnp.asarray(np.random.default_rng(2).random((2, IMAGE_TOKENS)))
STARTS = np.array([2, 1], np.int32)
ANSWERS = jnp.array([IMAGE_TOKENS + 2, IMAGE_TOKENS + 3])


@functools.cache
def vision_language():
  model = models.create(
    "vision_language",
    vocabulary_size=11,
    width=8,
    depth=3,
    heads=2,
    mlp_width=8,
    vision={
      "width": 8,
      "depth": 1,
      "heads": 2,
      "hidden_width": 8,
      "patch_size": 2,
      "image_size": 8,
      "class_token": False,
    },
    vision_levels=(1,),
  )
  shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS, IMAGES)
  return model, parity_helper.randomise(shapes, 0)


def run(boost, read=(), pattern=SCORES, start=0, **given):
  model, variables = vision_language()

  @jax.jit
  def call(variables, given):
    return interpret.run(
      model,
      variables,
      (TOKENS, IMAGES, start),
      read=read,
      edit={pattern: boost},
      given=given,
    )

  return call(variables, {"token_gains": GAINS, **given})


def plain(read=(), start=0):
  model, variables = vision_language()
  return interpret.run(model, variables, (TOKENS, IMAGES, start), read=read)


@pytest.mark.parametrize(
  ("first_position", "start"), [(None, 0), (8, 0), (ANSWERS, STARTS)]
)
def test_scores_are_those_of_the_rule(first_position, start):
  given = {} if first_position is None else {"first_position": first_position}
  boost = token_boost_edit.Boost(first_layer=1)
  read = [FIRST, "layer_0/*_scores"]
  out, values = run(boost, read, start=start, **given)
  whole, before = plain(read, start)
  z = np.asarray(before[FIRST])
  expected = z.copy()
  for b, h, q, k in np.ndindex(z.shape):
    begins = 10
    if first_position is not None:
      begins = int(np.broadcast_to(first_position, 2)[b])
    token = k - int(np.broadcast_to(start, 2)[b])
    if 0 <= token < IMAGE_TOKENS and k <= q and q >= begins:
      expected[b, h, q, k] += float(GAINS[b, token]) * abs(z[b, h, q, k])
  np.testing.assert_allclose(values[FIRST], expected, rtol=1e-4, atol=1e-5)
  early = "layer_0/mixer/attention_scores"
  np.testing.assert_allclose(values[early], before[early], rtol=1e-4, atol=1e-5)
  # Queries before are as they were, and those after are not.
  kept = 4 if first_position is None else 2
  np.testing.assert_allclose(out[:, :kept], whole[:, :kept], atol=1e-4)
  assert np.abs(out[:, -1] - whole[:, -1]).max() > 1e-3


def test_no_gain_is_the_identity():
  boost = token_boost_edit.Boost(first_layer=0)
  out, _ = run(boost, token_gains=GAINS * 0)
  np.testing.assert_allclose(out, plain()[0], atol=1e-5)


@pytest.mark.parametrize(("uniform", "start"), [(False, STARTS), (True, 0)])
def test_decoding_with_a_cache_equals_one_pass(uniform, start):
  boost = token_boost_edit.Boost(first_layer=1, uniform=uniform)
  expected, _ = run(boost, start=start, first_position=ANSWERS)
  model, variables = vision_language()
  edited = interpret.edited(model, {SCORES: boost})
  variables = interpret.with_given(
    variables, {"token_gains": GAINS, "first_position": ANSWERS}
  )
  cache = edited.init_cache(2, 16)
  call = jax.jit(
    lambda tokens, cache, *seen: edited.apply(
      variables, tokens, *seen, cache=cache
    )
  )
  outs = []
  for tokens, *seen in (
    (TOKENS[:, :2], IMAGES, start),
    *((TOKENS[:, i : i + 1],) for i in range(2, 5)),
  ):
    out, cache = call(tokens, cache, *seen)
    outs.append(out)
  np.testing.assert_allclose(jnp.concatenate(outs, 1), expected, atol=1e-4)


def test_the_control_has_the_same_mass_and_the_same_shares():
  name = "layer_1/mixer/attention_weights"
  whole = plain([name])[1][name]
  boosted, level = (
    run(token_boost_edit.Boost(1, uniform), [name])[1][name]
    for uniform in (False, True)
  )
  mass = lambda w: w[:, :, -1, :IMAGE_TOKENS].sum(-1)
  np.testing.assert_allclose(mass(level), mass(boosted), rtol=1e-4)
  assert np.abs(mass(level) - mass(whole)).max() > 0.01
  shares = lambda w: w[:, :, -1, :IMAGE_TOKENS] / mass(w)[..., None]
  np.testing.assert_allclose(shares(level), shares(whole), rtol=1e-3, atol=1e-6)
  assert np.abs(shares(boosted) - shares(whole)).max() > 0.01
  np.testing.assert_allclose(level[:, :, :-1], whole[:, :, :-1], atol=1e-5)


@pytest.mark.parametrize("first_layer", [0, 2])
def test_scanned_layers(first_layer):
  """The first tokens of a text as if they were an image."""
  model = image_text.WithImage(
    vocabulary_size=11, width=8, depth=3, heads=2, image=(0, 3)
  )
  shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
  variables = parity_helper.randomise(shapes, 0)
  stacked = {"params": stack_layers(variables["params"])}
  edit = {SCORES: token_boost_edit.Boost(first_layer)}
  given = {
    "token_gains": GAINS[:, :3],
    "first_position": jnp.array([2]),
    "head_gains": jnp.array([1.0, 0.3]),
  }
  out, scanned = (
    jax.jit(
      lambda v, m=m: interpret.run(m, v, TOKENS, edit=edit, given=given)[0]
    )(v)
    for m, v in (
      (model, variables),
      (model.clone(scan_layers=True), stacked),
    )
  )
  np.testing.assert_allclose(scanned, out, rtol=1e-4, atol=1e-4)
  whole = model.apply(variables, TOKENS)
  np.testing.assert_allclose(out[:, :2], whole[:, :2], rtol=1e-4, atol=1e-4)
  assert np.abs(out[:, 2:] - whole[:, 2:]).max() > 1e-3


def test_gradients_by_gains():
  model, variables = vision_language()
  edit = {SCORES: token_boost_edit.Boost(1)}

  @jax.jit
  def loss(gains):
    given = {"token_gains": gains}
    out, _ = interpret.run(
      model, variables, (TOKENS, IMAGES), edit=edit, given=given
    )
    return jax.nn.log_softmax(out[:, -1])[:, 3].sum()

  slope = jax.grad(loss)(GAINS)
  direction = jnp.asarray(np.random.default_rng(3).normal(size=GAINS.shape))
  step = 1e-2
  expected = (
    loss(GAINS + step * direction) - loss(GAINS - step * direction)
  ) / (2 * step)
  assert abs(expected) > 1e-3
  np.testing.assert_allclose((slope * direction).sum(), expected, rtol=0.02)


def test_what_does_not_fit_is_told():
  with pytest.raises(ValueError, match="first_layer is -1"):
    token_boost_edit.Boost(first_layer=-1)
  model, variables = vision_language()
  call = functools.partial(interpret.run, model, variables, (TOKENS, IMAGES))
  with pytest.raises(ValueError, match="needs 'token_gains'"):
    call(edit={SCORES: token_boost_edit.Boost()})
  vit = {
    "vision_trunk/block_0/mixer/attention_scores": token_boost_edit.Boost()
  }
  with pytest.raises(ValueError, match="has no positions of keys"):
    call(edit=vit, given={"token_gains": GAINS})


def test_pai_and_the_rule_meet():
  """All image tokens with one gain, by both ways."""
  image = jnp.ones((2, IMAGE_TOKENS), bool)
  boost = token_boost_edit.Boost(1)
  by_pai, _ = run(boost, token_gains=token_boost.pai_gains(image, 0.5))
  none = jnp.zeros_like(image)
  gains = token_boost.token_gains(image, none, 0.5, 0.9)
  by_rule, _ = run(boost, token_gains=gains)
  np.testing.assert_array_equal(by_pai, by_rule)
