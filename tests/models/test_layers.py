"""Stochastic depth by its statistics, pooling and gates by their formulas."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import layers
from tests import parity_helper
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


@pytest.mark.parity
@pytest.mark.parametrize(
  ("kernel_size", "stride", "groups"), [(1, 2, 1), (3, 2, 2), (7, 2, 1)]
)
def test_conv_norm_is_pytorch_s(kernel_size, stride, groups):
  torch = parity_helper.import_torch()
  module = layers.ConvNorm(
    6,
    functools.partial(nn.BatchNorm, epsilon=1e-5),
    kernel_size,
    stride,
    groups,
    activation=nn.relu,
    use_bias=True,
  )
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, 9, 8, 4), np.float32)
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, False))
  variables = jax.tree.map(
    lambda s: rng.uniform(0.5, 1.5, s.shape).astype(np.float32), shapes
  )
  out = module.apply(variables, x, False)
  conv, norm = variables["params"]["conv"], variables["params"]["norm"]
  stats = variables["batch_stats"]["norm"]
  kernel = conv["kernel"].reshape(kernel_size, kernel_size, -1, 6)
  tensor = lambda a: torch.from_numpy(np.ascontiguousarray(a))
  y = torch.nn.functional.conv2d(
    tensor(x.transpose(0, 3, 1, 2)),
    tensor(kernel.transpose(3, 2, 0, 1)),
    tensor(conv["bias"]),
    stride,
    (kernel_size - 1) // 2,
    groups=groups,
  )
  y = torch.nn.functional.batch_norm(
    y,
    *(tensor(a) for a in (stats["mean"], stats["var"])),
    *(tensor(a) for a in (norm["scale"], norm["bias"])),
  ).relu()
  np.testing.assert_allclose(
    out, y.permute(0, 2, 3, 1).numpy(), rtol=1e-5, atol=1e-5
  )


def test_conv_norm_pads_as_asked():
  """How many windows see the second pixel tells where they start."""
  x = np.zeros((1, 4, 4, 1), np.float32)
  x[0, 1, 1] = 1
  outs = {}
  for padding in ("symmetric", "same"):
    module = layers.ConvNorm(
      1,
      functools.partial(nn.BatchNorm, epsilon=0.0),
      3,
      2,
      padding=padding,
      kernel_init=nn.initializers.ones,
    )
    out, _ = module.init_with_output(jax.random.key(0), x, False)
    outs[padding] = out[0, ..., 0].tolist()
  assert outs == {
    "symmetric": [[1, 1], [1, 1]],
    "same": [[1, 0], [0, 0]],
  }
  with pytest.raises(ValueError, match="padding is 'valid'; it must be"):
    layers.ConvNorm(1, nn.BatchNorm, padding="valid").init(
      jax.random.key(0), x, False
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("size", [(8, 6), (7, 4), (5, 9), (1, 2)])
def test_max_pool(size, dtype):
  # All different, also in bfloat16: then the gradient has one answer.
  count = 2 * size[0] * size[1]
  x = np.random.default_rng(0).permutation(count).reshape(2, *size, 1) - 60.0
  x = jnp.asarray(x, dtype)
  assert len(np.unique(x)) == count
  out, pull = jax.vjp(jax.jit(layers.max_pool), x)
  windows = ((3, 3), (2, 2), ((1, 1), (1, 1)))
  expected, expected_pull = jax.vjp(lambda x: nn.max_pool(x, *windows), x)
  np.testing.assert_array_equal(out, expected)
  g = jnp.arange(1, out.size + 1, dtype=dtype).reshape(out.shape)
  np.testing.assert_allclose(
    pull(g)[0].astype(jnp.float32),
    expected_pull(g)[0].astype(jnp.float32),
    rtol=1e-6 if dtype == jnp.float32 else 0.02,
  )
