"""A MaxViT small enough for tests that do not need a published one."""

import functools

import jax

from models.maxvit import MaxViT
from tests import parity_helper

FIELDS = {
  "stem_widths": (8, 8),
  "widths": (16, 32),
  "depths": (1, 2),
  "head_dim": 8,
  "window_size": 2,
  "num_classes": 5,
}


def model(**overrides):
  return MaxViT(**{**FIELDS, **overrides})


def images(batch=2, size=16, channels=3, seed=1):
  return jax.random.normal(jax.random.key(seed), (batch, size, size, channels))


def variables(model, channels=3):
  return parity_helper.random_variables(model, 0, channels)


def apply(model, variables, images, **options):
  """Calls `model.apply` in one compilation, unlike its hundred small ones."""
  call = functools.partial(model.apply, **options)
  return jax.jit(call)(variables, images)
