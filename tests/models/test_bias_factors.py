"""Tables of relative biases as factors, against numpy's SVD of the sheet."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from models import bias_factors, taps
from tests.models import small

# One layer of windows and one of grids, 16 tokens each.
FIELDS = {
  "widths": (16,),
  "depths": (1,),
  "window_size": 4,
  "stem_widths": (4, 4),
}
BLOCK = "stage_0/block_0/block_attention"
GRID = "stage_0/block_0/grid_attention"


@functools.cache
def trained():
  """A model whose first table is smooth, of low rank, and the other rough."""
  model = small.model(**FIELDS)
  variables = small.variables(model)
  layers = variables["params"]["stage_0"]["block_0"]
  offset = np.arange(-3, 4) / 4
  smooth = np.stack(
    [
      np.exp(-(offset[:, None] ** 2) - offset[None] ** 2),
      offset[:, None] + 2 * np.cos(offset[None]),
    ]
  )
  layers["block_attention"]["attention"]["relative_bias_table"] = jnp.asarray(
    smooth, jnp.float32
  )
  return model, variables


def bias_of(variables, name):
  """[heads, query, key] by the definition, in numpy."""
  layer = variables["params"]["stage_0"]["block_0"][name.split("/")[-1]]
  table = np.asarray(layer["attention"]["relative_bias_table"], np.float64)
  y, x = (n.ravel() for n in np.mgrid[:4, :4])
  return table[:, y[None] - y[:, None] + 3, x[None] - x[:, None] + 3]


def rank_of(singular_values, energy):
  shares = np.cumsum(singular_values**2) / np.sum(singular_values**2)
  return int(np.argmax(shares >= energy)) + 1


def factors_of(variables, name):
  """What the factors of a layer multiply to, [heads, query, key]."""
  layer = variables["params"]["stage_0"]["block_0"][name.split("/")[-1]]
  assert "relative_bias_table" not in layer["attention"]
  q, k = (
    np.asarray(layer["attention"][n], np.float64) for n in bias_factors.FACTORS
  )
  return np.einsum("qhr,khr->hqk", q, k)


def test_layers_of_low_rank_become_factors_and_others_stay():
  model, variables = trained()
  factored, converted, layers = bias_factors.convert(
    model, variables, energy=0.995, limit=6
  )
  assert [layer.name for layer in layers] == [BLOCK, GRID]
  for layer in layers:
    bias = bias_of(variables, layer.name)
    s = np.linalg.svd(bias, compute_uv=False)
    ranks = tuple(rank_of(head, 0.995) for head in s)
    assert layer.ranks == ranks
    assert layer.tokens == 16
    assert layer.rank == (max(ranks) if max(ranks) <= 6 else 0)
  low, high = layers
  assert 1 < low.rank <= 6
  assert high.rank == 0
  assert dict(factored.bias_ranks) == {BLOCK: low.rank}
  # The rough table is untouched, and so is the model that was given.
  np.testing.assert_array_equal(
    bias_of(converted, GRID), bias_of(variables, GRID)
  )
  bias = bias_of(variables, BLOCK)
  u, s, vh = np.linalg.svd(bias)
  best = (u[..., : low.rank] * s[:, None, : low.rank]) @ vh[:, : low.rank]
  product = factors_of(converted, BLOCK)
  np.testing.assert_allclose(product, best, atol=2e-5)
  assert low.error == pytest.approx(np.abs(product - bias).max(), abs=1e-5)
  # Its variables are those that the model would make.
  x = small.images()
  wanted = jax.eval_shape(factored.init, jax.random.key(0), x)
  assert jax.tree.map(jnp.shape, converted) == jax.tree.map(jnp.shape, wanted)


def test_the_whole_rank_is_the_same_model():
  model, variables = trained()
  x = small.images()
  factored, converted, layers = bias_factors.convert(
    model, variables, energy=1.0, limit=16
  )
  assert all(layer.rank > 3 and layer.error < 1e-5 for layer in layers)
  expected = small.apply(model, variables, x)
  got = small.apply(factored, converted, x)
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_error_of_weights_and_outputs_is_bounded():
  """Section 3.4 of the sheet, on the map of a layer."""
  model, variables = trained()
  factored, converted, layers = bias_factors.convert(model, variables, limit=6)
  bound = layers[0].bound
  assert bound == pytest.approx(np.exp(2 * layers[0].error) - 1)
  assert 0 < bound < 0.5
  names, x = [f"{BLOCK}/attention/attention_weights"], small.images()

  def weights(model, variables):
    read = jax.jit(functools.partial(taps.read, model, names=names))
    return read(variables, x)[1][names[0]]

  change = np.abs(weights(factored, converted) - weights(model, variables))
  assert 0 < change.sum(-1).max() <= bound


def test_the_map_of_factors_is_what_weighs_the_values():
  model, variables = trained()
  factored, converted, _ = bias_factors.convert(model, variables, limit=6)
  x = small.images()
  read = jax.jit(
    lambda variables: taps.read(
      factored, variables, x, names=["*/attention_weights"]
    )[0]
  )
  np.testing.assert_allclose(
    read(converted), small.apply(factored, converted, x), atol=1e-6
  )


def test_a_table_of_another_window_is_resized_before():
  model = small.model(**FIELDS, bias_table_window=2)
  variables = small.variables(model)
  factored, converted, layers = bias_factors.convert(
    model, variables, energy=0.9999
  )
  assert {layer.tokens for layer in layers} == {16}
  layer = variables["params"]["stage_0"]["block_0"]["grid_attention"]
  bias = attention.relative_position_bias(
    attention.resize_relative_table(
      jnp.asarray(layer["attention"]["relative_bias_table"]), 4
    )
  )
  np.testing.assert_allclose(factors_of(converted, GRID), bias, atol=0.1)
  assert small.apply(factored, converted, small.images()).shape == (2, 5)


def test_factors_train():
  """They are another model, with gradients to both."""
  model = small.model(**FIELDS, bias_ranks={BLOCK: 2})
  variables = small.variables(model)
  x = small.images()

  def loss(params):
    out = model.apply({**variables, "params": params}, x)
    return jnp.sum(jnp.sin(out))

  gradient = jax.jit(jax.grad(loss))(variables["params"])
  layer = gradient["stage_0"]["block_0"]["block_attention"]["attention"]
  for name in bias_factors.FACTORS:
    assert layer[name].shape == (16, 2, 2)
    assert np.abs(layer[name]).max() > 0


@pytest.mark.parametrize(
  ("options", "error"),
  [
    ({"energy": 0.0}, "energy is 0.0; it must be a share, above 0"),
    ({"limit": 0}, "limit is 0; it must be at least 1"),
  ],
)
def test_options_out_of_range(options, error):
  with pytest.raises(ValueError, match=error):
    bias_factors.convert(*trained(), **options)


def test_models_that_cannot_be_converted():
  model, variables = trained()
  twice = model.clone(bias_ranks={BLOCK: 2})
  with pytest.raises(ValueError, match=r"bias_ranks .*is converted already"):
    bias_factors.convert(twice, variables)
  plain = small.model(**FIELDS, layout=("mbconv",))
  with pytest.raises(ValueError, match="is a MaxViT without tables"):
    bias_factors.convert(plain, variables)


@pytest.mark.parametrize(
  ("fields", "error"),
  [
    (
      {"bias_ranks": {"stage_0/block_1/grid_attention": 2}},
      "layer of bias_ranks.*did you mean stage_0/block_0/grid_attention",
    ),
    ({"bias_ranks": {BLOCK: 17}}, "bias_rank is 17; windows of 16 tokens"),
    ({"scale_by": "length"}, "scale_by 'length'.*entropy"),
  ],
)
def test_fields_that_do_not_fit(fields, error):
  model = small.model(**FIELDS, **fields)
  with pytest.raises(ValueError, match=error):
    jax.eval_shape(model.init, jax.random.key(0), small.images())
