"""SPAN against spandrel's port of the released networks."""

import functools

import jax
import numpy as np
import pytest

from models import pretrained
from models.span import Span
from tests import parity_helper


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
