"""Sampling equals a plain loop with the same draws, and exact flows."""

import functools
import itertools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import masked_sampling
from models.masked_sampling import sample
from tests.models import lina_small

# 12 tokens in 3 steps.
COUNTS = [2, 4, 6]
TEXT = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32)


def model_and_variables(**fields):
  model, variables = lina_small.model_and_variables(**fields)
  return model, jax.tree.map(jnp.asarray, variables)


def draws(model, seed, row):
  """The order of places and the noise of a row."""
  key = jax.random.fold_in(jax.random.key(seed), row)
  order, noise = jax.random.split(key)
  shape = math.prod(model.grid), model.token_dim
  return (
    np.asarray(jax.random.permutation(order, shape[0])),
    np.asarray(jax.random.normal(noise, shape)),
  )


@functools.partial(jax.jit, static_argnames=("model", "method"))
def apply_method(model, variables, *args, method):
  # Piece by piece it takes twice as long.
  return model.apply(variables, *args, method=method)


def plain(model, variables, given, none, draws, weights, flow_steps):
  """One image: no padding, no batch, a branch of guidance at a time.

  `given` and `none` are arguments of `condition`, of one row.
  """
  apply = lambda method, *args: np.asarray(
    apply_method(model, variables, *args, method=method), np.float64
  )
  order, noise = draws
  tokens = np.full(noise.shape, np.nan, np.float32)
  conditions = [apply("condition", *args) for args in (given, none)]
  start = 0
  for count, weight in zip(COUNTS, weights, strict=True):
    z, z_none = (
      apply("encode_decode", jnp.float32(c), tokens[None], order[None, :start])
      for c in conditions
    )
    new = order[start : start + count]
    x = noise[new].astype(np.float64)
    times = [*np.linspace(1000, 1, flow_steps), 0]
    for t, end in itertools.pairwise(times):
      at = jnp.float32(x), jnp.full((count,), t, jnp.float32)
      v, v_none = (
        apply("velocity", *at, jnp.float32(y[0, new])) for y in (z, z_none)
      )
      x += (v_none + max(weight, 1) * (v - v_none)) * (end - t) / 1000
    tokens[new] = x
    start += count
  return tokens


def ramp(low, high):
  return [low + (high - low) * (i + 1) / 3 for i in range(3)]


CASES = {
  "no gate": ({"gate": "none"}, {}, ramp(1.0, 2.4)),
  "gates": (
    {"gate": "key_value"},
    {"guidance": 4.0, "min_guidance": 0.5},
    ramp(0.5, 4.0),
  ),
  "softmax": (
    {"gate": "none", "attention": "softmax"},
    {"guidance": [0.0, 1.5, 1.0]},
    [0.0, 1.5, 1.0],
  ),
  "text": ({"text_width": 6}, {}, ramp(1.0, 2.4)),
  "whole text": ({"text_width": 6}, {"guidance": 3}, ramp(1.0, 3.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_it_equals_a_plain_loop(case):
  fields, options, weights = CASES[case]
  model, variables = model_and_variables(**fields)
  lengths = [3, 0, 4] if case == "text" else None
  given = TEXT if "text" in case else np.array([3, 0, 5])
  made = sample(
    model,
    variables,
    given,
    lengths=lengths,
    steps=3,
    flow_steps=3,
    seed=7,
    first_row=2,
    **options,
  )
  assert made.tokens.dtype == jnp.float32
  for row in range(3):
    of_row, none = (given[row : row + 1],), (np.array([5]),)
    if "text" in case:
      none = TEXT[:1], np.array([0])
      of_row += (np.array([lengths[row]]) if lengths else None,)
    drawn = draws(model, 7, row + 2)
    wanted = plain(model, variables, of_row, none, drawn, weights, 3)
    np.testing.assert_allclose(made.tokens[row], wanted, atol=1e-5, rtol=1e-5)
    steps = np.repeat(range(3), COUNTS)
    np.testing.assert_array_equal(made.order[row][drawn[0]], steps)


class Exact(nn.Module):
  """Its velocity is `slope` x + `rise` t / 1000 + the class, or 0 for none."""

  grid: tuple[int, int] = (16, 16)
  token_dim: int = 2
  num_classes: int = 10
  text_width: int = 0
  slope: float = 0.0
  rise: float = 0.0

  def condition(self, given, lengths=None):
    return jnp.where(given == self.num_classes, 0, given).astype(jnp.float32)

  def encode_decode(self, condition, tokens, visible):
    z = condition[:, None, None]
    return jnp.broadcast_to(z, (*tokens.shape[:2], 1))

  def velocity(self, x_t, t, z):
    return self.slope * x_t + self.rise * t[..., None] / 1000 + z


def noise_of(model, rows):
  return np.stack([draws(model, 0, row)[1] for row in range(rows)])


def test_guidance_scales_what_the_condition_adds():
  model = Exact()
  classes = np.array([0, 3, 10])
  options = {"flow_steps": 7, "guidance": 2.4, "min_guidance": 0.4}
  tokens, order = sample(model, {}, classes, **options)
  # Three of the first four of 64 steps would make none of 256 tokens.
  drawn = np.unique(order)
  np.testing.assert_array_equal(drawn, [2, *range(4, 64)])
  weights = dict(zip(drawn, 0.4 + 2.0 * np.arange(1, 62) / 61, strict=True))
  weight = np.maximum(np.vectorize(weights.get)(order), 1)[..., None]
  moved = weight * np.array([0, 3, 0])[:, None, None]
  np.testing.assert_allclose(tokens, noise_of(model, 3) - moved, atol=3e-6)


def test_a_list_has_a_weight_for_each_step_that_was_asked_for():
  model = Exact(grid=(4, 4))
  weights = np.linspace(0, 4, 64)
  tokens, order = sample(model, {}, np.array([1, 2]), guidance=weights)
  assert len(np.unique(order)) == 16
  moved = np.maximum(weights[np.asarray(order)], 1) * np.array([[1], [2]])
  np.testing.assert_allclose(
    tokens, noise_of(model, 2) - moved[..., None], atol=3e-6
  )


@pytest.mark.parametrize("flow_steps", [1, 2, 25])
def test_exact_flows(flow_steps):
  """Products and sums over the times, which tend to e^-a and to -1/2."""
  times = [*np.linspace(1, 0.001, flow_steps), 0]
  falls = np.diff(times)
  options = {"guidance": 1.0, "steps": 4, "flow_steps": flow_steps}
  model = Exact(grid=(2, 5), slope=0.7)
  noise = noise_of(model, 1)
  tokens, _ = sample(model, {}, np.array([10]), **options)
  factor = np.prod(1 + 0.7 * falls)
  np.testing.assert_allclose(tokens, noise * factor, rtol=1e-5)
  model = Exact(grid=(2, 5), rise=2.0)
  tokens, _ = sample(model, {}, np.array([10]), **options)
  moved = 2 * np.sum(falls * times[:-1])
  np.testing.assert_allclose(tokens, noise + moved, atol=1e-5)
  if flow_steps == 25:
    assert abs(factor - math.exp(-0.7)) < 0.01
    assert abs(moved + 1) < 0.05


@pytest.mark.parametrize("places", [1, 2, 12, 16, 256, 1024])
@pytest.mark.parametrize("steps", [1, 2, 5, 64, 300])
def test_the_schedule_makes_each_token_once(places, steps):
  plan = masked_sampling.schedule(places, steps)
  assert sum(step.count for step in plan) == places
  assert min(step.count for step in plan) > 0
  start = 0
  for step in plan:
    assert step.start == start
    left = round(math.cos(math.pi / 2 * (step.number + 1) / steps) * places)
    start += step.count
    assert places - start == left
  programs = masked_sampling.shapes(places, plan, [2.0] * len(plan), 25)
  assert len(set(programs)) <= 4
  for step, program in zip(plan, programs, strict=True):
    assert step.start <= program.visible < step.start + places / 4 + 1
    assert step.count <= program.made


def test_a_row_is_the_same_in_any_batch():
  model, variables = model_and_variables()
  options = {"steps": 5, "flow_steps": 3}
  classes = np.array([0, 1, 2, 3])
  whole = sample(model, variables, classes, seed=1, **options)
  again = sample(model, variables, classes, seed=1, **options)
  np.testing.assert_array_equal(whole.tokens, again.tokens)
  # The same shape, so to the bit: rows 2 and 3 first, then others.
  moved = sample(
    model, variables, classes[[2, 3, 0, 0]], seed=1, first_row=2, **options
  )
  np.testing.assert_array_equal(whole.tokens[2:], moved.tokens[:2])
  single = sample(model, variables, classes[3:], seed=1, first_row=3, **options)
  np.testing.assert_array_equal(whole.order[3:], single.order)
  np.testing.assert_allclose(whole.tokens[3:], single.tokens, atol=1e-5)
  other = sample(model, variables, classes, seed=2, **options)
  assert not (whole.tokens == other.tokens).any()
  assert (whole.order != other.order).any(1).all()


def test_rows_on_a_mesh_are_the_same_and_compile_once():
  model, variables = model_and_variables()
  options = {"steps": 5, "flow_steps": 3}
  classes = np.array([0, 1, 2, 3])
  single = sample(model, variables, classes, **options)
  kinds = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((4,), ("data",), axis_types=kinds)
  place = lambda x, *axes: jax.device_put(
    x, jax.NamedSharding(mesh, jax.P(*axes))
  )
  before = masked_sampling.take_step._cache_size()
  tokens, order = sample(
    model, place(variables), place(classes, "data"), **options
  )
  assert masked_sampling.take_step._cache_size() - before <= 4
  assert {s.data.shape[0] for s in tokens.addressable_shards} == {1}
  np.testing.assert_array_equal(order, single.order)
  np.testing.assert_allclose(tokens, single.tokens, atol=1e-5)


def test_progress_goes_through_the_steps():
  seen = []

  def progress(items, total):
    for item in items:
      yield item
      seen.append(total)

  sample(Exact(grid=(2, 5)), {}, np.array([1]), steps=4, progress=progress)
  assert seen == [4] * 4


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"guidance": [1.0, 2.0]}, "guidance has 2 numbers; there are steps=5"),
    ({"guidance": [[1.0] * 5]}, "guidance has 5 numbers"),
    ({"guidance": -1.0}, "guidance=-1.0 must be finite and 0 or more"),
    ({"min_guidance": math.nan}, "min_guidance=nan must be"),
    ({"steps": 0}, "steps=0 is not an integer that is 1 or more"),
    ({"flow_steps": 2.5}, "flow_steps=2.5"),
    ({"given": np.array([6])}, "labels has 6; they are 0 to 4, and 5 for"),
    ({"given": np.array([-1])}, "labels has -1"),
    ({"given": np.array([[1]])}, "labels has shape"),
    ({"lengths": np.array([1])}, "lengths are of texts"),
  ],
)
def test_bad_input(options, message):
  options = {"given": np.array([1]), "steps": 5} | options
  with pytest.raises(ValueError, match=re.escape(message)):
    sample(lina_small.model(), {}, options.pop("given"), **options)
