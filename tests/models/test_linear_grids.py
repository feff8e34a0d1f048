"""Linear mechanisms in the diffusion transformer: flow attention, LinFusion."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import attention
from models import attends
from models.diffusion_transformer import DiffusionTransformer
from models.linfusion import UPDATES
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


def test_flow_attention_leaves_padded_texts_out():
  options = {"clip": 5.0}
  model, variables = create(
    attend="flow",
    attend_options=options,
    cross_attend="flow",
    cross_attend_options=options,
  )
  x, time, text = inputs()
  short = run(model, variables, x, time, text[:, :2])
  spoilt = text.at[:, 2:].set(jnp.nan)
  padded = run(model, variables, x, time, spoilt, text_length=jnp.array([2, 2]))
  np.testing.assert_allclose(padded, short, rtol=0, atol=2e-5)


class Attend(nn.Module):
  """What an attend is a part of."""

  implementation: str = "xla"

  @nn.compact
  def __call__(self, q, k, v, **options):
    return attends.find("flow")(self, q, k, v, **options)


@pytest.mark.parametrize("joint", [False, True])
def test_flow_attention_is_that_of_the_function(joint):
  """With condition tokens as keys, or among the queries as well."""
  layout = attends.Layout((2, 3), (2, 3), text=4)
  rng = np.random.default_rng(0)
  sizes = (10, 10, 10) if joint else (6, 4, 4)
  q, k, v = (
    jnp.asarray(rng.standard_normal((1, n, 2, 4)), jnp.float32) for n in sizes
  )
  real = sizes[1] - 2
  options = {"clip": 5.0, "competition": "none", "outer_epsilon": 1e-2}

  @jax.jit
  def run(q, k, v):
    return Attend().apply(
      {}, q, k, v, layout=layout, lengths=real_of, **options
    )

  real_of = jnp.array([real])
  out = run(q, k.at[:, real:].set(jnp.nan), v)
  queries = real if joint else sizes[0]
  expected = attention.flow_attention(
    q[:, :queries], k[:, :real], v[:, :real], **options
  )
  np.testing.assert_allclose(out[:, :queries], expected, rtol=0, atol=1e-5)
  name = "attention_weights"
  read = functools.partial(
    Attend().apply, {}, layout=layout, mutable=["intermediates"], **options
  )
  whole, state = jax.jit(read)(q, k, v)
  weights = state["intermediates"][name]
  by_map = jnp.einsum("bhij,bjhd->bihd", weights, v)
  np.testing.assert_allclose(whole, by_map, rtol=0, atol=1e-5)
  direct = attention.flow_attention(q, k, v, **options)
  np.testing.assert_allclose(whole, direct, rtol=0, atol=1e-5)


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
  plain = model.clone(mixer="linfusion", mixer_options={"update": "none"})
  for size in ((6, 8), (12, 16)):
    out = run(plain, variables, *inputs(*size))
    assert out.shape == (2, *size, 2)
    assert jnp.isfinite(out).all()
