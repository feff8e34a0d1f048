"""Counts to the integer, and what the fields of HaloNet do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import halonet
from models.halo_mixer import HaloAttention
from tests import parity_helper
from tests.models import counting, small

# Parameters and batch statistics with 1000 classes. Those of the paper's H0 to
# H7 round to what was published, those of timm's are timm's.
COUNTS: dict[str, tuple[int, int]] = {
  "halonet_h0": (5_502_248, 20_608),
  "halonet_h1": (8_101_352, 29_952),
  "halonet_h2": (9_405_608, 34_560),
  "halonet_h3": (11_842_792, 41_344),
  "halonet_h4": (19_103_464, 60_288),
  "halonet_h5": (30_718_952, 95_040),
  "halonet_h6": (43_458_280, 119_936),
  "halonet_h7": (67_434_728, 160_000),
  # Not published: the closed form below with convolutions.
  "halonet_h7_conv1": (67_338_440, 158_848),
  "halonet_h7_conv2": (66_964_520, 156_544),
  "halonet_h7_conv3": (54_093_480, 116_608),
  "halonet_h1_timm": (8_100_056, 29_952),
  "halonet26t": (12_480_288, 30_960),
  "sehalonet33ts": (13_691_712, 35_056),
  "halonet50ts": (22_733_280, 53_232),
  "eca_halonext26ts": (10_756_885, 30_960),
  "haloregnetz_b": (11_680_072, 49_792),
  "halo2botnet50ts_256": (22_635_360, 53_232),
}
# Without normalisation after attention.
WITHOUT_NORM = {
  "halonet_h0": 5_494_440,
  "halonet_h1": 8_092_008,
  "halonet_h3": 11_832_424,
  "halonet_h4": 19_093_096,
  "halonet_h5": 30_678_952,
  "halonet_h6": 43_408_744,
  "halonet_h7": 67_364_584,
}
FIELDS = {
  "layout": (("conv", "halo"), ("halo",)),
  "widths": (16, 24),
  "bottleneck_widths": (8, 16),
  "strides": (1, 2),
  "heads": (2, 4),
  "block_size": 4,
  "halo_size": 1,
  "stem_width": 8,
  "num_classes": 5,
}


def _model(**fields):
  return halonet.HaloNet(**{**FIELDS, **fields})


def _closed_form(name):
  """Trainable parameters of a paper's model, written from its table."""
  b, h, rv, rb, third, df, _ = halonet._PAPER[name[8:10]]
  convolutions = int(name[-1]) if "conv" in name else 0
  win, count, c_in = b + 2 * h, 3 * 49 * 64 + 2 * 64, 64
  for stage, depth in enumerate((3, 3, third, 3)):
    w, heads = 64 * 2**stage, (4, 8, 8, 8)[stage]
    for i in range(depth):
      v, out = int(rv * w), int(rb * w)
      count += c_in * w + 2 * w
      if stage < convolutions:
        v = w
        count += 9 * w * w + 2 * w
      else:
        count += w * (2 * w + v) + 2 * (2 * win - 1) * (w // heads) + 2 * v
      count += v * out + 2 * out
      if c_in != out or (stage and not i):
        count += c_in * out + 2 * out
      c_in = out
  if df:
    count += c_in * df + 2 * df
  return count + (df or c_in) * 1000 + 1000


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
  model = models.create(name)
  size = models.image_size(name)
  # One is counted with all its blocks, and shows that the others can be
  # counted by kind.
  count = counting.count_by_kind
  if name == "haloregnetz_b":
    count = counting.count
  assert count(model, size) == COUNTS[name]
  if name in WITHOUT_NORM:
    bare = model.clone(norm_after_attention=False)
    assert count(bare, size)[0] == WITHOUT_NORM[name]


def test_closed_form():
  for name in COUNTS:
    if name.startswith("halonet_h") and not name.endswith("timm"):
      assert _closed_form(name) == COUNTS[name][0], name


def test_no_variant_is_uncounted():
  assert set(COUNTS) == set(halonet.VARIANTS)


def test_any_size_and_the_pyramid():
  model = _model()
  variables = small.variables(model)
  images = small.images(batch=1, size=45)
  # What the whole call makes first.
  features = functools.partial(model.apply, method="features")
  maps = jax.eval_shape(features, variables, images)
  assert [m.shape for m in maps] == [
    (1, 23, 23, 8),
    (1, 12, 12, 16),
    (1, 6, 6, 24),
  ]
  assert jnp.isfinite(small.apply(model, variables, images)).all()


def test_padding_is_half_before_and_half_after():
  """Of an image that blocks do not tile, as of one padded by hand."""
  mixer = HaloAttention(heads=2, block_size=4, halo_size=1)
  x = small.images(batch=1, size=6, channels=8)
  variables = parity_helper.randomise(
    jax.eval_shape(lambda: mixer.init(jax.random.key(0), x)), 0
  )
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  expected = small.apply(mixer, variables, padded)[:, 1:7, 1:7]
  np.testing.assert_allclose(
    small.apply(mixer, variables, x), expected, rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize(("block_size", "size"), [(4, 6), (4, 8), (3, 6)])
def test_strided_attention(block_size, size):
  """Queries are every second token; or all, averaged, of odd blocks."""
  fields = dict(heads=2, block_size=block_size, halo_size=1)
  mixer = HaloAttention(stride=2, **fields)
  x = small.images(batch=1, size=size, channels=8)
  variables = parity_helper.randomise(
    jax.eval_shape(lambda: mixer.init(jax.random.key(0), x)), 0
  )
  out = small.apply(mixer, variables, x)
  assert out.shape == (1, size // 2, size // 2, 8)
  if block_size == 3:
    every = small.apply(HaloAttention(**fields), variables, x)
    expected = every.reshape(1, 3, 2, 3, 2, 8).mean((2, 4))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_hybrids_switch_stages():
  conv = _model(layout=(("conv", "conv"), ("halo",)))
  shapes = jax.eval_shape(
    conv.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
  )["params"]
  assert "conv_mid" in shapes["stage_0"]["block_1"]
  assert "attention" in shapes["stage_1"]["block_0"]
  published = models.create("halonet_h7_conv2")
  assert [set(blocks) for blocks in published.layout] == [
    {"conv"},
    {"conv"},
    {"halo"},
    {"halo"},
  ]


# Traces or compiles whole networks.
@pytest.mark.slow
def test_remat_bfloat16_and_many_heads():
  model = _model()
  images = small.images(batch=2, size=32)
  variables = small.variables(model)

  def gradient(model):
    def loss(params):
      logits = model.apply({**variables, "params": params}, images)
      return (logits**2).sum()

    return jax.jit(jax.grad(loss))(variables["params"])

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    gradient(model),
    gradient(model.clone(remat=True)),
  )
  logits = small.apply(model, variables, images)
  half = small.apply(model.clone(dtype=jnp.bfloat16), variables, images)
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, logits, atol=0.1 * float(logits.std()) + 0.1)


def test_headless():
  model = _model(num_classes=0, final_width=12)
  variables = small.variables(model)
  assert "head" not in variables["params"]
  pooled = small.apply(model, variables, small.images(batch=1, size=32))
  assert pooled.shape == (1, 12)


def test_maxvit_takes_the_mixer():
  model = small.model(layout=("mbconv", "halo_attention"))
  variables = small.variables(model)
  attention = variables["params"]["stage_0"]["block_0"]["halo_attention"]
  assert set(attention["attention"]) == {"q", "kv", "height_rel", "width_rel"}
  assert small.apply(model, variables, small.images()).shape == (2, 5)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"stem": "7x7"}, "stem is '7x7'; it must be one of"),
    ({"layout": (("conv",), ("lambda",))}, "layout has 'lambda'"),
    ({"heads": (2,)}, r"heads is \(2,\); the 2 stages"),
    ({"heads": (3, 4)}, "heads=3 .* do not divide the width 8"),
    ({"layout": (("global",), ("halo",))}, "global attention, whose positions"),
  ],
)
def test_what_does_not_fit(fields, message):
  model = _model(**fields)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
