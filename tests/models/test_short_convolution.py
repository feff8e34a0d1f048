"""The short convolution against a loop, whole and in pieces."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import short_convolution

# Two rows: three segments, and one that is padded on the left.
SEGMENTS = np.array([[0, 0, 0, 1, 1, 2, 2, 2, 2], [3] * 9], np.int32)
KEPT = np.array([[True] * 9, [False] * 4 + [True] * 5])


def by_loop(x, kernel):
  size, out = len(kernel), np.zeros(x.shape)
  for b, t, d in np.ndindex(*x.shape[:2], size):
    seen = t >= d and KEPT[b, t - d] and SEGMENTS[b, t - d] == SEGMENTS[b, t]
    if seen:
      out[b, t] += kernel[size - 1 - d] * x[b, t - d]
  return out / (1 + np.exp(-out))


@pytest.mark.parametrize("size", [2, 4])
def test_is_the_loop_as_a_whole_and_in_pieces(size):
  rng = np.random.default_rng(size)
  x = rng.standard_normal((2, 9, 2, 3)).astype(np.float32)
  module = short_convolution.ShortConvolution(size, "silu")
  variables = module.init(jax.random.key(0), x)
  kernel = variables["params"]["kernel"]
  assert kernel.shape == (size, 2, 3)
  assert 0 < np.abs(kernel).max() < size**-0.5
  expected = by_loop(x, np.asarray(kernel, np.float64))
  x[~KEPT] = np.nan
  run = jax.jit(module.apply)
  out, nothing = run(variables, x, SEGMENTS, KEPT)
  assert nothing is None
  np.testing.assert_allclose(out[KEPT], expected[KEPT], atol=1e-6)
  recent = short_convolution.init_recent(2, size, (2, 3), jnp.float32)
  start, outs = 0, []
  # Shorter than the filter, too; the last is of one segment in each row.
  for piece in (1, 1, 5, 2):
    part = slice(start, start + piece)
    segments = SEGMENTS[:, part] if piece != 2 else None
    out, recent = run(variables, x[:, part], segments, KEPT[:, part], recent)
    start += piece
    outs.append(out)
  out = np.concatenate(outs, axis=1)
  np.testing.assert_allclose(out[KEPT], expected[KEPT], atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [2, 5])
def test_without_order_it_sees_both_sides(size, dtype):
  """Values and gradients, by which filter of a token sees which other."""
  rng = np.random.default_rng(size)
  x = jnp.asarray(rng.standard_normal((2, 9, 3)), dtype)
  module = short_convolution.ShortConvolution(size, "silu", dtype, causal=False)
  variables = module.init(jax.random.key(0), x)
  places = np.arange(9)
  filters = places[:, None] + size // 2 - np.arange(size)
  seen = filters[..., None] == places
  seen = seen & (SEGMENTS[:, :, None, None] == SEGMENTS[:, None, None, :])
  seen = (seen & KEPT[:, None, None, :]).astype(np.float32)
  cotangent = KEPT[..., None] * rng.standard_normal(x.shape)

  def restated(kernel, x):
    y = jnp.einsum("btds,dc,bsc->btc", seen, kernel[::-1], x)
    return nn.silu(y)

  def own(kernel, x):
    params = {"params": {"kernel": kernel}}
    out, nothing = module.apply(params, x, SEGMENTS, KEPT)
    assert nothing is None
    return out

  def both(function, x):
    def total(kernel, x):
      out = function(kernel, x)
      return (out * cotangent).sum(), out

    of = jax.value_and_grad(total, (0, 1), has_aux=True)
    (_, out), gradients = jax.jit(of)(variables["params"]["kernel"], x)
    return [np.where(KEPT[..., None], out, 0), *gradients]

  rough = 1e-6 if dtype == "float32" else 2e-2
  expected = both(restated, x.astype(jnp.float32))
  for a, b in zip(both(own, x), expected, strict=True):
    largest = np.abs(b).max()
    assert largest > 0.1
    a = np.asarray(a, np.float32)
    np.testing.assert_allclose(a, b, atol=rough * largest)
  recent = short_convolution.init_recent(2, size, (3,), jnp.float32)
  with pytest.raises(ValueError, match="recent is given, but causal is False"):
    module.apply(variables, x, SEGMENTS, KEPT, recent)


def test_dtypes():
  x = jnp.ones((1, 5, 3), jnp.bfloat16)
  module = short_convolution.ShortConvolution(3, dtype=jnp.bfloat16)
  variables = module.init(jax.random.key(0), x)
  assert variables["params"]["kernel"].dtype == jnp.float32
  assert module.apply(variables, x)[0].dtype == jnp.bfloat16


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"size": 1}, "size of a short convolution is 1; .*at least 2"),
    ({"size": 3, "activation": "sillu"}, "activation.*did you mean silu"),
  ],
)
def test_errors(fields, message):
  module = short_convolution.ShortConvolution(**fields)
  with pytest.raises(ValueError, match=message):
    module.init(jax.random.key(0), jnp.ones((1, 2, 3)))
