"""Decoding with the transformer equals its parallel form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import decoding, token_sampling

VOCABULARY = 41
PROMPTS = [[3], [1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], [2, 7, 18]]
NEW = 13


def small(**fields):
  """A model whose logits are far apart, and its variables."""
  options = {
    "vocabulary_size": VOCABULARY,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "init_scale": 0.4,
    "mlp_width": 16,
  }
  model = models.create("transformer", **options | fields)
  tokens = jnp.zeros((1, 1), jnp.int32)
  return model, jax.jit(model.init)(jax.random.key(1), tokens)


def parallel_logits(model, variables, rows):
  """[row, NEW, vocabulary]: those that each new token was drawn from."""
  # The last token is read by none.
  length = max(map(len, rows)) - 1
  tokens = np.zeros((len(rows), length), np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row) - 1] = row[:-1]
  logits = np.asarray(jax.jit(model.apply)(variables, tokens))
  ends = [len(row) - 1 for row in rows]
  return np.stack([x[i - NEW : i] for x, i in zip(logits, ends, strict=True)])


@pytest.mark.parametrize(
  ("fields", "tolerance"),
  [
    ({"mixers": ("full",), "kv_heads": 1}, 1e-4),
    (
      {
        "mixers": ("sliding", "full"),
        "window": 5,
        "position_encoding": "learned",
        "max_length": len(PROMPTS[1]) + NEW - 1,
      },
      1e-4,
    ),
    (
      {
        "mixers": ("linear", "sliding"),
        "window": 3,
        "position_encoding": "none",
        "mixer_options": {"linear": {"feature_map": "relu_epsilon"}},
        "scan_layers": True,
      },
      1e-4,
    ),
    ({"position_encoding": "alibi", "dtype": jnp.bfloat16}, 0.3),
  ],
  ids=["full", "sliding-learned", "linear-scanned", "alibi-bfloat16"],
)
def test_greedy_decoding_is_the_parallel_form(fields, tolerance):
  """Of rows of different lengths, each token is the most probable there."""
  model, variables = small(**fields)
  new = decoding.generate(model, variables, PROMPTS, max_tokens=NEW)
  assert {len(row) for row in new} == {NEW}
  rows = [prompt + row for prompt, row in zip(PROMPTS, new, strict=True)]
  logits = parallel_logits(model, variables, rows)
  drawn = np.take_along_axis(logits, np.asarray(new)[:, :, None], 2)[..., 0]
  assert (drawn >= logits.max(axis=-1) - tolerance).all()
  # Logits are far apart, and the model does not just repeat itself.
  assert np.median(np.ptp(logits, axis=-1)) > 10 * tolerance
  assert len(np.unique(new)) > 5


@pytest.fixture(scope="module")
def mixed():
  return small(mixers=("sliding", "linear"), window=4, vocabulary_size=43)


def test_draws_do_not_depend_on_rows_beside_nor_on_the_block(mixed):
  options = {"max_tokens": NEW, "temperature": 1.0, "top_k": 20, "seed": 4}
  together = decoding.generate(*mixed, PROMPTS, **options)
  assert together == decoding.generate(*mixed, PROMPTS, block=5, **options)
  (alone,) = decoding.generate(*mixed, PROMPTS[2:], rows=[2], **options)
  assert alone == together[2]
  assert together != decoding.generate(*mixed, PROMPTS, **options | {"seed": 5})


def test_the_rest_goes_on_where_a_row_has_ended(mixed):
  """It is padding then, in a ring and in a state."""
  whole = decoding.generate(*mixed, PROMPTS, max_tokens=NEW)
  stop = next(t for t in whole[1] if t not in whole[0] + whole[2])
  ended = decoding.generate(*mixed, PROMPTS, max_tokens=NEW, stop=[stop])
  assert ended[0] == whole[0]
  assert ended[1] == whole[1][: whole[1].index(stop) + 1] != whole[1]
  assert ended[2] == whole[2]


def test_what_a_call_does_not_do(mixed):
  """A prompt has no logits, and the cache is not copied from block to block."""
  model, variables = mixed
  frozen = decoding.hashable(model)
  tokens = np.zeros((3, 16), np.int32)
  prefill = decoding._prefill.lower(
    frozen, variables, tokens, tokens, slots=128
  ).compile()
  assert ",43]" not in prefill.as_text()
  state = decoding.start(model, variables, PROMPTS, padded=16, slots=128)
  steps = decoding.take_steps.lower(
    frozen,
    variables,
    state=state,
    live=np.ones(3, bool),
    how=token_sampling.sampling(),
    keys=token_sampling.row_keys(0, jnp.arange(3)),
    stop=jnp.zeros((0,), jnp.int32),
    max_tokens=9,
    length=4,
  ).compile()
  assert ",43]" in steps.as_text()
  cache = sum(x.nbytes for x in jax.tree.leaves(state.cache))
  assert steps.memory_analysis().alias_size_in_bytes >= cache


def test_an_encoder_is_refused():
  model, variables = small(causal=False)
  with pytest.raises(ValueError, match="causal"):
    decoding.generate(model, variables, PROMPTS, max_tokens=2)
