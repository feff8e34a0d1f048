"""Tokens against an index table, locality, fields, sizes, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import models
from models import duoformer, duoformer_tokens, taps
from models.duoformer import DuoFormer
from tests import parity_helper

# Parameters with 2 classes. The first eight were counted from the authors'
# modules; the others follow from their parts.
TOTALS = {
  "duoformer_r50_2s": 139_319_362,
  "duoformer_r50_2s_channel": 185_335_106,
  "duoformer_r50_3s": 139_725_634,
  "duoformer_r50_3s_channel": 185_741_378,
  "duoformer_r50_4s": 139_972_162,
  "duoformer_r50_4s_channel": 185_987_906,
  "duoformer_r18_2s_released": 124_934_978,
  "duoformer_r18_4s": 125_428_802,
  "duoformer_r18_2s": 125_218_370,
  "duoformer_r18_2s_channel": 148_009_026,
  "duoformer_r18_3s": 125_329_730,
  "duoformer_r18_3s_channel": 148_120_386,
  "duoformer_r18_4s_channel": 148_219_458,
}
# With 1000 classes: trainable parameters, batch statistics.
COUNTS = {
  name: (
    total + 998 * (768 + 1),
    (53_120 if "r50" in name else 9_600) + 6_144 * ("channel" in name),
  )
  for name, total in TOTALS.items()
}
CHANNELS = (3, 4, 5, 6)
FIELDS = {
  "width": 8,
  "heads": 2,
  "scale_depth": 1,
  "patch_depth": 1,
  "image_size": 64,
  "num_classes": 3,
}


def pyramid(rows=2, columns=2, batch=2, seed=0):
  """Feature maps as a trunk gives, strides 2 to 32."""
  rng = np.random.default_rng(seed)
  sides = (16, 8, 4, 2, 1)
  return [
    rng.standard_normal((batch, side * rows, side * columns, c), np.float32)
    for side, c in zip(sides, (2, *CHANNELS), strict=True)
  ]


@functools.cache
def behind_the_trunk(**fields):
  """A small model, and random parameters of all of it but the trunk."""
  model = DuoFormer(**{**FIELDS, **fields})
  init = functools.partial(model.init, method="classify")
  shapes = jax.eval_shape(init, jax.random.key(0), pyramid())
  return model, parity_helper.randomise(shapes, seed=0)


def classifier(model, **options):
  """The model behind its trunk, as a function that compiles once."""
  return jax.jit(functools.partial(model.apply, method="classify", **options))


def classify(model, variables, maps, **options):
  return classifier(model, **options)(variables, maps)


def _counted(model):
  image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)
  size = lambda tree: sum(np.prod(x.shape) for x in jax.tree.leaves(tree))
  blocks = [
    size(shapes["params"][f"{part}_0"])
    for part in ("scale_block", "patch_layer")
  ]
  return size(shapes["params"]), size(shapes["batch_stats"]), blocks


@pytest.mark.parametrize("name", TOTALS)
def test_counts(name):
  model = models.create(name, num_classes=2)
  expected = TOTALS[name], COUNTS[name][1]
  if name == "duoformer_r18_2s":
    assert _counted(model)[:2] == expected
  # With one of the blocks that are alike, which makes tracing quick.
  shallow = model.clone(scale_depth=1, patch_depth=1)
  parameters, statistics, (scale, patch) = _counted(shallow)
  parameters += (model.scale_depth - 1) * scale
  parameters += (model.patch_depth - 1) * patch
  assert (parameters, statistics) == expected


def test_no_variant_is_uncounted():
  assert set(TOTALS) == set(duoformer.VARIANTS) == set(duoformer.IMAGE_SIZES)


def index_table(side, steps):
  """The sheet's table: for each patch its pixels in the flattened map."""
  width = side * steps
  return [
    [
      (r * steps + i) * width + c * steps + j
      for i in range(steps)
      for j in range(steps)
    ]
    for r in range(side)
    for c in range(side)
  ]


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_tokens_are_those_of_an_index_table(steps):
  table = np.array(index_table(7, steps))
  pixels = np.arange((7 * steps) ** 2).reshape(1, 7 * steps, 7 * steps, 1)
  tokens = np.asarray(duoformer_tokens.patch_tokens(jnp.asarray(pixels), steps))
  np.testing.assert_array_equal(tokens[0, ..., 0], table)


def test_index_table_of_the_released_model():
  def indices(steps, **options):
    pixels = jnp.arange((7 * steps) ** 2).reshape(1, 7 * steps, -1, 1)
    return duoformer_tokens.patch_tokens(pixels, steps, **options)[
      0, :, :, 0
    ].tolist()

  assert indices(2, column_major=True)[0] == [0, 14, 1, 15]
  assert indices(4)[0][:6] == [0, 1, 2, 3, 28, 29]
  assert indices(8)[8][0] == 456


def test_released_order_swaps_two_tokens_of_stage_2():
  maps = pyramid()
  ours, variables = behind_the_trunk(stages=(3, 2, 1))
  theirs, _ = behind_the_trunk(stages=(3, 2, 1), released=True)
  flat = traverse_util.flatten_dict(variables)
  path = ("params", "scale_tokens", "position")
  # Behind the scale token and the one of stage 3: tokens 2, 3, 4, 5.
  order = [0, 1, 2, 4, 3, *range(5, 22)]
  swapped = traverse_util.unflatten_dict({**flat, path: flat[path][order]})
  logits = classify(ours, variables, maps)
  np.testing.assert_allclose(classify(theirs, swapped, maps), logits, atol=1e-5)
  assert np.abs(classify(theirs, variables, maps) - logits).max() > 1e-3


def swap_patches(maps):
  """Exchanges the first and the last of 2 x 2 patches, in every map."""

  def swap(x):
    half = x.shape[1] // 2
    y = np.array(x)
    y[:, :half, :half] = x[:, half:, half:]
    y[:, half:, half:] = x[:, :half, :half]
    return y

  return [swap(x) for x in maps]


def test_scale_blocks_are_local_and_patch_layers_are_not():
  model, variables = behind_the_trunk(stages=(3, 2, 1, 0), patch_block="vit")
  maps = pyramid()

  apply = classifier(model, mutable=["intermediates"])

  def states(maps):
    _, sown = apply(variables, maps)
    sown = sown["intermediates"]
    return [
      np.asarray(sown[name]["hidden_state"])
      for name in ("scale_block_0", "patch_layer_0")
    ]

  scale, patch = states(maps)
  swapped_scale, swapped_patch = states(swap_patches(maps))
  assert scale.shape == (2, 4, 86, 8)
  np.testing.assert_allclose(swapped_scale, scale[:, [3, 1, 2, 0]], atol=1e-5)
  # Patches have positions, so the class token sees the exchange.
  assert np.abs(swapped_patch[:, 0] - patch[:, 0]).max() > 1e-3
  changed = [np.array(x) for x in maps]
  changed[1][:, 3, 3] += 1.0  # Stage 0, in the first patch.
  new_scale, new_patch = states(changed)
  touched = np.abs(new_scale - scale).max((0, 2, 3))
  assert touched[0] > 1e-3
  np.testing.assert_array_equal(touched[1:], 0)
  assert (np.abs(new_patch - patch).max((0, 2)) > 1e-6).all()


def test_channel_token_sees_its_neighbours_and_every_map():
  model, variables = behind_the_trunk(stages=(3, 2), scale_token="channel")
  logits = classifier(model)
  before = logits(variables, pyramid())
  for i in range(1, 5):
    maps = pyramid()
    maps[i] += 0.5
    assert np.abs(logits(variables, maps) - before).max() > 1e-4


@pytest.mark.parametrize("scale_token", ["random", "none"])
def test_maps_that_are_not_tokenised_change_nothing(scale_token):
  model, variables = behind_the_trunk(stages=(2, 1), scale_token=scale_token)
  logits, maps = classifier(model), pyramid()
  before = logits(variables, maps)
  maps[1] += 0.5
  maps[4] += 0.5
  np.testing.assert_array_equal(logits(variables, maps), before)


@pytest.mark.parametrize("patch_depth", [0, 1])
def test_headless_and_without_patch_layers(patch_depth):
  model, variables = behind_the_trunk(num_classes=0, patch_depth=patch_depth)
  assert classify(model, variables, pyramid()).shape == (2, 8)
  assert ("patch_tokens" in variables["params"]) == bool(patch_depth)
  assert "logits" not in variables["params"]["head"]


# Traces or compiles whole networks.
@pytest.mark.slow
def test_only_the_unused_normalisation_gets_no_gradient():
  maps = pyramid()
  for norm in (False, True):
    model, variables = behind_the_trunk(
      scale_token="channel",
      stages=(3, 2, 1, 0),
      patch_block="vit" if norm else "attn_only",
      apply_final_norm=norm,
    )

    @jax.jit
    @jax.grad
    def gradient(params, model=model, variables=variables):
      logits, _ = model.apply(
        {**variables, "params": params},
        maps,
        method="classify",
        train=True,
        mutable="batch_stats",
      )
      return jnp.sum(jnp.sin(10 * logits))

    gradients = traverse_util.flatten_dict(gradient(variables["params"]))
    dead = {p for p, g in gradients.items() if not np.abs(g).max() > 0}
    unused = {("head", "norm", "scale"), ("head", "norm", "bias")}
    # Batch norm takes the mean away again.
    unused_biases = {
      p
      for p in gradients
      if "channel_token" in p and p[-2:] == ("conv", "bias")
    }
    assert dead - unused_biases == (set() if norm else unused)


def test_positions_are_interpolated_for_other_sizes():
  table = jnp.asarray(np.random.default_rng(0).standard_normal((50, 4)))
  assert duoformer_tokens.resize_positions(table, (7, 7)) is table
  wide = duoformer_tokens.resize_positions(table, (14, 7))
  assert wide.shape == (99, 4)
  np.testing.assert_array_equal(wide[0], table[0])
  grid, old = wide[1:].reshape(14, 7, 4), table[1:].reshape(7, 7, 4)
  # Columns stay, and rows go from the first old one to the last.
  assert jnp.abs(grid.mean((0, 1)) - old.mean((0, 1))).max() < 0.1
  model, variables = behind_the_trunk()
  assert classify(model, variables, pyramid(3, 1)).shape == (2, 3)


def test_taps_read_and_replace():
  model, variables = behind_the_trunk()
  maps = pyramid()
  modules = ("scale_block_0/attention", "patch_layer_0")
  names = [f"{module}/attention_weights" for module in modules]

  @jax.jit
  def read(edit):
    return taps.read(
      model,
      variables,
      maps,
      names=names,
      edit=edit,
      method="classify",
    )

  logits, found = read({})
  within, among = (found[name] for name in names)
  assert within.shape == (2, 4, 2, 6, 6)
  assert among.shape == (2, 2, 5, 5)
  np.testing.assert_allclose(among.sum(-1), 1, rtol=1e-5)
  np.testing.assert_allclose(
    classify(model, variables, maps), logits, atol=1e-5
  )
  replaced, _ = read({names[1]: jnp.full_like(among, 0.2)})
  assert np.abs(replaced - logits).max() > 1e-3


def test_remat_changes_no_value():
  maps = pyramid()
  results = []
  for remat in (False, True):
    model, variables = behind_the_trunk(remat=remat, patch_block="vit")

    def loss(params, model=model, variables=variables):
      logits = model.apply({"params": params}, maps, method="classify")
      return jnp.sum(jnp.sin(10 * logits))

    results.append(jax.jit(jax.value_and_grad(loss))(variables["params"]))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    *results,
  )


def test_bfloat16_gives_float32_logits():
  maps = pyramid()
  exact, variables = behind_the_trunk(scale_token="channel")
  half, _ = behind_the_trunk(scale_token="channel", dtype="bfloat16")
  expected = classify(exact, variables, maps)
  logits = classify(half, variables, maps)
  assert logits.dtype == jnp.float32
  error = jnp.abs(logits - expected).max()
  assert 0 < error < 0.1 * jnp.abs(expected).max()


def test_stochastic_depth_drops_images():
  model, variables = behind_the_trunk(
    scale_depth=2, stochastic_depth_rate=0.9, patch_block="vit"
  )
  maps = [np.repeat(x[:1], 16, axis=0) for x in pyramid()]
  logits = classify(
    model, variables, maps, train=True, rngs={"dropout": jax.random.key(0)}
  )
  assert 1 < len(np.unique(np.asarray(logits)[:, 0])) < 16
  logits = classify(model, variables, maps)
  np.testing.assert_allclose(logits[1:], logits[:-1], atol=1e-6)


def test_errors_say_what_would_fit():
  def init(shape=(1, 64, 64, 3), dtype=jnp.float32, **fields):
    model = DuoFormer(**{**FIELDS, **fields})
    image = jax.ShapeDtypeStruct(shape, dtype)
    return jax.eval_shape(model.init, jax.random.key(0), image)

  for stages in ((2, 3), (3, 3), (4, 3), ()):
    with pytest.raises(ValueError, match=r"stages is .*3, 2, 1, 0, in this"):
      init(stages=stages)
  with pytest.raises(ValueError, match="scale token 'chanel'; did you mean ch"):
    init(scale_token="chanel")
  with pytest.raises(ValueError, match="patch block 'full'; known"):
    init(patch_block="full")
  with pytest.raises(ValueError, match=r"heads is 3, .* width 8"):
    init(heads=3)
  with pytest.raises(ValueError, match=r"image_size is 100; .* multiple of 32"):
    init(image_size=100)
  with pytest.raises(ValueError, match="no model 'resnet51'; did you mean"):
    init(backbone="resnet51")
  with pytest.raises(ValueError, match=r"64 x 48; .* multiples of 32"):
    init(shape=(1, 64, 48, 3))
  with pytest.raises(ValueError, match=r"shape \(64, 64, 3\)"):
    init(shape=(64, 64, 3))
  with pytest.raises(ValueError, match="floating point"):
    init(dtype=jnp.uint8)
