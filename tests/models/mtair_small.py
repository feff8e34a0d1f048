"""MTAIR small enough for tests, with every part that it can have.

Three levels, of which one is reduced and two have no blocks; steps of scans
have ranks above 1; prompts have other sides than images, larger and smaller.
"""

import functools

import jax
import numpy as np

from models import mtair
from tests import parity_helper

SMALL = {
  "width": 20,
  "depths": (1, 0, 0),
  "heads": (1, 2, 4),
  "refinement_depth": 1,
  "expansion": 1.3,
  "scan_levels": (0,),
  "scan_states": 3,
  "scan_chunk": 4,
  "prompt_widths": (4, 6, 8),
  "prompt_sides": (5, 8, 2),
  "prompt_length": 3,
  "prompt_heads": 2,
}
IMAGES = parity_helper.random_images(2, 12)[:, :4]


def model(**fields):
  return mtair.MTAIR(**{**SMALL, **fields})


def shapes(made):
  """Shapes of the variables of a model."""
  init = functools.partial(made.init, **made.example_inputs())
  return jax.eval_shape(init, jax.random.key(0))


@functools.cache
def model_and_variables(**fields):
  made = model(**fields)
  return made, randomised(shapes(made))


@functools.cache
def apply(made):
  return jax.jit(made.apply)


def randomised(tree):
  return parity_helper.randomise(tree, 0)


def count(tree):
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
