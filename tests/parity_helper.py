"""Skips tests where timm is not installed; what comparisons with it share."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from models import pretrained
from tools import torch_imports


def import_torch():
  """Returns torch, or skips the test where it is not installed."""
  return or_skip(torch_imports.import_torch)


def import_timm():
  """Returns (torch, timm), or skips the test where they are not installed."""
  return or_skip(torch_imports.import_timm)


def import_transformers(family):
  """Returns torch and transformers' module of a family, or skips the test."""
  return or_skip(torch_imports.import_transformers, family)


def import_diffusers(name):
  """Returns torch and a module of diffusers, or skips the test."""
  return or_skip(torch_imports.import_diffusers, name)


def import_spandrel(architecture):
  """Returns torch and spandrel's module of an architecture, or skips."""
  return or_skip(torch_imports.import_spandrel, architecture)


def or_skip(load, *args):
  try:
    return load(*args)
  except ImportError as error:
    # The extra `parity` is not for everybody; README says what it is for.
    pytest.skip(str(error))


def fill(module, tensors):
  """Loads {name: array} into a PyTorch module, which must have no other."""
  torch, _ = import_timm()
  tensors = {name: torch.from_numpy(array) for name, array in tensors.items()}
  result = module.load_state_dict(tensors, strict=False)
  assert not result.unexpected_keys
  counters = [k for k in result.missing_keys if k.endswith("batches_tracked")]
  assert counters == result.missing_keys


def timm_logits(module, images):
  """Returns the logits of a PyTorch module for images with channels last."""
  torch, _ = import_timm()
  with torch.inference_mode():
    return module(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()


def logits_and_gradients(model, variables, theirs, images):
  """Runs our model and a PyTorch module with the same weights, both ways.

  The loss is a random sum of the logits.

  Returns:
    Ours and theirs, each a pair of the logits and {name: gradient} of the
    images and of all parameters, under their names and in their layout.
  """
  torch, _ = import_timm()
  batch = torch.from_numpy(images).permute(0, 3, 1, 2).requires_grad_()
  expected = theirs(batch)
  rng = np.random.default_rng(2)
  direction = rng.standard_normal(tuple(expected.shape), np.float32)
  (expected * torch.from_numpy(direction)).sum().backward()
  expected_gradients = {
    name: None if parameter.grad is None else parameter.grad.numpy()
    for name, parameter in theirs.named_parameters()
  }
  expected_gradients["images"] = batch.grad.permute(0, 2, 3, 1).numpy()

  @jax.jit
  def gradients(params, images):
    def loss(params, images):
      logits = model.apply({**variables, "params": params}, images)
      return (logits * direction).sum(), logits

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, images)

  (grads, image_gradient), logits = gradients(variables["params"], images)
  ours = pretrained.to_tensors({"params": grads}, model)
  ours["images"] = np.asarray(image_gradient)
  assert ours.keys() == expected_gradients.keys()
  expected = expected.detach().numpy()
  return (np.asarray(logits), ours), (expected, expected_gradients)


def random_images(batch, size, seed=0):
  rng = np.random.default_rng(seed)
  return rng.standard_normal((batch, size, size, 3), np.float32)


def random_variables(model, seed, input_channels=3):
  """Randomises every parameter and statistic of a model, numpy only.

  Kernels keep the scale of their inputs so that deep models stay sane; what is
  1 or 0 in a fresh model is moved away from it.
  """
  size = model.size_multiple
  image = jax.ShapeDtypeStruct((1, size, size, input_channels), np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)
  return randomise(shapes, seed)


def randomise(shapes, seed):
  """Draws values for a tree of shapes of variables, by their names."""
  rng = np.random.default_rng(seed)
  flat = traverse_util.flatten_dict(shapes)
  values = {path: _draw(rng, path, flat[path].shape) for path in sorted(flat)}
  return traverse_util.unflatten_dict(values)


def _draw(rng, path, shape):
  noise = rng.standard_normal(shape)
  match path[-1]:
    case "scale":
      value = 1 + 0.2 * noise
    case "var":
      value = np.exp(0.5 * noise)
    case "relative_bias_table":
      value = 0.5 * noise
    case "kernel":
      # The last axis alone is summed over by none of the kernels but "qkv".
      outputs = shape[1:] if path[-2] == "qkv" else shape[-1:]
      value = noise * np.sqrt(np.prod(outputs) / np.prod(shape))
    case _:
      value = 0.2 * noise
  return value.astype(np.float32)
