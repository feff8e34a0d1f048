"""The KL autoencoder: totals, names of weights, moments, bad input."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import models
from models import autoencoder, gaussian_latents, pretrained, taps
from models.weight_maps import autoencoder as weight_names
from tests.models import autoencoder_small

# The first two counted from MAR's models/vae.py and diffusers' AutoencoderKL.
COUNTS = {
  "autoencoder_kl16": 66_456_019,
  "autoencoder_sdxl": 83_653_863,
  "autoencoder_digits": 653_695,
}
SMALL = autoencoder_small.SMALL
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(-1, 1, (2, 6, 10, 2)).astype(np.float32)
LATENTS = RNG.standard_normal((2, 3, 5, 3)).astype(np.float32)


@pytest.mark.parametrize("name", COUNTS)
def test_totals(name):
  assert set(COUNTS) == set(autoencoder.VARIANTS)
  leaves = jax.tree.leaves(autoencoder_small.shapes(models.create(name)))
  assert sum(math.prod(leaf.shape) for leaf in leaves) == COUNTS[name]


def test_names_and_shapes_of_mar():
  model = models.create("autoencoder_kl16")
  of_name = weight_names.weight_map(model)
  flat = traverse_util.flatten_dict(autoencoder_small.shapes(model)["params"])
  found = {}
  for path, leaf in flat.items():
    name, layout = of_name(path)
    found[name] = layout.whole(leaf.shape)
  assert found == _names_of_mar()


def _names_of_mar():
  """Shapes by names, from the loops of MAR's models/vae.py."""
  found = {}

  def convolution(name, into, out, side=3):
    found[f"{name}.weight"] = (out, into, side, side)
    found[f"{name}.bias"] = (out,)

  def norm(name, width):
    found[f"{name}.weight"] = found[f"{name}.bias"] = (width,)

  def block(name, into, out):
    norm(f"{name}.norm1", into)
    convolution(f"{name}.conv1", into, out)
    norm(f"{name}.norm2", out)
    convolution(f"{name}.conv2", out, out)
    if into != out:
      convolution(f"{name}.nin_shortcut", into, out, 1)

  def attention(name, width):
    norm(f"{name}.norm", width)
    for part in ("q", "k", "v", "proj_out"):
      convolution(f"{name}.{part}", width, width, 1)

  widths = [128, 128, 256, 256, 512]
  for side, into, out in (("encoder", 3, 32), ("decoder", 16, 3)):
    encodes = side == "encoder"
    width = widths[0] if encodes else widths[-1]
    convolution(f"{side}.conv_in", into, width)
    for level in range(5) if encodes else reversed(range(5)):
      prefix = f"{side}.{'down' if encodes else 'up'}.{level}"
      for i in range(2 if encodes else 3):
        block(f"{prefix}.block.{i}", width, widths[level])
        width = widths[level]
        if encodes and level == 4:
          attention(f"{prefix}.attn.{i}", width)
      if encodes and level < 4:
        convolution(f"{prefix}.downsample.conv", width, width)
      if not encodes and level:
        convolution(f"{prefix}.upsample.conv", width, width)
    for i in (1, 2):
      block(f"{side}.mid.block_{i}", 512, 512)
    attention(f"{side}.mid.attn_1", 512)
    norm(f"{side}.norm_out", width)
    convolution(f"{side}.conv_out", width, out)
  convolution("quant_conv", 32, 32, 1)
  convolution("post_quant_conv", 16, 16, 1)
  return found


@pytest.mark.parametrize("naming", weight_names.NAMINGS)
def test_weights_there_and_back(naming):
  model, variables = autoencoder_small.model_and_variables()
  weight_map = weight_names.weight_map(model, naming)
  tensors = pretrained.to_tensors(variables, model, weight_map=weight_map)
  assert weight_names.recognise(tensors) == naming
  back = pretrained.from_tensors(tensors, model)
  jax.tree.map(np.testing.assert_array_equal, back, variables)
  name = next(n for n in tensors if n.endswith("norm_out.weight"))
  tensors["loss.logvar"] = tensors.pop(name)
  with pytest.raises(ValueError, match=rf"(?s)missing: {name}.*surplus: loss"):
    pretrained.from_tensors(tensors, model)


def test_a_file(tmp_path):
  safetensors = pytest.importorskip("safetensors.numpy")
  model, variables = autoencoder_small.model_and_variables()
  path = tmp_path / "kl16.safetensors"
  safetensors.save_file(pretrained.to_tensors(variables, model), path)
  loaded = pretrained.load(path, model)
  jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_bfloat16_with_remat_is_near():
  few = {"multipliers": (1,), "encoder_attention": (0,)}
  model, variables = autoencoder_small.model_and_variables(**few)
  direction = RNG.standard_normal(IMAGES.shape, np.float32)

  def outputs(model):
    loss = lambda variables: (model.apply(variables, IMAGES) * direction).sum()
    leaves = jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(variables))
    return np.concatenate([np.ravel(leaf) for leaf in leaves])

  low = outputs(model.clone(dtype="bfloat16", remat=True))
  assert low.dtype == np.float32
  assert np.corrcoef(low, outputs(model))[0, 1] > 0.995


def test_moments_are_clipped_and_float32():
  model, variables = autoencoder_small.model_and_variables(dtype="bfloat16")
  bias = jnp.array([5.0, 0, 0, 1e3, -1e3, 0])
  params = {**variables["params"]}
  params["quant"] = {**params["quant"], "bias": bias}
  encode = jax.jit(lambda *args: model.apply(*args, method="encode"))
  moments = encode({"params": params}, IMAGES)
  assert (moments.shape, moments.dtype) == ((2, 3, 5, 6), jnp.float32)
  mean, log_variance = gaussian_latents.mean_and_log_variance(moments)
  assert (log_variance[..., 0] == 20).all()
  assert (log_variance[..., 1] == -30).all()
  assert mean.shape == log_variance.shape == (2, 3, 5, 3)
  assert 0 < mean[..., 0].mean() < 10


def test_gaussians():
  mean = jnp.array([[0.0, 1, -2, 0], [0, 0, 0, 3]])
  log_variance = jnp.array([[0.0, 0, 0, 2], [-30, 0, 0, 0]])
  moments = jnp.concatenate([mean, log_variance], -1)
  by_hand = [0.5 + 2 + (np.exp(2) - 3) / 2, 29 / 2 + 9 / 2]
  np.testing.assert_allclose(gaussian_latents.kl(moments), by_hand, rtol=1e-6)
  many = jnp.broadcast_to(moments[None], (20_000, *moments.shape))
  drawn = gaussian_latents.sample(many, jax.random.key(0))
  np.testing.assert_allclose(drawn.mean(0), mean, atol=0.07)
  np.testing.assert_allclose(
    drawn.std(0), np.exp(log_variance / 2), rtol=0.03, atol=1e-5
  )
  with pytest.raises(ValueError, match=r"\(2, 3\); the last axis must be even"):
    gaussian_latents.sample(jnp.zeros((2, 3)), jax.random.key(0))


def test_scale():
  model = autoencoder_small.model(scaling_factor=0.5, shift=3.0)
  np.testing.assert_allclose(model.scale(jnp.array([3.0, 5.0])), [0, 1])
  np.testing.assert_allclose(model.unscale(jnp.array([0.0, 1.0])), [3, 5])


def test_attention_can_be_read_and_replaced():
  model, variables = autoencoder_small.model_and_variables()
  name = "encoder/level_1/attention_0/attention_weights"
  read_all = lambda variables: taps.read(model, variables, IMAGES, names=["*"])
  whole, read = jax.jit(read_all)(variables)
  assert set(read) == {
    name,
    *(f"{side}/middle_attention/attention_weights" for side in (
      "encoder", "decoder"
    )),
    *(f"decoder/level_0/attention_{i}/attention_weights" for i in range(2)),
  }  # fmt: skip
  np.testing.assert_allclose(read[name].sum(-1), 1, rtol=1e-5)
  plain = jax.jit(model.apply)(variables, IMAGES)
  np.testing.assert_allclose(whole, plain, rtol=1e-4, atol=1e-4)
  replace = lambda variables, maps: taps.read(
    model, variables, IMAGES, edit=maps
  )[0]
  replaced = jax.jit(replace)(variables, {name: read[name] * 0})
  assert np.abs(replaced - whole).max() > 1e-3


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"width": 0}, "width is 0; it must be 1 or more"),
    ({"multipliers": ()}, "multipliers are"),
    ({"encoder_attention": (2,)}, r"encoder_attention is \(2,\).*0 to 1"),
    ({"decoder_attention": (-1,)}, r"decoder_attention is \(-1,\).*0 to 1"),
    ({"groups": 3}, "groups is 3; it must divide width=8"),
    ({"scaling_factor": 0.0}, "scaling_factor is 0.0"),
  ],
)
def test_fields_that_do_not_fit(fields, message):
  with pytest.raises(ValueError, match=message):
    autoencoder_small.shapes(autoencoder_small.model(**fields))


@pytest.mark.parametrize(
  ("method", "x", "message"),
  [
    ("encode", IMAGES[:, :5], r"\(2, 5, 10, 2\).*halves 1 times.*of 2"),
    ("encode", IMAGES[..., :1], "images have .* needs 2 channels"),
    ("encode", IMAGES.astype(np.uint8), "x is uint8"),
    ("decode", LATENTS[..., :2], "latents have .* needs 3 channels"),
    ("decode", LATENTS[0], "x is float32 of shape"),
  ],
)
def test_arrays_that_do_not_fit(method, x, message):
  model, variables = autoencoder_small.model_and_variables()
  with pytest.raises(ValueError, match=message):
    model.apply(variables, x, method=method)
