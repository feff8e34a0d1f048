"""Stochastic depth by its statistics, pooling and gates by their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import layers
from tests.models import small


def _drop(rate, x, train=True, seed=0):
  rngs = {"dropout": jax.random.key(seed)}
  return layers.StochasticDepth(rate).apply({}, x, train, rngs=rngs)


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean():
  x = jnp.ones((4000, 2, 2, 3))
  out = np.asarray(_drop(0.3, x)).reshape(4000, -1)
  assert (out == out[:, :1]).all()
  np.testing.assert_allclose(np.unique(out), [0, 1 / 0.7], rtol=1e-6)
  # Four standard deviations of the mean of 4000 draws.
  deviation = (0.3 / 0.7 / 4000) ** 0.5
  assert abs(out[:, 0].mean() - 1) < 4 * deviation
  assert (np.asarray(_drop(0.3, x, seed=1)).reshape(4000, -1) != out).any()


def test_stochastic_depth_is_the_identity_outside_training():
  x = jnp.ones((4, 3))
  assert layers.StochasticDepth(0.5).apply({}, x, False) is x
  assert layers.StochasticDepth(0.0).apply({}, x, True) is x
  with pytest.raises(ValueError, match="rate is 1"):
    _drop(1.0, x)


def test_average_pool():
  x = jnp.arange(2 * 4 * 6 * 2.0).reshape(2, 4, 6, 2)
  pooled = layers.average_pool(x)
  assert pooled.shape == (2, 2, 3, 2)
  np.testing.assert_allclose(pooled[1, 1, 2], x[1, 2:4, 4:6].mean((0, 1)))


def test_squeeze_excite():
  x = small.images(channels=6)
  module = layers.SqueezeExcite(4, jax.nn.silu)
  variables = module.init(jax.random.key(0), x)
  reduce, expand = (variables["params"][k] for k in ("reduce", "expand"))
  hidden = jax.nn.silu(x.mean((1, 2)) @ reduce["kernel"])
  gate = jax.nn.sigmoid(hidden @ expand["kernel"])
  np.testing.assert_allclose(
    module.apply(variables, x), x * gate[:, None, None], rtol=1e-5, atol=1e-6
  )


def _tapped(variables, images, **options):
  model = small.model(**options)
  logits, state = small.apply(model, variables, images, mutable="intermediates")
  return logits, state["intermediates"]


@pytest.mark.parametrize("remat", [False, True])
def test_taps_show_maps_and_states_and_change_nothing(remat):
  images = small.images(size=32)
  variables = small.variables(small.model())
  logits, taps = _tapped(variables, images, remat=remat)
  expected = small.apply(small.model(remat=remat), variables, images)
  np.testing.assert_allclose(logits, expected, atol=1e-6)
  block = taps["stage_0"]["block_0"]
  assert block["hidden_state"].shape == (2, 8, 8, 16)
  weights = block["grid_attention"]["attention"]["attention_weights"]
  # 8 x 8 tokens are 16 grids of 4 tokens.
  assert weights.shape == (2, 16, 2, 4, 4)
  np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
  assert "hidden_state" in taps["stem"]


def test_taps_cost_nothing_when_nobody_looks():
  variables = jax.eval_shape(
    small.model().init, jax.random.key(0), small.images()
  )
  assert set(variables) == {"params", "batch_stats"}


def _replace(variables, images, path, value):
  nested = value
  for key in reversed(path):
    nested = {key: nested}
  variables = {**variables, "replacements": nested}
  return small.apply(small.model(), variables, images)


HIDDEN = ("stage_1", "block_0", "hidden_state")
WEIGHTS = ("stage_0", "block_0", "block_attention", "attention")
WEIGHTS = (*WEIGHTS, "attention_weights")


@pytest.mark.parametrize("path", [HIDDEN, WEIGHTS], ids=["hidden", "weights"])
def test_replacing_a_tapped_value(path):
  images = small.images()
  variables = small.variables(small.model())
  logits, taps = _tapped(variables, images)
  value = taps
  for key in path:
    value = value[key]
  loss = lambda value: (_replace(variables, images, path, value)[0, 0],) * 2
  replaced = jax.jit(jax.grad(loss, has_aux=True))
  gradient, same = replaced(value)
  np.testing.assert_allclose(same, logits[0, 0], atol=1e-5)
  assert jnp.abs(gradient).max() > 0
  _, other = replaced(value[:, ::-1] * 2)
  assert jnp.abs(other - logits[0, 0]) > 1e-4
  with pytest.raises(ValueError, match=f"{path[-1]} has shape"):
    _replace(variables, images, path, value[:1])
