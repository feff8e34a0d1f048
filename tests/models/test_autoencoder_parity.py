"""The autoencoder against diffusers' AutoencoderKL, values and gradients."""

import jax
import numpy as np
import pytest
from flax import traverse_util

import models
from models import pretrained
from models.weight_maps import autoencoder as weight_names
from tests import parity_helper
from tests.models import autoencoder_small

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", autouse=True)
def diffusers():
  """Imported once, and not as part of a test."""
  return parity_helper.import_diffusers("models.autoencoders.autoencoder_kl")


def create(model, diffusers):
  """Returns diffusers' module with the fields of ours, without its weights."""
  levels = range(len(model.multipliers))
  down = ["", "Attn"], "DownEncoderBlock2D"
  up = ["", "Attn"], "UpDecoderBlock2D"
  kind = lambda names, has: names[0][has] + names[1]
  return diffusers[1].AutoencoderKL(
    in_channels=model.channels,
    out_channels=model.channels,
    down_block_types=[kind(down, i in model.encoder_attention) for i in levels],
    up_block_types=[
      kind(up, i in model.decoder_attention) for i in reversed(levels)
    ],
    block_out_channels=[model.width * m for m in model.multipliers],
    layers_per_block=model.blocks,
    latent_channels=model.latent_channels,
    norm_num_groups=model.groups,
    use_quant_conv=model.quant_convolutions,
    use_post_quant_conv=model.quant_convolutions,
  )


def channels_first(torch, x):
  return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def channels_last(tensor):
  return np.moveaxis(tensor.detach().numpy(), 1, -1)


@pytest.mark.parametrize("fields", [{}, {"quant_convolutions": False}])
def test_values_and_gradients(fields, diffusers):
  torch, _ = diffusers
  model, variables = autoencoder_small.model_and_variables(**fields)
  theirs = create(model, diffusers)
  weight_map = weight_names.weight_map(model, "diffusers")
  tensors = pretrained.to_tensors(variables, model, weight_map=weight_map)
  theirs.load_state_dict({k: torch.from_numpy(x) for k, x in tensors.items()})
  rng = np.random.default_rng(1)
  shapes = ((2, 6, 10, 2), (2, 3, 5, 3), (2, 3, 5, 6), (2, 6, 10, 2))
  images, latents, *directions = (
    rng.standard_normal(shape, np.float32) for shape in shapes
  )

  inputs = [
    channels_first(torch, x).requires_grad_() for x in (images, latents)
  ]
  posterior = theirs.encode(inputs[0]).latent_dist
  moments = torch.cat([posterior.mean, posterior.logvar], 1)
  expected = moments, theirs.decode(inputs[1]).sample
  sum(
    (out * channels_first(torch, direction)).sum()
    for out, direction in zip(expected, directions, strict=True)
  ).backward()

  def loss(params, images, latents):
    apply = lambda x, method: model.apply({"params": params}, x, method=method)
    outputs = apply(images, "encode"), apply(latents, "decode")
    sums = [(x * y).sum() for x, y in zip(outputs, directions, strict=True)]
    return sum(sums), outputs

  gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
  (grads, *of_inputs), outputs = gradient(variables["params"], images, latents)

  def near(ours, theirs):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * scale, rtol=1e-4)

  for ours, tensor in zip(outputs, expected, strict=True):
    near(ours, channels_last(tensor))
  for ours, tensor in zip(of_inputs, inputs, strict=True):
    near(ours, channels_last(tensor.grad))
  ours = pretrained.to_tensors({"params": grads}, model, weight_map=weight_map)
  named = dict(theirs.named_parameters())
  assert ours.keys() == named.keys()
  # A bias before a group norm of one channel has a gradient of nothing.
  largest = max(float(p.grad.abs().max()) for p in named.values())
  for name, gradient in ours.items():
    np.testing.assert_allclose(
      gradient, named[name].grad, rtol=1e-3, atol=1e-5 * largest, err_msg=name
    )


def test_names_of_sdxl(diffusers):
  """All names and shapes, and how diffusers itself reads latent diffusion's."""
  torch, _ = diffusers
  _, single_file = parity_helper.import_diffusers("loaders.single_file_utils")
  model = models.create("autoencoder_sdxl")
  with torch.device("meta"):
    theirs = create(model, diffusers)
  shapes = autoencoder_small.shapes(model)["params"]
  of_naming = {}
  for naming in ("diffusers", "latent_diffusion"):
    weight_map = weight_names.weight_map(model, naming)
    of_naming[naming] = {}
    for path, leaf in traverse_util.flatten_dict(shapes).items():
      name, layout = weight_map(path)
      tensor = torch.empty(layout.whole(leaf.shape), device="meta")
      of_naming[naming][name] = tensor
  read = single_file.convert_ldm_vae_checkpoint(
    of_naming["latent_diffusion"], theirs.config
  )
  expected = {
    name: tensor.shape for name, tensor in theirs.state_dict().items()
  }
  assert {n: t.shape for n, t in of_naming["diffusers"].items()} == expected
  assert {n: t.shape for n, t in read.items()} == expected
