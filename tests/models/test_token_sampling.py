"""What may be drawn, and how often it is."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import token_sampling

VOCABULARY = 7


def some_logits(seed):
  """[rows, vocabulary], of which many are equal."""
  random = np.random.default_rng(seed)
  distinct = 3 * random.normal(size=(8, VOCABULARY))
  few = np.take_along_axis(
    distinct, random.integers(0, 3, (8, VOCABULARY)), axis=1
  )
  return np.concatenate([distinct, few]).astype(np.float32)


def probabilities(logits):
  return np.exp(np.float64(logits)) / np.exp(np.float64(logits)).sum()


def in_top_k(row, i, k):
  return sum(other > row[i] for other in row) < k


def in_top_p(row, i, p):
  return (
    sum(q for q, x in zip(probabilities(row), row, strict=True) if x > row[i])
    < p
  )


def in_min_p(row, i, p):
  return probabilities(row)[i] >= p * probabilities(row).max()


@pytest.mark.parametrize(
  ("step", "stays", "values"),
  [
    (token_sampling.keep_top_k, in_top_k, (1, 2, 5, VOCABULARY, 100)),
    (token_sampling.keep_top_p, in_top_p, (1e-6, 0.3, 0.77, 0.999)),
    (token_sampling.keep_min_p, in_min_p, (1e-4, 0.03, 0.5)),
  ],
)
def test_what_stays(step, stays, values):
  """Token by token as the definitions say, and what stays is not changed."""
  logits = some_logits(0)
  for value in values:
    left = np.asarray(step(jnp.asarray(logits), value))
    assert left.dtype == np.float32
    for before, after in zip(logits, left, strict=True):
      expected = [stays(before, i, value) for i in range(VOCABULARY)]
      np.testing.assert_array_equal(after, np.where(expected, before, -np.inf))
      assert any(expected)


def test_min_p_of_one_leaves_the_most_probable():
  logits = jnp.asarray([[0.5, 2.0, 2.0, -1.0]])
  left = token_sampling.keep_min_p(logits, 1.0)
  np.testing.assert_array_equal(
    jnp.isfinite(left), [[False, True, True, False]]
  )


def test_the_order_of_steps():
  """Each sees what those before it left, and the temperature comes first."""
  how = token_sampling.sampling(0.7, top_k=5, top_p=0.8, min_p=0.1)
  logits = some_logits(1)[0]
  kept = np.full(VOCABULARY, True)
  row = logits / 0.7
  for stays, value in ((in_top_k, 5), (in_top_p, 0.8), (in_min_p, 0.1)):
    row = np.where(kept, row, -np.inf)
    kept &= [stays(row, i, value) for i in range(VOCABULARY)]
  allowed = token_sampling.allowed(how, jnp.asarray(logits)[None, :])[0]
  np.testing.assert_array_equal(np.isfinite(allowed), kept)
  np.testing.assert_allclose(
    jax.nn.softmax(allowed)[kept], probabilities(row[kept]), rtol=1e-5
  )


def test_a_temperature_near_zero_is_greedy():
  logits = jnp.asarray(some_logits(2)[:8])
  keys = token_sampling.row_keys(0, jnp.arange(8))
  for temperature in (0, 1e-30):
    drawn = token_sampling.draw(
      token_sampling.sampling(temperature), logits, keys
    )
    np.testing.assert_array_equal(drawn, logits.argmax(axis=-1))


def test_how_often_tokens_are_drawn():
  """Counts of 20,000 rows and steps are within 5 deviations."""
  rows, steps = 2000, 10
  logits = jnp.asarray([1.0, 0.0, 2.0, -1.0, 1.5])
  how = token_sampling.sampling(1.3, top_k=4)
  keys = token_sampling.row_keys(3, jnp.arange(rows))
  drawn = np.stack(
    [
      token_sampling.draw(
        how,
        jnp.broadcast_to(logits, (rows, 5)),
        token_sampling.step_keys(keys, step),
      )
      for step in range(steps)
    ]
  )
  p = probabilities(np.asarray(logits) / 1.3)
  p[3] = 0
  p /= p.sum()
  counts = np.bincount(drawn.ravel(), minlength=5)
  spread = np.sqrt(rows * steps * p * (1 - p))
  assert (np.abs(counts - rows * steps * p) <= 5 * spread).all()
  # Rows and steps are independent: pairs are as frequent as their product.
  for first, second in ((drawn[:-1], drawn[1:]), (drawn[:, :-1], drawn[:, 1:])):
    for a, b in itertools.product((0, 2), repeat=2):
      both = ((first == a) & (second == b)).mean()
      assert abs(both - p[a] * p[b]) < 5 * np.sqrt(p[a] * p[b] / first.size)


def test_a_draw_is_of_seed_row_and_step():
  logits = jnp.zeros((3, 1000))
  how = token_sampling.sampling(1.0)

  def draw(seed, rows, step):
    keys = token_sampling.row_keys(seed, jnp.asarray(rows))
    drawn = token_sampling.draw(
      how, logits[: len(rows)], token_sampling.step_keys(keys, step)
    )
    return drawn.tolist()

  together = draw(0, [0, 1, 2], 5)
  assert draw(0, [2, 0], 5) == [together[2], together[0]]
  assert len(set(together)) == 3
  assert draw(1, [0, 1, 2], 5) != together != draw(0, [0, 1, 2], 6)


@pytest.mark.parametrize(
  "options",
  [
    {"temperature": -0.1},
    {"temperature": float("nan")},
    {"temperature": float("inf")},
    {"top_k": -1},
    {"top_k": 2.5},
    {"top_p": 0.0},
    {"top_p": 1.1},
    {"min_p": -0.1},
    {"min_p": 1.5},
  ],
)
def test_options_out_of_their_range(options):
  (name,) = options
  with pytest.raises(ValueError, match=name):
    token_sampling.sampling(**options)
