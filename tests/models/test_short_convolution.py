"""The short convolution against a loop, whole and in pieces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import short_convolution

# Two rows: three segments, and one that is padded on the left.
SEGMENTS = np.array([[0, 0, 0, 1, 1, 2, 2, 2, 2], [3] * 9], np.int32)
KEPT = np.array([[True] * 9, [False] * 4 + [True] * 5])


def by_loop(x, kernel, ahead=0):
  size, out = len(kernel), np.zeros(x.shape)
  for b, t, d in np.ndindex(*x.shape[:2], size):
    at = t + ahead - d
    seen = 0 <= at < x.shape[1] and KEPT[b, at]
    if seen and SEGMENTS[b, at] == SEGMENTS[b, t]:
      out[b, t] += kernel[size - 1 - d] * x[b, at]
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


@pytest.mark.parametrize("size", [2, 5])
def test_without_order_it_sees_both_sides(size):
  rng = np.random.default_rng(size)
  x = rng.standard_normal((2, 9, 3)).astype(np.float32)
  module = short_convolution.ShortConvolution(size, "silu", causal=False)
  variables = module.init(jax.random.key(0), x)
  kernel = np.asarray(variables["params"]["kernel"], np.float64)
  expected = by_loop(x, kernel, size // 2)
  x[~KEPT] = np.nan
  out, nothing = jax.jit(module.apply)(variables, x, SEGMENTS, KEPT)
  assert nothing is None
  np.testing.assert_allclose(out[KEPT], expected[KEPT], atol=1e-6)
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
