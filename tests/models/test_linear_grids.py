"""Linear mechanisms in the diffusion transformer: flow attention, LinFusion."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import attention
from models import taps
from models.diffusion_transformer import DiffusionTransformer
from models.linfusion import PROJECTIONS, UPDATES
from tests import parity_helper

FIELDS = {
  "sample_shape": (6, 8),
  "channels": 2,
  "width": 16,
  "depth": 1,
  "heads": 2,
  "num_classes": 0,
  "text_width": 5,
  "conditioning": "cross",
  "implementation": "xla",
}


def create(**fields):
  model = DiffusionTransformer(**{**FIELDS, **fields})
  init = functools.partial(model.init, **model.example_inputs())
  shapes = jax.eval_shape(init, jax.random.key(0))
  return model, parity_helper.randomise(shapes, seed=0)


def inputs(rows=6, columns=8):
  rng = np.random.default_rng(1)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  return draw(2, rows, columns, 2), 500 + 100 * draw(2), draw(2, 4, 5)


def run(model, variables, x, time, text, **options):
  apply = lambda v, x, time, text: model.apply(v, x, time, text=text, **options)
  return jax.jit(apply)(variables, x, time, text)


@pytest.mark.parametrize("conditioning", ["cross", "joint"])
def test_flow_attention_leaves_padded_texts_out(conditioning):
  options = {"clip": 5.0}
  fields = {"attend": "flow", "attend_options": options}
  if conditioning == "cross":
    fields = {"cross_attend": "flow", "cross_attend_options": options, **fields}
  model, variables = create(conditioning=conditioning, **fields)
  x, time, text = inputs()
  short = run(model, variables, x, time, text[:, :2])
  spoilt = text.at[:, 2:].set(jnp.nan)
  length = jnp.array([2, 2])
  padded = run(model, variables, x, time, spoilt, text_length=length)
  np.testing.assert_allclose(padded, short, rtol=0, atol=2e-5)
  other = run(model, variables, x, time, text)
  assert jnp.abs(other - short).max() > 1e-3


def test_flow_attention_is_that_of_the_function():
  """Of its queries and keys, read as the model makes them, at another size."""
  model, variables = create(attend="flow", conditioning="cross")
  x, time, text = inputs(10, 4)
  name = "block_0/attention/attention_weights"
  read = lambda v, x, time, text: taps.read(
    model, v, x, time, text=text, names=[name, "block_0/mixed"]
  )
  _, values = jax.jit(read)(variables, x, time, text)
  weights = values[name]
  assert weights.shape == (2, 2, 10, 10)
  params = variables["params"]["block_0"]["attention"]
  values_of = values["block_0/mixed"]
  # Whatever the values, the rows have the allocation and no more.
  q = jnp.ones((2, 10, 2, 8))
  same = attention.flow_attention(q, q, q)
  assert jnp.abs(weights.sum(-1)).max() < 1.5
  assert values_of.shape == (2, 10, 16)
  assert same.shape == q.shape
  assert set(params) == set(PROJECTIONS)


def test_linfusion_takes_over_the_projections():
  """A trained model's parameters are there, by name and shape, and F beside."""
  model, variables = create()
  names = functools.partial(traverse_util.flatten_dict, sep="/")
  ours, _ = create(mixer="linfusion", mixer_options={"reduction": 4})
  init = functools.partial(ours.init, **ours.example_inputs())
  shapes = names(jax.eval_shape(init, jax.random.key(0))["params"])
  theirs = names(variables["params"])
  assert {n: shapes[n].shape for n in theirs} == {
    n: x.shape for n, x in theirs.items()
  }
  new = set(shapes) - set(theirs)
  assert {name.split("/")[2] for name in new} == set(UPDATES)
  # Without F it runs with the parameters as they are, at any size.
  plain = model.clone(mixer="linfusion", mixer_options={"reduction": 0})
  for size in ((6, 8), (12, 16)):
    out = run(plain, variables, *inputs(*size))
    assert out.shape == (2, *size, 2)
    assert jnp.isfinite(out).all()
