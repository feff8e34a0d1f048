"""Filling templates against the same loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generation import template_decoding

VOCABULARY, MASK, PROMPT = 11, 10, 3
SLOTS = np.array([0, 1, 1, 0, 1, 0, 1, 1, 1, 0, 1], bool)
LENGTH = PROMPT + len(SLOTS)


def _model(seed=0, dtype=jnp.float32):
  """Logits that depend on every token of the row."""
  rng = np.random.default_rng(seed)
  own = rng.normal(size=(LENGTH, VOCABULARY, VOCABULARY))
  others = rng.normal(size=(LENGTH, LENGTH, VOCABULARY, VOCABULARY))
  own, others = own.astype(np.float32), others.astype(np.float32)

  def logits_of(tokens):
    hot = jax.nn.one_hot(tokens, VOCABULARY)
    mixed = jnp.einsum("...ju,ijuv->...iv", hot, others, precision="highest")
    return (mixed + jnp.einsum("...iu,iuv->...iv", hot, own)).astype(dtype)

  return logits_of


def _inputs(rows=(2,), seed=1):
  rng = np.random.default_rng(seed)
  prompt = rng.integers(0, MASK, (*rows, PROMPT), np.int32)
  tokens = rng.integers(0, MASK, len(SLOTS), np.int32)
  return prompt, np.where(SLOTS, MASK, tokens)


def _restated(
  logits_of, prompt, tokens, steps, order, guidance, forbidden, noise
):
  """One row, position after position."""
  slots = [i for i in range(len(SLOTS)) if SLOTS[i]]
  each = max(1, int(np.ceil(len(slots) / steps)))
  tokens = tokens.copy()
  opened, scores = list(slots), {}
  trace = []
  for number in range(steps):
    if not opened:
      break

    def read(before):
      logits = np.array(logits_of(np.concatenate([before, tokens])))
      return logits[len(before) :].astype(np.float64)

    logits = read(prompt)
    if guidance:
      empty = read(np.full_like(prompt, MASK))
      logits = empty + (guidance + 1) * (logits - empty)
    logits[:, [MASK, *forbidden]] = -np.inf
    if noise is not None:
      scale, drawn = noise
      logits[slots] = logits[slots] / scale + drawn(number)
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    odds /= odds.sum(-1, keepdims=True)
    told, sure = odds.argmax(-1), odds.max(-1)
    if order == "commit":
      chosen = sorted(opened, key=lambda i: -sure[i])[:each]
      left = [i for i in opened if i not in chosen]
    else:
      chosen = opened
      scores |= {i: sure[i] for i in chosen}
      left = sorted(slots, key=scores.get)[:each] if number + 1 < steps else []
    for i in chosen:
      tokens[i] = told[i]
    tokens[left] = MASK
    opened = sorted(left)
    trace.append(
      ([i in chosen for i in slots], told[slots].tolist(), sure[slots])
    )
  return tokens, trace


OPTIONS = [
  {},
  {"steps": 1},
  {"steps": 5},
  {"steps": 30},
  {"order": "remask", "steps": 4},
  {"order": "remask", "steps": 30},
  {"guidance": 0.7},
  {"forbidden": (0, 1, 2, 7)},
  {"temperature": 0.6},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_tokens_and_trace_are_those_of_a_loop(options):
  logits_of = _model()
  prompt, tokens = _inputs()
  key = jax.random.key(7)
  options = {"steps": 3, **options}
  decode = jax.jit(
    lambda prompt: template_decoding.decode(
      logits_of, prompt, tokens, SLOTS, mask=MASK, key=key, **options
    )
  )
  made, trace = decode(prompt)
  count = 0
  for row in range(2):

    def noise(number, row=row):
      drawn = jax.random.fold_in(jax.random.fold_in(key, number), row)
      shape = (SLOTS.sum(), VOCABULARY)
      return np.asarray(jax.random.gumbel(drawn, shape), np.float64)

    temperature = options.get("temperature")
    expected, steps = _restated(
      logits_of,
      prompt[row],
      tokens,
      options["steps"],
      options.get("order", "commit"),
      options.get("guidance", 0.0),
      options.get("forbidden", ()),
      (temperature, noise) if temperature else None,
    )
    np.testing.assert_array_equal(made[row], expected)
    assert len(trace.filled) == len(steps)
    for i, (filled, told, sure) in enumerate(steps):
      assert trace.filled[i, row].tolist() == filled
      assert trace.told[i, row].tolist() == told
      np.testing.assert_allclose(trace.confidence[i, row], sure, rtol=2e-5)
    count += len({*expected[SLOTS]})
  assert count > 4
  # The skeleton is what it was, and nothing is left open or forbidden.
  np.testing.assert_array_equal(
    made[:, ~SLOTS], np.tile(tokens[~SLOTS], (2, 1))
  )
  never = [MASK, *options.get("forbidden", ())]
  assert not np.isin(made[:, SLOTS], never).any()


def test_one_step_is_the_likeliest_token_of_each_slot():
  logits_of = _model()
  prompt, tokens = _inputs(rows=())
  made, trace = template_decoding.decode(
    logits_of, prompt, tokens, SLOTS, steps=1, mask=MASK
  )
  logits = np.asarray(logits_of(np.concatenate([prompt, tokens])))
  told = logits[PROMPT:, :MASK].argmax(-1)
  np.testing.assert_array_equal(made, np.where(SLOTS, told, tokens))
  assert trace.filled.all()


def test_with_a_step_for_each_slot_the_surest_comes_next():
  """Greedy decoding in any order: what is filled is seen by what follows."""
  logits_of = _model()
  prompt, tokens = _inputs(rows=())
  made, trace = template_decoding.decode(
    logits_of, prompt, tokens, SLOTS, steps=99, mask=MASK
  )
  assert trace.filled.shape == (7, 7)
  assert (trace.filled.sum(1) == 1).all()
  assert (trace.filled.sum(0) == 1).all()
  assert trace.filled.argmax(1).tolist() != sorted(trace.filled.argmax(1))
  current = tokens.copy()
  for step in range(7):
    logits = logits_of(np.concatenate([prompt, current]))[PROMPT:, :MASK]
    odds = np.array(jax.nn.softmax(logits))
    odds[current != MASK] = 0
    place, token = np.unravel_index(odds.argmax(), odds.shape)
    current[place] = token
    assert np.flatnonzero(SLOTS)[trace.filled[step].argmax()] == place
  np.testing.assert_array_equal(made, current)


@pytest.mark.parametrize(
  ("slots", "steps", "expected"),
  [
    (48, 16, (3, 16)),
    (48, 8, (6, 8)),
    (50, 16, (4, 13)),
    (10, 16, (1, 10)),
    (33, 8, (5, 7)),
  ],
)
def test_how_many_slots_a_step_fills(slots, steps, expected):
  assert template_decoding.plan(slots, steps) == expected


def test_the_order_of_given_confidences():
  """Confidences .9 .2 .8 .4 .6 in three steps: {0, 2}, {4, 3}, {1}."""
  sure = np.array([0.9, 0.2, 0.8, 0.4, 0.6])
  # Of eleven tokens the first with `sure`, the rest alike; masks are left out.
  odds = np.stack([sure, *[(1 - sure) / 9] * 9, np.ones(5)], axis=-1)
  made, trace = template_decoding.decode(
    lambda tokens: jnp.log(odds),
    np.zeros(0, np.int32),
    np.full(5, MASK),
    np.ones(5, bool),
    steps=3,
    mask=MASK,
  )
  filled = [set(np.flatnonzero(step)) for step in trace.filled]
  assert filled == [{0, 2}, {3, 4}, {1}]
  np.testing.assert_allclose(trace.confidence, np.tile(sure, (3, 1)), rtol=1e-5)
  assert made[np.array([0, 2, 3, 4])].tolist() == [0, 0, 0, 0]


def test_guidance_of_logits():
  c, u = jnp.array([1.0, 2.0]), jnp.array([0.5, 0.5])
  np.testing.assert_allclose(template_decoding.guided(c, u, 1.0), [1.5, 3.5])
  np.testing.assert_allclose(template_decoding.guided(c, u, 0.0), c)


def test_noise_is_of_a_row_and_tends_to_nothing():
  logits_of = _model()
  prompt, tokens = _inputs(rows=(3,))
  decode = lambda prompt, temperature: template_decoding.decode(
    logits_of,
    prompt,
    tokens,
    SLOTS,
    steps=1,
    mask=MASK,
    temperature=temperature,
    key=jax.random.key(0),
  )[0]
  drawn = decode(prompt, 1.0)
  np.testing.assert_array_equal(decode(prompt[:2], 1.0), drawn[:2])
  greedy = decode(prompt, 0.0)
  np.testing.assert_array_equal(decode(prompt, 1e-3), greedy)
  assert (drawn != greedy).any()
  # Rows with one prompt differ.
  same = decode(np.tile(prompt[:1], (3, 1)), 1.0)
  assert (same[0] != same[1]).any()


def test_logits_may_be_bfloat16():
  prompt, tokens = _inputs()
  made, trace = template_decoding.decode(
    _model(dtype=jnp.bfloat16), prompt, tokens, SLOTS, steps=3, mask=MASK
  )
  assert (made.dtype, trace.confidence.dtype) == (jnp.int32, jnp.float32)
  assert (made[:, SLOTS] != MASK).all()


ERRORS = [
  ({"slot_mask": np.zeros(11, bool)}, "with 0 slots"),
  ({"slot_mask": np.ones(11, np.int32)}, "slot_mask is int32"),
  ({"tokens": np.zeros(10, np.int32)}, r"tokens has shape \(10,\)"),
  ({"steps": 0}, "steps is 0; it must be at least 1"),
  ({"order": "reveal"}, "order='reveal' must be one of"),
  ({"temperature": -1.0}, "temperature is -1.0; it must be"),
  ({"temperature": 1.0}, "needs key="),
  ({"guidance": np.inf}, "guidance is inf; it must be a number, finite"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_arguments_that_do_not_fit(arguments, message):
  prompt, tokens = _inputs()
  given = {"prompt": prompt, "tokens": tokens, "slot_mask": SLOTS}
  given = {**given, "steps": 3, "mask": MASK, **arguments}
  with pytest.raises(ValueError, match=message):
    template_decoding.decode(_model(), **given)
