"""SPAN and HAT against spandrel's ports of the released networks."""

import functools

import jax
import numpy as np
import pytest

from models import pretrained
from models.hat import HAT
from models.span import Span
from models.weight_maps import hat as hat_weights
from tests import parity_helper

SMALL_HAT = {
  "width": 12,
  "heads": 2,
  "window_size": 8,
  "halo_size": 2,
  "mlp_width": 24,
  "conv_width": 4,
  "gate_width": 2,
  "upsample_width": 16,
  "conv_scale": 0.3,
  "image_range": 2.0,
}


def _fill(theirs, tensors, left=()):
  """Loads all tensors into a PyTorch module, which may keep those of `left`."""
  torch = parity_helper.import_torch()
  result = theirs.load_state_dict(
    {name: torch.from_numpy(array) for name, array in tensors.items()},
    strict=False,
  )
  assert not result.unexpected_keys
  kept = [n for n in result.missing_keys if not any(part in n for part in left)]
  assert not kept


def _example(model, seed):
  """Returns random variables of a model."""
  side = model.size_multiple
  image = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)
  return parity_helper.randomise(shapes, seed)


def _images(*shape):
  return np.random.default_rng(3).random(shape, np.float32)


def _theirs(module, images):
  """Returns what a PyTorch module makes of images with channels last."""
  torch = parity_helper.import_torch()
  with torch.inference_mode():
    out = module(torch.from_numpy(images).permute(0, 3, 1, 2))
  return out.permute(0, 2, 3, 1).numpy()


# Importing spandrel takes some seconds.
@pytest.mark.slow
@pytest.mark.parity
def test_span():
  _, library = parity_helper.import_spandrel("SPAN")
  model = Span(channels=8, scale=3, blocks=6)
  # Six products in a row blow up what rounding leaves of larger ones.
  variables = jax.tree.map(
    lambda x: x / 2 if x.ndim > 1 else x, _example(model, seed=0)
  )
  theirs = library.SPAN(
    num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=3
  )
  _fill(theirs, pretrained.to_tensors(variables, model), left=["eval_conv"])
  images = _images(2, 9, 13, 3)
  # In training it applies the branches one after the other.
  (out, ours), (expected, gradients) = _outputs_and_gradients(
    model, variables, theirs.train(), images
  )
  assert expected.std() > 1
  np.testing.assert_allclose(out, expected, atol=1e-4)
  for name, gradient in gradients.items():
    error = np.abs(ours[name] - gradient).max()
    assert error < 1e-4 * np.abs(gradient).max(), name
  folded = _theirs(theirs.eval(), images)
  np.testing.assert_allclose(out, folded, atol=1e-4)


# Traces and compiles whole networks.
@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_hat(scale):
  _, library = parity_helper.import_spandrel("HAT")
  # Scales differ behind the blocks alone.
  depths = (2, 1) if scale == 2 else (1,)
  model = HAT(**{**SMALL_HAT, "depths": depths, "scale": scale})
  variables = _example(model, seed=scale)
  theirs = library.HAT(
    embed_dim=12,
    depths=depths,
    num_heads=(2,) * len(depths),
    window_size=8,
    compress_ratio=3,
    squeeze_factor=6,
    conv_scale=0.3,
    img_range=2.0,
    mlp_ratio=2,
    num_feat=16,
    upscale=scale,
    upsampler="pixelshuffle",
    resi_connection="1conv",
    drop_path_rate=0.0,
  ).eval()
  tensors = pretrained.to_tensors(variables, model)
  _fill(theirs, tensors, left=["relative_position_index"])
  images = _images(2, 16, 24, 3)
  if scale > 2:
    out = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(out, _theirs(theirs, images), atol=1e-4)
    return
  (out, ours), (expected, gradients) = _outputs_and_gradients(
    model, variables, theirs, images
  )
  assert expected.std() > 0.1
  np.testing.assert_allclose(out, expected, atol=1e-4)
  for name, gradient in gradients.items():
    error = np.abs(ours[name] - gradient).max()
    assert error <= 2e-4 * np.abs(gradient).max(), name
  # All that a file has, with the indices into its tables.
  stored = {n: t.numpy() for n, t in theirs.state_dict().items()}
  found = hat_weights.fields(stored)
  assert found.items() <= {f: getattr(model, f) for f in found}.items()
  loaded = pretrained.from_tensors(stored, model)
  jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def _outputs_and_gradients(model, variables, theirs, images):
  """Like `parity_helper.logits_and_gradients`, of images."""
  torch = parity_helper.import_torch()
  batch = torch.from_numpy(images).permute(0, 3, 1, 2).requires_grad_()
  expected = theirs(batch).permute(0, 2, 3, 1)
  rng = np.random.default_rng(2)
  direction = rng.standard_normal(tuple(expected.shape), np.float32)
  (expected * torch.from_numpy(direction)).sum().backward()
  theirs_gradients = {
    name: parameter.grad.numpy()
    for name, parameter in theirs.named_parameters()
    if parameter.grad is not None
  }
  theirs_gradients["images"] = batch.grad.permute(0, 2, 3, 1).numpy()

  @jax.jit
  @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
  def gradients(variables, images):
    out = model.apply(variables, images)
    return (out * direction).sum(), out

  (ours, of_images), out = gradients(variables, images)
  ours = pretrained.to_tensors(ours, model)
  ours["images"] = np.asarray(of_images)
  assert ours.keys() == theirs_gradients.keys()
  return (out, ours), (expected.detach().numpy(), theirs_gradients)
