"""What a cache keeps for sparse steps of decoding, and what a step reads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from models import decoding
from tests.models import language

SPARSE = {"block": 2, "blocks": 1, "sink": 1, "local": 1}
PATTERN = {
  "depth": 2,
  "mixers": ("full", "full/sparse"),
  "mixer_options": {"full/sparse": {"sparse_decoding": SPARSE}},
}


def _expected_sums(layer, written):
  """Sums over the blocks of the last segment of each row, from the cache."""
  keys, places, segments = (
    np.asarray(layer[name]) for name in ("keys", "positions", "segments")
  )
  sums = np.zeros(layer["block_sums"].shape, np.float32)
  for row, slot in np.ndindex(len(keys), written):
    block = (places[row, slot] - SPARSE["sink"]) // SPARSE["block"]
    own = segments[row, slot] == segments[row, written - 1]
    if own and 0 <= block < sums.shape[2]:
      sums[row, :, block] += keys[row, :, slot]
  return sums


def test_sums_are_those_of_the_blocks_of_the_last_segment():
  """Rows that are padded or have several documents, by prefills and steps."""
  model = language.model(**PATTERN)
  variables, arrays = language.variables(model), language.packed()
  call = jax.jit(functools.partial(model.apply, variables))
  cache, start = model.init_cache(3, language.LENGTH), 0
  for piece in (4, 2, 1, 3, 1):
    part = [jnp.asarray(x[:, start : start + piece]) for x in arrays]
    _, cache = call(part[0], positions=part[1], segments=part[2], cache=cache)
    start += piece
    layer = cache["layer_1"]
    np.testing.assert_allclose(
      layer["block_sums"], _expected_sums(layer, start), atol=1e-5
    )
  assert "block_sums" not in cache["layer_0"]


def test_a_row_does_not_depend_on_the_padding_beside_it():
  model = language.model(**PATTERN)
  variables = language.variables(model)
  prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11, 12], [3]]
  together = decoding.generate(model, variables, prompts, max_tokens=12)
  for prompt, expected in zip(prompts, together, strict=True):
    (alone,) = decoding.generate(model, variables, [prompt], max_tokens=12)
    assert alone == expected
  dense = model.clone(mixer_options={}, mixers=("full",))
  assert decoding.generate(dense, variables, prompts, max_tokens=12) != together


def _equations(jaxpr):
  for equation in jaxpr.eqns:
    inner = list(core.jaxprs_in_params(equation.params))
    if not inner:
      yield equation
    for part in inner:
      yield from _equations(part)


def test_a_step_multiplies_with_means_and_chosen_blocks_alone():
  slots = 1000
  model = language.model(
    mixers=("full/sparse",), mixer_options=PATTERN["mixer_options"]
  )
  variables = language.variables(model)
  cache = model.init_cache(1, slots)
  step = jnp.zeros((1, 1), jnp.int32)
  program = jax.make_jaxpr(functools.partial(model.apply, variables))(
    step, positions=step, cache=cache
  )
  products = [
    {n for x in e.invars for n in x.aval.shape}
    for e in _equations(program.jaxpr)
    if e.primitive.name == "dot_general"
  ]
  assert not any(slots in sizes for sizes in products)
  # A half of what is behind the first token.
  assert sum(499 in sizes for sizes in products) == 1


def test_labels_tell_layers_of_a_mixer_apart():
  model = language.model(**PATTERN)
  variables = language.variables(model)
  # The parallel form is dense, whatever the steps are.
  dense = model.clone(mixer_options={}, mixers=("full",))
  tokens = language.tokens()
  np.testing.assert_array_equal(
    model.apply(variables, tokens), dense.apply(variables, tokens)
  )
