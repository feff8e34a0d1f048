"""A LINA small enough for tests."""

import functools

import jax

from models import lina
from models.lina_attention import GATE_LEAVES
from tests import parity_helper

SMALL = {
  "width": 16,
  "heads": 2,
  "connector_layers": 1,
  "encoder_layers": 1,
  "decoder_layers": 1,
  "flow_layers": 1,
  "queries": 4,
  "grid": (3, 4),
  "token_dim": 3,
  "num_classes": 5,
  "implementation": "xla",
}
PLACES = 12


def shapes(model):
  """Shapes of the variables of a model."""
  init = functools.partial(model.init, **model.example_inputs())
  return jax.eval_shape(init, jax.random.key(0))


def model(**fields):
  return lina.Lina(**{**SMALL, **fields})


@functools.cache
def model_and_variables(**fields):
  made = model(**fields)
  variables = parity_helper.randomise(shapes(made), 0)
  move = lambda path, x: x + (path[-1].key in GATE_LEAVES)
  return made, jax.tree_util.tree_map_with_path(move, variables)
