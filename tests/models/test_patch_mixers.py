"""ViT, MLP-Mixer and NiNformer: counts, equality with others, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import patch_layers, pretrained, taps
from tests import parity_helper
from tests.models import counting, ninformer_torch

# Timm's; NiNformer's as counted from the released file.
COUNTS = {
  "vit_tiny_16_224": (5_717_416, 0),
  "vit_small_16_224": (22_050_664, 0),
  "vit_base_16_224": (86_567_656, 0),
  "vit_large_16_224": (304_326_632, 0),
  "vit_huge_14_224": (632_045_800, 0),
  "mixer_small_16_224": (18_528_264, 0),
  "mixer_base_16_224": (59_880_472, 0),
  "mixer_large_16_224": (208_196_168, 0),
  "ninformer_4_32": (2_652_170, 0),
}
SMALL = {
  "patch_size": 4,
  "image_size": 16,
  "width": 8,
  "depth": 2,
  "heads": 2,
  "hidden_width": 24,
  "token_hidden": 6,
  "num_classes": 5,
}
NAMES = ("vit_tiny_16_224", "mixer_small_16_224", "ninformer_4_32")


def _model(name, **fields):
  return models.create(name, **{**SMALL, **fields})


@functools.cache
def _variables(name):
  return parity_helper.random_variables(_model(name), 0)


def _run(model, variables, images, **options):
  return jax.jit(functools.partial(model.apply, **options))(variables, images)


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
  model = models.create(name)
  one, two = (
    counting.count(model.clone(depth=depth), model.image_size)[0]
    for depth in (1, 2)
  )
  assert one + (model.depth - 1) * (two - one) == COUNTS[name][0]


def _theirs(name):
  """The same in PyTorch: timm's, or our statement of the sheet."""
  if name.startswith("ninformer"):
    return ninformer_torch.create(_model(name))
  parity_helper.import_timm()
  from timm.models import mlp_mixer, vision_transformer

  shared = {"img_size": 16, "patch_size": 4, "embed_dim": 8, "num_classes": 5}
  if name.startswith("vit"):
    return vision_transformer.VisionTransformer(
      depth=2, num_heads=2, mlp_ratio=3, **shared
    )
  return mlp_mixer.MlpMixer(num_blocks=2, mlp_ratio=(0.75, 3), **shared)


def test_features_before_the_norm_give_the_same_logits():
  name = NAMES[0]
  images, variables = parity_helper.random_images(2, 16), _variables(name)

  @functools.partial(jax.jit, static_argnums=0)
  def run(model, variables, images):
    maps = model.apply(variables, images, method="features")
    return maps, model.apply(variables, maps, method="classify")

  after, logits = run(_model(name), variables, images)
  before, same = run(_model(name, normalized_features=False), variables, images)
  np.testing.assert_allclose(same, logits, atol=1e-5)
  norm = variables["params"]["final_norm"]
  for x, y in zip(before[1:], after[1:], strict=True):
    x = x - x.mean(-1, keepdims=True)
    x = x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
    x = x * norm["scale"][None, None, None] + norm["bias"][None, None, None]
    np.testing.assert_allclose(x, y, atol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_logits_and_gradients(name):
  model, variables = _model(name), _variables(name)
  theirs = _theirs(name)
  parity_helper.fill(theirs, pretrained.to_tensors(variables, model))
  images = parity_helper.random_images(2, 16)
  (logits, ours), (expected, gradients) = parity_helper.logits_and_gradients(
    model, variables, theirs.eval(), images
  )
  assert expected.std() > 0.1
  np.testing.assert_allclose(logits, expected, atol=1e-5)
  for name, gradient in gradients.items():
    error = np.abs(ours[name] - gradient).max()
    assert error < 2e-5 * np.abs(gradient).max() + 1e-6, name


def test_maps_and_the_class_token():
  images = parity_helper.random_images(2, 16)
  for name, pooled in zip(NAMES, (1, -1, -1), strict=True):
    model = _model(name, num_classes=0)
    params = dict(_variables(name)["params"])
    params.pop("head")
    call = lambda x, m=model, p=params: (
      m.apply({"params": p}, x, method="features"),
      m.apply({"params": p}, x),
    )
    maps, out = jax.jit(call)(images)
    shapes = [m.shape for m in maps]
    assert shapes[0] == shapes[-1] == (2, 4, 4, 8)
    assert shapes[1:-1] == ([(2, 1, 1, 8)] if model.class_token else [])
    np.testing.assert_allclose(maps[pooled].mean((1, 2)), out, atol=1e-6)


def test_token_layers_alone_know_places():
  """Zeroed, they leave NiNformer's trunk blind to the order of patches."""
  name = "ninformer_4_32"
  model, variables = _model(name), _variables(name)
  images = parity_helper.random_images(1, 16)
  # Each row of patches takes the place of another.
  turned = np.roll(images, 4, axis=1)
  still = jax.tree_util.tree_map_with_path(
    lambda path, x: x * ("tokens" not in jax.tree_util.keystr(path)), variables
  )
  run = jax.jit(model.apply)
  np.testing.assert_allclose(
    run(still, images), run(still, turned), rtol=1e-5, atol=1e-5
  )
  moved = run(variables, images) - run(variables, turned)
  assert jnp.abs(moved).max() > 0.01


def test_one_norm_has_the_gradients_of_both_its_uses():
  block = functools.partial(
    patch_layers.Block,
    mixer=functools.partial(patch_layers.TokenMlp, token_hidden=3),
    hidden_width=4,
  )
  x = jax.random.normal(jax.random.key(0), (2, 3, 4))
  two = block()
  params = parity_helper.randomise(
    jax.eval_shape(lambda: two.init(jax.random.key(0), x, False)), 0
  )["params"]
  params["ffn_norm"] = params["norm"]
  one = {key: value for key, value in params.items() if key != "ffn_norm"}

  def gradient(block, params):
    loss = lambda p: jnp.sin(block.apply({"params": p}, x, False)).sum()
    return jax.jit(jax.grad(loss))(params)

  shared, apart = gradient(block(shared_norm=True), one), gradient(two, params)
  for leaf in ("scale", "bias"):
    total = apart["norm"][leaf] + apart["ffn_norm"][leaf]
    np.testing.assert_allclose(shared["norm"][leaf], total, atol=1e-5)


def test_other_sizes_precision_remat_and_taps():
  name = "vit_tiny_16_224"
  model, variables = _model(name), _variables(name)
  wide = parity_helper.random_images(2, 24)[:, :20]
  map_name = "block_1/mixer/attention_weights"
  exact, values = jax.jit(
    lambda v, x: taps.read(model, v, x, names=[map_name])
  )(variables, wide)
  assert values[map_name].shape == (2, 2, 31, 31)
  half = _run(model.clone(dtype="bfloat16", remat=True), variables, wide)
  assert half.dtype == jnp.float32
  assert 0 < jnp.abs(half - exact).max() < 0.1 * jnp.abs(exact).max()


def test_the_residual_stream_of_a_vit_adds_up_and_every_value_counts():
  name = "vit_tiny_16_224"
  model, variables = _model(name), _variables(name)
  images = parity_helper.random_images(2, 16)
  names = [
    tap
    for tap in taps.list_names(model, variables, images)
    if "block_0" not in tap
  ]

  def bend(number):
    # Not all channels alike, which the last norm would not see.
    ramp = lambda x: 1 + 0.5 * jnp.cos(jnp.arange(x.shape[-1]))
    turned = lambda x: x * ramp(x).reshape((1,) * (x.ndim - 1) + (-1,))
    return lambda x, site: jnp.where(site.given == number, turned(x), x)

  edit = {tap: bend(number) for number, tap in enumerate(names)}

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(None, 0))
  def run(variables, given):
    variables = taps.with_given(variables, given)
    return taps.read(model, variables, images, names=["*"], edit=edit)

  logits, values = run(variables, jnp.arange(len(names) + 1))
  for number, tap in enumerate(names):
    assert jnp.abs(logits[number] - logits[-1]).max() > 1e-4, tap
  plain = {tap: np.asarray(value[-1]) for tap, value in values.items()}
  at = lambda tap: plain[f"block_1/{tap}"]
  np.testing.assert_array_equal(
    at("input_state"), plain["block_0/hidden_state"]
  )
  for before, written, after in (
    ("input_state", "mixer_output", "middle_state"),
    ("middle_state", "mlp_output", "hidden_state"),
  ):
    np.testing.assert_allclose(at(before) + at(written), at(after), atol=1e-5)
  params = variables["params"]
  ffn = params["block_1"]["ffn"]["shrink"]
  shrunk = at("ffn/hidden") @ ffn["kernel"] + ffn["bias"]
  np.testing.assert_allclose(shrunk, at("mlp_output"), atol=1e-5)
  head = params["head"]["logits"]
  said = plain["final_state"][:, 0] @ head["kernel"] + head["bias"]
  np.testing.assert_allclose(said, plain["logits"], atol=1e-5)
  np.testing.assert_array_equal(plain["logits"], logits[-1])


def test_dropout_and_stochastic_depth():
  name = "vit_tiny_16_224"
  images = np.repeat(parity_helper.random_images(1, 16), 8, axis=0)
  rngs = {"dropout": jax.random.key(0)}
  for fields in ({"dropout_rate": 0.5}, {"stochastic_depth_rate": 0.5}):
    model = _model(name, **fields)
    logits = _run(model, _variables(name), images, train=True, rngs=rngs)
    assert len(np.unique(np.asarray(logits)[:, 0])) > 2


def test_errors_say_what_would_fit():
  def init(name, side=16, **fields):
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    jax.eval_shape(_model(name, **fields).init, jax.random.key(0), image)

  vit, mlp, _ = NAMES
  with pytest.raises(ValueError, match="mixer 'attend'; did you mean attent"):
    init(vit, mixer="attend")
  with pytest.raises(ValueError, match="no weight_init 'torch'"):
    init(vit, weight_init="torch")
  with pytest.raises(ValueError, match="no position 'rotary'"):
    init(vit, position="rotary")
  with pytest.raises(ValueError, match=r"heads is 3, .* width 8"):
    init(vit, heads=3)
  with pytest.raises(ValueError, match=r"image_size is 18; .* patch_size 4"):
    init(vit, image_size=18)
  with pytest.raises(ValueError, match=r"token_hidden is 0; mixer='mlp'"):
    init(mlp, token_hidden=0)
  with pytest.raises(ValueError, match=r"x is 18 x 18; .* of patch_size=4"):
    init(vit, side=18)
  with pytest.raises(ValueError, match=r"x is 20 x 20; .* image_size=16 only"):
    init(mlp, side=20)
