"""The model of images and text: order of tokens, cells, caches, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import decoding, image_places, taps

SMALL = {
  "vocabulary_size": 11,
  "width": 8,
  "depth": 2,
  "heads": 2,
  "mlp_width": 8,
  "compression": 2,
  "vision": {
    "width": 8,
    "depth": 2,
    "heads": 2,
    "hidden_width": 8,
    "patch_size": 2,
    "image_size": 8,
    "class_token": False,
  },
  "vision_levels": (0, 2),
}
REMEMBER = {"remember": "local", "remember_layers": (1,), "remember_heads": 2}


def _model(**fields):
  return models.create("vision_language", **{**SMALL, **fields})


def _apply(model, variables, *inputs, **options):
  """One program is compiled faster than its operations one by one."""
  call = lambda variables, *inputs: model.apply(variables, *inputs, **options)
  return jax.jit(call)(variables, *inputs)


def _without_remembering(variables):
  params = variables["params"]
  kept = {k: v for k, v in params.items() if not k.startswith("remembers")}
  return {"params": kept}


@pytest.fixture(scope="module")
def inputs():
  rng = np.random.default_rng(0)
  tokens = jnp.asarray(rng.integers(11, size=(2, 5)), jnp.int32)
  return tokens, jnp.asarray(rng.normal(size=(2, 8, 12, 1)), jnp.float32)


@pytest.fixture(scope="module")
def variables(inputs):
  made = jax.jit(_model(**REMEMBER).init)(jax.random.key(0), *inputs)
  rng = np.random.default_rng(1)
  draw = lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.4, x.dtype)
  return jax.tree.map(draw, made)


@pytest.mark.parametrize("start", [0, 2, (3, 0)])
def test_equals_its_parts_one_after_another(variables, inputs, start):
  """The decoder as a language model, of embeddings that are given as tokens."""
  tokens, images = inputs
  params = variables["params"]
  kept = _without_remembering(variables)["params"]
  given = start if isinstance(start, int) else jnp.array(start)
  out = _apply(_model(), {"params": kept}, *inputs, image_start=given)

  trunk = models.create("vit_tiny_16_224", num_classes=0, **SMALL["vision"])
  x = trunk.apply(
    {"params": params["vision_trunk"]}, images, method="hidden_maps"
  )[2]
  # [2, 4, 6, D] -> the means of squares of 2 x 2, row by row.
  means = np.array(x).reshape(2, 2, 2, 3, 2, 8).mean((2, 4)).reshape(2, 6, 8)
  dense = lambda x, p: x @ p["kernel"] + p["bias"][None, None]
  project = params["image_projector"]
  hidden = jax.nn.gelu(dense(means, project["expand"]), approximate=False)
  seen = dense(hidden, project["shrink"])

  table = params["embed"]["embedding"]
  # Soft tokens: a table that has the image's own vectors as more rows.
  decoder = models.create(
    "transformer",
    vocabulary_size=11 + 12,
    classes=11,
    tied_head=False,
    width=8,
    depth=2,
    heads=2,
    mlp_width=8,
  )
  language = {
    k: v for k, v in kept.items() if k.startswith(("layer_", "final"))
  }
  language["embed"] = {
    "embedding": jnp.concatenate([table, seen.reshape(12, 8)])
  }
  language["head"] = {"logits": {"kernel": table.T}}
  places = 11 + jnp.arange(12, dtype=jnp.int32).reshape(2, 6)
  starts = np.broadcast_to(start, 2)
  row = np.stack(
    [np.insert(t, s, p) for t, s, p in zip(tokens, starts, places, strict=True)]
  )
  logits = jax.jit(decoder.apply)({"params": language}, row)
  expected = [
    np.delete(x, np.s_[s : s + 6], axis=0)
    for x, s in zip(logits, starts, strict=True)
  ]
  np.testing.assert_allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize("start", [0, (1, 3)])
def test_decoding_after_a_prefill_equals_one_call(variables, inputs, start):
  model = _model(**REMEMBER)
  tokens, images = inputs
  at = {"image_start": start if isinstance(start, int) else jnp.array(start)}
  expected = _apply(model, variables, tokens, images, **at)
  cache = model.init_cache(2, 16)
  step = jax.jit(model.apply)
  first, cache = step(variables, tokens[:, :3], images, **at, cache=cache)
  begin = np.broadcast_to(start, 2)
  span = np.stack([begin, begin + 6], 1)
  np.testing.assert_array_equal(cache[image_places.SPAN], span)
  with pytest.raises(ValueError, match="images are given to a cache with"):
    model.apply(variables, tokens[:, 3:], images, cache=cache)
  # Steps have no image, and so neither ViT nor Vision Remember.
  second, cache = step(variables, tokens[:, 3:4], cache=cache)
  third, cache = step(variables, tokens[:, 4:], cache=cache)
  out = jnp.concatenate([first, second, third], axis=1)
  np.testing.assert_allclose(out, expected, atol=2e-5)


def test_remembering_begins_as_the_identity(inputs):
  model = _model(**REMEMBER, dtype=jnp.float32)
  variables = jax.jit(model.init)(jax.random.key(0), *inputs)
  out = _apply(model, variables, *inputs)
  plain = _apply(_model(), _without_remembering(variables), *inputs)
  np.testing.assert_array_equal(out, plain)


def test_remembering_changes_image_tokens_of_its_layer_alone(variables, inputs):
  names = ["layer_0/hidden_state", "remembers_1/hidden_state"]
  model = _model(**REMEMBER)
  _, read = taps.read(model, variables, *inputs, names=names)
  before, after = (read[name] for name in names)
  assert before.shape == (2, 11, 8)
  assert after.shape == (2, 2, 3, 8)
  assert not np.allclose(before[:, :6].reshape(after.shape), after)
  # The text has seen nothing of it yet; the next layer shows it.
  changed = {names[1]: before[:, :6].reshape(after.shape)}
  plain = _apply(_model(), _without_remembering(variables), *inputs)
  out, _ = taps.read(model, variables, *inputs, edit=changed)
  np.testing.assert_allclose(out, plain, atol=1e-5)


def test_the_text_reaches_no_image_token_and_the_image_all_text(
  variables, inputs
):
  model = _model(**REMEMBER)
  tokens, images = inputs
  logits = jax.jit(lambda *inputs: model.apply(variables, *inputs))
  before = logits(tokens, images)
  later = logits(tokens.at[:, 3].set((tokens[:, 3] + 1) % 11), images)
  np.testing.assert_array_equal(before[:, :3], later[:, :3])
  slopes = jax.grad(lambda x: logits(tokens, x)[:, 0].sum())(images)
  assert (abs(slopes) > 0).all()


def test_shuffled_squares_keep_their_patches_side_by_side(inputs):
  model = _model(projector="shuffle")
  variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
  project = variables["params"]["image_projector"]
  assert project["expand"]["kernel"].shape == (4 * 8, 8)


def test_bfloat16_and_remat(variables, inputs):
  model = _model(**REMEMBER, dtype="bfloat16", remat=True)
  seen = (*inputs, jnp.array([1, 4]))
  out = _apply(model, variables, *seen)
  expected = _apply(_model(**REMEMBER), variables, *seen)
  assert out.dtype == jnp.float32
  np.testing.assert_allclose(out, expected, atol=0.3)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"remember": "locl"}, "no remember 'locl'; did you mean"),
    ({"projector": "max"}, "no projector 'max'"),
    ({"vision_levels": (3,)}, "must be depths from 0 to 2"),
    ({"remember": "local"}, r"remember_layers is \(\); with remember='local'"),
    ({**REMEMBER, "remember_layers": (3,)}, "from 1 to depth=2"),
    ({"compression": 3}, "4 x 6 patches, which must be multiples"),
    ({"scan_layers": True}, "scan_layers is True; with images"),
    ({"position_encoding": "learned"}, "with images they must be another"),
  ],
)
def test_fields_that_do_not_fit(inputs, fields, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(_model(**fields).init, jax.random.key(0), *inputs)


def test_positions_are_of_the_whole_row(variables, inputs):
  model = _model(**REMEMBER)
  places = jnp.broadcast_to(jnp.arange(11)[None], (2, 11))
  out = model.apply(variables, *inputs, positions=places)
  np.testing.assert_array_equal(out, model.apply(variables, *inputs))
  with pytest.raises(ValueError, match=r"positions has shape \(2, 5\)"):
    model.apply(variables, *inputs, positions=places[:, :5])


def test_places_of_rows_are_as_one_for_all(variables, inputs):
  """Values and gradients, with Vision Remember, of both ways to say it."""
  model = _model(**REMEMBER)

  def run(variables, start):
    def loss(variables):
      logits = model.apply(variables, *inputs, start)
      return (logits * jnp.sin(logits)).sum(), logits

    return jax.grad(loss, has_aux=True)(variables)

  gradients, logits = jax.jit(run)(variables, jnp.array([2, 2]))
  wanted, same = jax.jit(run, static_argnums=1)(variables, 2)
  np.testing.assert_allclose(logits, same, atol=1e-5)
  for ours, expected in zip(
    jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True
  ):
    norm = np.linalg.norm(expected)
    assert np.linalg.norm(ours - expected) <= 1e-4 * norm


@pytest.mark.parametrize(
  ("start", "message"),
  [
    (6, "image_start is 6; it must be from 0"),
    (np.array([0, -1]), r"image_start is \[0, -1\]"),
    (np.array([1, 2, 3]), r"of shape \(3,\); it must be"),
    (0.5, "image_start is float32"),
  ],
)
def test_images_that_cannot_stand_there(variables, inputs, start, message):
  with pytest.raises(ValueError, match=message):
    _model().apply(variables, *inputs, start)


def test_a_place_needs_an_image(variables, inputs):
  with pytest.raises(ValueError, match="image_start is 1, but images is None"):
    _model().apply(variables, inputs[0], None, 1)


def test_placeholders_say_where_images_are():
  rows = [[1, 2, 9, 9, 9, 3], [9, 4, 5]]
  texts, starts = image_places.from_placeholders(rows, 9)
  assert texts == [[1, 2, 3], [4, 5]]
  assert starts.tolist() == [2, 0]
  for row, places in (([1, 2], r"\[\]"), ([9, 1, 9], r"\[0, 2\]")):
    with pytest.raises(ValueError, match=rf"rows\[0\] has .*=9 at {places}"):
      image_places.from_placeholders([row], 9)


def test_generating_with_words_before_images(variables, inputs):
  """Prompts of several lengths; each is gone on from as it is alone."""
  model, images = _model(**REMEMBER), inputs[1]
  prompts, starts = [[3, 5, 2, 8, 6], [7, 1]], [3, 1]
  new = decoding.generate(
    model,
    variables,
    prompts,
    images=images,
    image_start=starts,
    max_tokens=4,
    cache_length=24,
  )
  state = decoding.start(
    model,
    variables,
    prompts,
    padded=4,
    slots=24,
    images=images,
    image_start=starts,
  )
  # By positions, which padding does not move.
  span = state.cache[image_places.SPAN]
  np.testing.assert_array_equal(span, [[3, 9], [1, 7]])
  step = {"positions": state.position[:, None], "cache": state.cache}
  apply = jax.jit(model.apply)
  begun, _ = apply(variables, state.token[:, None], **step)
  for i, (prompt, row) in enumerate(zip(prompts, new, strict=True)):
    text = prompt + row[:-1]
    tokens = jnp.asarray([text + [0] * (8 - len(text))])
    logits = apply(variables, tokens, images[i : i + 1], starts[i])
    last = logits[0, len(prompt) - 1 : len(text)]
    np.testing.assert_allclose(begun[i, 0], last[0], atol=2e-5)
    assert last.argmax(-1).tolist() == row


def test_generating_after_images_equals_whole_texts(variables, inputs):
  """Each token is the likeliest after all before it, in one call."""
  model, images = _model(**REMEMBER), inputs[1]
  prompts = [[3, 5, 2], [7, 1, 9]]
  options = {"max_tokens": 5, "images": images}
  new = decoding.generate(model, variables, prompts, block=2, **options)
  tokens = jnp.asarray(
    [prompt + row[:-1] for prompt, row in zip(prompts, new, strict=True)]
  )
  logits = _apply(model, variables, tokens, images)
  np.testing.assert_array_equal(logits[:, 2:].argmax(-1), new)
  # The image matters, to each row its own.
  swapped = decoding.generate(
    model, variables, prompts, max_tokens=5, images=images[::-1]
  )
  assert swapped != new
  # A prompt of one token, whose cache has the image alone.
  (alone,) = decoding.generate(
    model, variables, [[4]], max_tokens=2, images=images[:1]
  )
  row = _apply(model, variables, jnp.asarray([[4, alone[0]]]), images[:1])
  np.testing.assert_array_equal(row[0].argmax(-1), alone)


@pytest.mark.parametrize(
  ("prompts", "options", "message"),
  [
    ([[1], [2, 3]], {"image_start": 1}, r"image_start is 1 for prompts\[0\]"),
    ([[1], [2]], {"image_start": [0]}, r"or integers \[batch\] = \(2,\)"),
    ([[1]], {}, "images are 2 and prompts 1"),
    ([[1], [2]], {"cache_length": 7}, "cache_length=7 has room for"),
  ],
)
def test_prompts_that_do_not_fit_images(
  variables, inputs, prompts, options, message
):
  with pytest.raises(ValueError, match=message):
    decoding.generate(
      _model(), variables, prompts, max_tokens=3, images=inputs[1], **options
    )


def test_models_without_images_refuse_them(inputs):
  model = models.create("transformer", vocabulary_size=11, width=8, depth=1)
  with pytest.raises(ValueError, match="a Transformer, which sees none"):
    decoding.generate(model, {}, [[1], [2]], max_tokens=1, images=inputs[1])


def test_image_tokens_are_squares_of_patches():
  assert _model().image_tokens((2, 8, 12, 1)) == 2 * 3
  assert _model(compression=1).image_tokens((2, 8, 12, 1)) == 4 * 6
  with pytest.raises(ValueError, match="8 x 10; both must be multiples of 4"):
    _model().image_tokens((2, 8, 10, 1))
