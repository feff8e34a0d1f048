"""How tokens of a diffusion transformer are mixed: by name, state, options."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import attends, grid_mixers, taps
from models.diffusion_transformer import DiffusionTransformer
from tests.models.diffusion_small import (
  CROSS,
  SMALL,
  inputs_of,
  randomised,
)


def counting(module, q, k, v, layout, *, step=1):
  """An attend with a state: it weighs values by how often it was called."""
  count = module.variable(attends.STATE, "count", lambda: jnp.zeros(()))
  if module.is_mutable_collection(attends.STATE):
    count.value += step
  return v * count.value.astype(v.dtype)


def test_an_attend_has_a_state_options_and_layers(monkeypatch):
  monkeypatch.setitem(attends.ATTENDS, "counting", counting)
  model = DiffusionTransformer(
    **SMALL,
    attend="counting",
    attend_options={"step": 2},
    dense_layers=1,
    remat=True,
  )
  x, time, label = inputs_of(model)
  variables = model.init(jax.random.key(0), x, time, label)
  state = {attends.STATE: variables.pop(attends.STATE)}
  # The first layer stays dense.
  assert list(state[attends.STATE]) == ["block_1"]
  step = jax.jit(functools.partial(model.apply, mutable=[attends.STATE]))
  for n in (1, 2):
    _, state = step({**variables, **state}, x, time, label)
    count = state[attends.STATE]["block_1"]["attention"]["count"]
    # The first call was that of `init`.
    assert count == 2 * n + 2
  names = taps.list_names(model, {**variables, **state}, x, time, label)
  assert "block_0/attention/attention_weights" in names
  assert "block_1/attention/attention_weights" not in names


def test_a_mixer_by_name(monkeypatch):
  class Mean(nn.Module):
    heads: int
    power: int = 1

    @nn.compact
    def __call__(self, x, layout):
      assert layout == attends.Layout((3, 4), (3, 4))
      return jnp.broadcast_to((x**self.power).mean(1, keepdims=True), x.shape)

  monkeypatch.setitem(grid_mixers.GRID_MIXERS, "mean", Mean)
  model = DiffusionTransformer(
    **SMALL, mixer="mean", mixer_options={"power": 2}
  )
  out = jax.eval_shape(
    functools.partial(model.init_with_output, **model.example_inputs()),
    jax.random.key(0),
  )[0]
  assert out.shape == (1, 6, 8, 3)
  with pytest.raises(ValueError, match="no option of mixer='mean' 'powr'; did"):
    grid_mixers.check("mean", {"powr": 2})
  with pytest.raises(ValueError, match="mixer is 'mean', which takes no cond"):
    grid_mixers.check("mean", {}, joint=True)


def test_the_entropy_scale():
  model = DiffusionTransformer(**CROSS)
  variables = randomised(model)
  options = {"attend_options": {"scale_by": "entropy"}}
  scaled = model.clone(**options, cross_attend_options={"scale_by": "entropy"})
  inputs = inputs_of(model)
  same = model.apply(variables, *inputs)
  np.testing.assert_array_equal(same, scaled.apply(variables, *inputs))
  # 12 x 8 is 24 tokens, where training had 12.
  inputs = inputs_of(model, shape=(12, 8))
  name = "block_0/attention/attention_weights"
  name_of_cross = "block_0/cross_attention/attention_weights"
  first, second = (
    taps.read(m, variables, *inputs, names=["block_0/*attention*"])[1]
    for m in (model, scaled)
  )
  factor = math.sqrt(math.log(24) / math.log(12))
  spread = lambda x: np.log(x) - np.log(x).mean(-1, keepdims=True)
  np.testing.assert_allclose(
    spread(second[name]), factor * spread(first[name]), atol=1e-4
  )
  log = spread(second[name_of_cross])
  assert log.shape == (2, 2, 24, 3)


def test_padding_needs_an_attend_that_takes_it(monkeypatch):
  monkeypatch.setitem(attends.ATTENDS, "counting", counting)
  fields = {**CROSS, "num_classes": 0, "text_width": 5}
  model = DiffusionTransformer(**fields, cross_attend="counting")
  x, time, _ = inputs_of(model)
  with pytest.raises(ValueError, match="cross_attend is 'counting', which"):
    model.apply(
      {"params": {}},
      x,
      time,
      text=jnp.zeros((2, 3, 5)),
      text_length=jnp.ones((2,), jnp.int32),
    )
