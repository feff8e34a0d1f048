"""Score modifications against dense formulas: values and gradients."""

import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import attention
from attention import scores, tiles

B, H, Q, K = 2, 3, 5, 6
SIZES = {"b": B, "h": H, "q": Q, "k": K}
OFFSET = np.arange(K)[None, :] - np.arange(Q)[:, None]
rng = np.random.default_rng(0)


def normal(*shape, dtype=jnp.float32):
  return jnp.asarray(rng.standard_normal(shape), dtype)


def modified(mod, score=None, shape=(B, H, Q, K)):
  return _over_all(mod, jnp.zeros(shape) if score is None else score)


@jax.jit
def _over_all(mod, score):
  return tiles.over_all_scores(mod.modify, mod.operands(), score.shape, score)


def with_gradients(f, *arguments):
  """Returns f and the gradients of the sum of its sines, compiled at once."""

  def loss(*arguments):
    value = f(*arguments)
    return jnp.sum(jnp.sin(value)), value

  every = tuple(range(len(arguments)))
  (_, value), gradients = jax.jit(
    jax.value_and_grad(loss, every, has_aux=True)
  )(*arguments)
  return value, gradients


SCORE = normal(B, H, Q, K)


@pytest.mark.parametrize(
  "axes", ["", "k", "q1", "qk", "h11", "1qk", "hqk", "b1qk", "bh1k", "bhqk"]
)
def test_bias_broadcasts(axes):
  array = normal(*(SIZES.get(axis, 1) for axis in axes))
  got = modified(scores.bias(array), SCORE)
  np.testing.assert_array_equal(got, np.asarray(SCORE) + np.asarray(array))


def test_bias_of_another_dtype_is_added_in_float32():
  array = normal(Q, K, dtype=jnp.bfloat16)
  got = modified(scores.bias(array), SCORE)
  assert got.dtype == jnp.float32
  np.testing.assert_array_equal(
    got, SCORE + array.astype(jnp.float32)[None, None]
  )


@pytest.mark.parametrize(
  ("q_lead", "k_lead"),
  [
    ((B, H), (B, H)),
    ((1, H), (B, 1)),
    ((B, 1), (1, 1)),
    ((1, 1), (1, H)),
    ((H,), (1,)),
  ],
)
def test_factored_bias_is_a_dense_bias(q_lead, k_lead):
  """Values, and the gradients that sum over the axes of size one."""
  factors = [
    normal(*lead[:-1], length, lead[-1], 4)
    for lead, length in ((q_lead, Q), (k_lead, K))
  ]

  def dense(a, b):
    a, b = (x[None] if x.ndim == 3 else x for x in (a, b))
    product = jnp.sum(a[:, :, None] * b[:, None], axis=-1)
    return SCORE + jnp.moveaxis(product, -1, 1)

  def factored(a, b):
    return modified(scores.factored_bias(a, b), SCORE)

  (value, got), (exact, expected) = (
    with_gradients(f, *factors) for f in (factored, dense)
  )
  np.testing.assert_allclose(value, exact, atol=1e-6)
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=3e-6)


def test_alibi_slopes():
  np.testing.assert_allclose(
    scores.alibi_slopes(8), [2.0**-n for n in range(1, 9)], rtol=1e-6
  )
  assert scores.alibi_slopes(12).shape == (12,)


def test_alibi():
  slopes = np.array([0.5, 0.25, 2.0], np.float32)
  for symmetric, steps in ((False, OFFSET), (True, -np.abs(OFFSET))):
    mod = scores.alibi(jnp.asarray(slopes), symmetric=symmetric)
    expected = np.tile(slopes[:, None, None] * steps, (B, 1, 1, 1))
    np.testing.assert_array_equal(modified(mod), expected)
  factors = scores.alibi_factors(jnp.asarray(slopes), Q, K)
  expected = np.tile(slopes[:, None, None] * OFFSET, (B, 1, 1, 1))
  np.testing.assert_array_equal(modified(factors), expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("make", [scores.alibi, scores.alibi_factors])
def test_alibi_of_far_positions_is_exact(make, dtype):
  """Factors in bfloat16 would be off by 16 here (fact sheet of FlashBias)."""
  n = 8192
  slopes = jnp.array([0.5], dtype)
  mod = make(slopes) if make is scores.alibi else make(slopes, n, n)
  rows = np.array([0, 1, 4095, 8190, 8191])
  operands = [o.array for o in mod.operands()]
  if make is scores.alibi:
    values = [operands[0].reshape(1, 1)]
  else:
    values = [operands[0][rows], operands[1]]
  tile = tiles.Tile(
    jnp.array(0), jnp.array(0), jnp.asarray(rows)[:, None], jnp.arange(n)[None]
  )
  got = mod.modify(jnp.zeros((len(rows), n)), tile, *values)
  np.testing.assert_array_equal(got, 0.5 * (np.arange(n)[None] - rows[:, None]))


def test_attention_of_bfloat16_keeps_exact_positions():
  """q and k are bfloat16, the positions of ALiBi must not be."""
  n = 600
  q = k = jnp.zeros((1, n, 1, 2), jnp.bfloat16)
  weights = attention.attention_weights(
    q, k, score_mods=scores.alibi_factors(jnp.array([1.0]), n, n)
  )
  exact = np.exp(np.arange(n) - (n - 1.0))
  np.testing.assert_allclose(
    weights[0, 0], np.tile(exact / exact.sum(), (n, 1)), atol=1e-6
  )


@pytest.mark.parametrize(("space", "batch"), [(2, ()), (3, (B,))])
def test_squared_distance(space, batch):
  x, y = normal(*batch, Q, space), normal(*batch, K, space)
  weight = normal(*batch, Q, H)

  def dense(x, y, weight):
    square = jnp.sum((x[..., :, None, :] - y[..., None, :, :]) ** 2, axis=-1)
    scaled = -jnp.moveaxis(weight, -1, -2)[..., None] * square[..., None, :, :]
    return jnp.broadcast_to(scaled, (B, H, Q, K))

  def ours(x, y, weight):
    return modified(scores.squared_distance(x, y, weight))

  np.testing.assert_allclose(
    modified(scores.squared_distance(x, y)),
    dense(x, y, jnp.ones_like(weight)),
    atol=1e-5,
  )
  (value, got), (exact, expected) = (
    with_gradients(f, x, y, weight) for f in (ours, dense)
  )
  np.testing.assert_allclose(value, exact, atol=2e-5)
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4)


def test_squared_distance_of_bfloat16_points():
  x = (100 + normal(1, Q, 3)).astype(jnp.bfloat16)
  got = modified(scores.squared_distance(x, x), shape=(1, 1, Q, Q))
  x = np.asarray(x[0], np.float64)
  square = ((x[:, None] - x[None, :]) ** 2).sum(axis=-1)
  # |x|^2 is 3e4, and float32 has 24 bits of it.
  np.testing.assert_allclose(got[0, 0], -square, atol=1e-2)


def test_svd_of_full_rank_is_the_bias():
  array = normal(H, Q, K)
  got = modified(scores.svd_factors(array, Q))
  np.testing.assert_allclose(got, np.tile(array, (B, 1, 1, 1)), atol=1e-5)


def test_svd_is_the_best_of_its_rank():
  array = normal(H, 8, 9)
  for rank in (1, 4):
    got = modified(scores.svd_factors(array, rank), shape=(1, H, 8, 9))[0]
    s = np.linalg.svd(np.asarray(array, np.float64), compute_uv=False)
    np.testing.assert_allclose(
      ((array - got) ** 2).sum(axis=(1, 2)),
      (s[:, rank:] ** 2).sum(axis=-1),
      rtol=1e-4,
    )


def test_error_of_svd_is_bounded():
  """Section 3.4 of the fact sheet: |o' - o| <= (e^(2 eps) - 1) max |v|."""
  position = np.linspace(0, 1, 16)
  smooth = np.exp(-8 * np.abs(position[:, None] - position[None, :]))
  array = jnp.asarray(np.stack([smooth, np.cos(9 * smooth)]), jnp.float32)
  rank = scores.rank_for_energy(array)
  assert 1 < rank < 16
  factors = scores.svd_factors(array, rank)
  eps = np.abs(modified(factors, shape=(1, 2, 16, 16))[0] - array).max()
  q, k, v = (normal(1, 16, 2, 4) for _ in range(3))
  exact = attention.dot_product_attention(q, k, v, bias=array)
  out = attention.dot_product_attention(q, k, v, score_mods=factors)
  error = np.abs(out - exact).max()
  assert 1e-4 < error <= (np.exp(2 * eps) - 1) * np.abs(v).max()


def test_rank_for_energy():
  u, _ = np.linalg.qr(rng.standard_normal((2, 6, 6)))
  s = np.array([[3.0, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
  array = jnp.asarray((u * s[:, None]) @ u.swapaxes(1, 2), jnp.float32)
  assert scores.rank_for_energy(array[:1], 0.89) == 1
  assert scores.rank_for_energy(array[:1], 0.91) == 2
  # The head that needs most decides.
  assert scores.rank_for_energy(array, 0.7) == 5
  for seed in range(5):
    full = jax.random.normal(jax.random.key(seed), (1, 7, 9))
    assert scores.rank_for_energy(full, 1.0) <= 7


@pytest.mark.parametrize("distance", [0, 2, 20])
def test_relative_positions(distance):
  table = normal(H, 2 * distance + 1)
  got = modified(scores.relative_positions(table, Q, K))
  index = np.clip(OFFSET, -distance, distance) + distance
  np.testing.assert_array_equal(got[1], np.asarray(table)[:, index])


def test_relative_positions_2d():
  """The offset is key minus query along both axes of the window."""
  table = np.asarray(normal(H, 5, 5))
  got = modified(
    scores.relative_positions_2d(jnp.asarray(table)), shape=(1, H, 9, 9)
  )
  for i, j in itertools.product(range(9), range(9)):
    down, right = j // 3 - i // 3, j % 3 - i % 3
    np.testing.assert_array_equal(
      got[0, :, i, j], table[:, down + 2, right + 2]
    )


def test_soft_cap():
  score = 20 * SCORE
  got = modified(scores.soft_cap(5.0), score)
  exact = 5 * np.tanh(np.asarray(score, np.float64) / 5)
  np.testing.assert_allclose(got, exact, atol=1e-5)
  assert np.abs(got).max() <= 5


def test_modifications_are_applied_in_order():
  q, k = normal(1, 4, 2, 3), normal(1, 4, 2, 3)
  bias = normal(2, 4, 4)
  score = jnp.einsum("bihd,bjhd->bhij", q, k) * 3**-0.5
  for mods, expected in (
    ([scores.bias(bias), scores.soft_cap(1.0)], jnp.tanh(score + bias[None])),
    ([scores.soft_cap(1.0), scores.bias(bias)], jnp.tanh(score) + bias[None]),
  ):
    got = attention.attention_weights(q, k, score_mods=mods)
    np.testing.assert_allclose(got, jax.nn.softmax(expected), atol=1e-6)
  both = attention.attention_weights(
    q, k, bias=bias, score_mods=scores.soft_cap(1.0)
  )
  np.testing.assert_allclose(
    both, jax.nn.softmax(jnp.tanh(score + bias[None])), atol=1e-6
  )


AXES = [
  "".join(chosen)
  for n in range(5)
  for chosen in itertools.combinations("bhqk", n)
]


def test_function_with_arrays_of_all_axes():
  """Each combination of axes once, in values and in gradients."""
  arrays = {axes: normal(*(SIZES[axis] for axis in axes)) for axes in AXES}
  arrays["h:second"] = normal(H)
  powers = dict(zip(arrays, np.linspace(0.2, 1.2, len(arrays)), strict=True))

  def change(score, batch, head, q_index, k_index, *values):
    phase = batch + 2 * head + 3 * q_index + 5 * k_index
    score = score * jnp.cos(phase)
    for value, power in zip(values, powers.values(), strict=True):
      score += jnp.sin(power * value * (1 + score))
    return score

  def ours(score, arrays):
    return modified(scores.function(change, arrays), score)

  def dense(score, arrays):
    full = [
      jnp.reshape(
        x, [SIZES[a] if a in axes.partition(":")[0] else 1 for a in "bhqk"]
      )
      for axes, x in arrays.items()
    ]
    b, h, i, j = np.ix_(range(B), range(H), range(Q), range(K))
    return change(score, b, h, i, j, *full)

  (value, got), (exact, expected) = (
    with_gradients(f, SCORE, arrays) for f in (ours, dense)
  )
  np.testing.assert_allclose(value, exact, atol=1e-5)
  np.testing.assert_allclose(got[0], expected[0], atol=1e-4)
  for axes in arrays:
    np.testing.assert_allclose(
      got[1][axes], expected[1][axes], atol=1e-4, rtol=1e-4, err_msg=axes
    )


def test_plain_function_needs_no_arrays():
  mod = scores.function(lambda s, b, h, i, j: s * (i - j))
  np.testing.assert_array_equal(
    modified(mod, SCORE), SCORE * -OFFSET[None, None]
  )


@pytest.mark.parametrize(
  ("make", "error"),
  [
    (
      lambda: scores.bias(normal(1, 1, 1, 2, 2)),
      r"array has shape \(1, 1, 1, 2, 2\); it must broadcast",
    ),
    (
      lambda: scores.factored_bias(normal(4, 1, 2), normal(4, 1, 3)),
      r"k_factor has shape \(4, 1, 3\); .* the same rank, 2",
    ),
    (
      lambda: scores.svd_factors(normal(2, 4, 5), 5),
      r"rank is 5; a bias of shape \(2, 4, 5\) has ranks from 1 to 4",
    ),
    (lambda: scores.svd_factors(normal(2, 4, 5), 0), "rank is 0"),
    (
      lambda: scores.relative_positions(normal(2, 4), 3, 3),
      r"table has shape \(2, 4\); it must be \[heads, 2 \* max_distance \+ 1\]",
    ),
    (lambda: scores.soft_cap(-1.0), "cap is -1.0; it must be above 0"),
    (
      lambda: scores.function(lambda s, *_: s, {"kq": normal(2, 2)}),
      "axes is 'kq'; it must be",
    ),
  ],
)
def test_errors_name_argument_and_value(make, error, monkeypatch):
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
  with pytest.raises(ValueError, match=error):
    make()


@pytest.mark.parametrize(
  ("mod", "error"),
  [
    (
      scores.bias(normal(3, 4, 4)),
      r"score_mods, Bias,.*\(3, 4, 4\).*\[2, 4, 4\]",
    ),
    (scores.alibi(normal(5)), r"Alibi, has shape \(5,\).*\[2\]"),
    (
      scores.factored_bias(normal(4, 2, 3), normal(5, 2, 3)),
      r"FactoredBias, .*\[2, any, 4\]",
    ),
    (
      scores.function(lambda s, *_: s, {"bq": normal(2, 4)}),
      r"Function, has shape \(2, 4\).*\[1, 4\]",
    ),
    ("alibi", "score_mods has 'alibi'; it takes what attention.scores makes"),
  ],
)
def test_modifications_that_do_not_fit(mod, error, monkeypatch):
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
  x = normal(1, 4, 2, 3)
  with pytest.raises(ValueError, match=error):
    attention.dot_product_attention(x, x, x, score_mods=[mod])


def test_factors_are_multiplied_at_the_highest_precision():
  """Matrix units would round the factors to bfloat16; processors do not."""
  mod = scores.alibi_factors(jnp.ones(H), Q, K)
  program = str(jax.make_jaxpr(lambda mod: _over_all(mod, SCORE))(mod))
  assert "Precision.HIGHEST" in program
