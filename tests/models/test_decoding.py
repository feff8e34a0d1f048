"""Decoding against a table of logits, where what is right can be read off."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from models import decoding, prompts, token_sampling

VOCABULARY = 11
PERIOD = 5


class Trigrams(nn.Module):
  """Logits are a table's at the last two tokens and the position.

  The least model with a cache: the token before, and slots that hold nothing.
  """

  vocabulary_size: int = VOCABULARY
  position_encoding: str = "none"
  max_length: int = 0

  def init_cache(self, batch, length):
    return {
      "before": jnp.zeros((batch,), jnp.int32),
      "slots": jnp.zeros((length,)),
      "index": jnp.zeros((), jnp.int32),
    }

  @nn.compact
  def __call__(self, tokens, positions, cache, train):
    assert not train
    table = self.param(
      "table", nn.initializers.normal(2.0), (PERIOD,) + (VOCABULARY,) * 3
    )
    before, logits = cache["before"], []
    for token, position in zip(tokens.T, positions.T, strict=True):
      logits.append(table[position % PERIOD, before, token])
      before = jnp.where(position < 0, before, token)
    index = cache["index"] + tokens.shape[1]
    cache = {"before": before, "slots": cache["slots"], "index": index}
    return jnp.stack(logits, axis=1), cache


MODEL = Trigrams()
VARIABLES = MODEL.init(
  jax.random.key(0),
  jnp.zeros((1, 1), jnp.int32),
  jnp.zeros((1, 1), jnp.int32),
  MODEL.init_cache(1, 1),
  train=False,
)
PROMPTS = [[3], [1, 4, 1, 5, 9, 2, 6], [2, 7], [10, 0, 10, 0]]


def most_probable(prompt, count):
  """What follows if the most probable is taken each time."""
  table = np.asarray(VARIABLES["params"]["table"])
  tokens = list(prompt)
  for _ in range(count):
    before = tokens[-2] if len(tokens) > 1 else 0
    position = (len(tokens) - 1) % PERIOD
    tokens.append(int(table[position, before, tokens[-1]].argmax()))
  return tokens[len(prompt) :]


def generate(starts=PROMPTS, **options):
  options = {"max_tokens": 9} | options
  return decoding.generate(MODEL, VARIABLES, starts, **options)


def text(tokens):
  return "".join("abcdefghijk"[t] for t in tokens)


@pytest.mark.parametrize("block", [1, 4, 9, 16])
def test_the_most_probable_tokens(block):
  """Prompts of different lengths, the shortest of one token."""
  expected = [most_probable(p, 9) for p in PROMPTS]
  assert generate(block=block) == expected


def test_a_block_of_tokens_at_a_time():
  blocks = list(
    decoding.stream(MODEL, VARIABLES, PROMPTS, max_tokens=7, block=3)
  )
  assert [[len(new) for new in block] for block in blocks] == [
    [3] * 4,
    [3] * 4,
    [1] * 4,
  ]
  assert [
    [t for new in row for t in new] for row in zip(*blocks, strict=True)
  ] == [most_probable(p, 7) for p in PROMPTS]


def test_draws_are_of_seed_row_and_step():
  """Not of the rows beside it, nor of the block."""
  options = {"temperature": 1.2, "top_k": 8, "top_p": 0.95, "min_p": 0.01}
  together = generate(seed=5, **options)
  assert together == generate(seed=5, **options, block=2)
  for row, prompt in enumerate(PROMPTS):
    (alone,) = generate([prompt], seed=5, rows=[row], **options)
    assert alone == together[row]
  assert together != generate(seed=6, **options)
  assert together != generate(**options)
  # The same prompt in two rows does not make the same draws.
  first, second = generate([PROMPTS[1]] * 2, seed=5, **options)
  assert first != second


def test_draws_follow_the_model():
  """Frequencies of a pair of tokens are the product of the table's."""
  rows = 4000
  drawn = np.asarray(
    generate([[3, 1]] * rows, max_tokens=2, temperature=0.8, seed=2)
  )
  table = np.asarray(VARIABLES["params"]["table"], np.float64) / 0.8
  p = np.exp(table) / np.exp(table).sum(axis=-1, keepdims=True)
  pairs = p[1, 3, 1][:, None] * p[2, 1]
  counts = np.zeros_like(pairs)
  np.add.at(counts, tuple(drawn.T), 1)
  spread = np.sqrt(rows * pairs * (1 - pairs)) + 1
  assert (np.abs(counts - rows * pairs) < 5 * spread).all()


def test_a_stop_token_is_a_rows_last():
  """The other rows go on, each to its own end."""
  whole = generate()
  stop = [whole[0][2], whole[1][5]]
  expected = [
    row[: 1 + min([i for i, t in enumerate(row) if t in stop], default=9)]
    for row in whole
  ]
  assert len({len(row) for row in expected}) > 1
  for block in (1, 4, 9):
    assert generate(stop=stop, block=block) == expected


def test_a_stop_string_ends_a_row_with_the_token_that_completes_it():
  whole = generate()
  string = text(whole[1][2:5])
  end = 3 + text(whole[1]).find(string)
  assert end <= 5
  expected = list(whole)
  expected[1] = whole[1][:end]
  assert not any(string in text(row) for row in whole[:1] + whole[2:])
  for block in (1, 2, 4, 9):
    assert generate(stop=[string], decode=text, block=block) == expected
  assert generate(stop=string, decode=text) == expected


def test_it_ends_when_all_rows_have():
  whole = generate()
  looked = []
  stop = [row[0] for row in whole]
  for block in decoding.stream(
    MODEL, VARIABLES, PROMPTS, max_tokens=1000, stop=stop, block=3
  ):
    looked.append(block)
  assert looked == [[row[:1] for row in whole]]


def test_an_ended_row_moves_nothing():
  """It is padding from then on, so its state stays what it was."""
  (row,) = generate([PROMPTS[1]])
  state = decoding.start(MODEL, VARIABLES, [PROMPTS[1]], padded=8, slots=128)
  state, tokens = decoding.take_steps(
    MODEL,
    VARIABLES,
    state=state,
    live=np.ones(1, bool),
    how=token_sampling.sampling(),
    keys=token_sampling.row_keys(0, jnp.arange(1)),
    stop=jnp.asarray(row[3:4]),
    max_tokens=9,
    length=9,
  )
  assert tokens.tolist() == [row[:4] + [-1] * 5]
  assert state.position.tolist() == [-1]
  assert state.cache["before"].tolist() == [row[2]]


def traced_trigrams():
  """A model that notes each time that it is traced, and its variables."""
  traced = []

  class Traced(Trigrams):
    @nn.compact
    def __call__(self, *args, **options):
      traced.append(args)
      return Trigrams(name="inner")(*args, **options)

  return Traced(), {"params": {"inner": VARIABLES["params"]}}, traced


def test_other_prompts_compile_nothing():
  """Lengths are padded, and values of the sampling are arguments."""
  model, variables, traced = traced_trigrams()
  options = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 20}
  decoding.generate(model, variables, [[1] * 6, [2]], **options)
  count = len(traced)
  assert count > 0
  options |= {"temperature": 0.7, "top_p": 0.5, "max_tokens": 30, "seed": 8}
  decoding.generate(model, variables, [[1] * 2, [2] * 9], **options, stop=())
  assert len(traced) == count


@pytest.mark.parametrize("prompt", [[3], [1, 4, 1, 5]])
def test_the_second_block_compiles_nothing_on_a_mesh(prompt):
  """There, what a step returns has another type than a new array."""
  model, variables, traced = traced_trigrams()
  mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
  placed = jax.device_put(variables, NamedSharding(mesh, P()))
  blocks = decoding.stream(model, placed, [prompt], max_tokens=9, block=3)
  rows = next(blocks)
  count = len(traced)
  rows += [row for (row,) in blocks]
  assert sum(rows[1:], rows[0]) == most_probable(prompt, 9)
  assert len(traced) == count


def test_the_cache_is_as_long_as_asked_for():
  """The padding of a prompt gives way to what has to fit."""
  expected = [most_probable(p, 4) for p in PROMPTS]
  assert generate(max_tokens=4, cache_length=10) == expected
  with pytest.raises(
    ValueError,
    match=r"7 tokens and max_tokens=4 .* cache_length=9 .*max_tokens=3 or a "
    "prompt of at most 6 tokens would fit",
  ):
    generate(max_tokens=4, cache_length=9)
  for max_tokens, length, message in (
    (4, 4, "room for: a prompt of at most 1 tokens would fit"),
    (9, 8, "room for: max_tokens=2 would fit"),
    (9, 2, r"room for\.$"),
  ):
    with pytest.raises(ValueError, match=message):
      generate(max_tokens=max_tokens, cache_length=length)


def test_what_prompts_are_padded_to():
  """A power of two, but no more than may be."""
  lengths = [[1] * n for n in (1, 2, 3, 10)]
  found = [prompts.prompt_lengths(MODEL, [p], 120) for p in lengths]
  assert found == [(0, 128), (1, 128), (2, 128), (16, 256)]
  learned = Trigrams(position_encoding="learned", max_length=12)
  assert prompts.prompt_lengths(learned, lengths, 3) == (12, 128)
  assert prompts.prompt_lengths(MODEL, lengths, 3, 14) == (11, 14)
  tokens, positions = prompts.left_pad([[7, 8], [], [5, 6, 9]], 3)
  assert tokens.tolist() == [[0, 7, 8], [0, 0, 0], [5, 6, 9]]
  assert positions.tolist() == [[-1, 0, 1], [-1, -1, -1], [0, 1, 2]]


def test_learned_positions_are_a_limit():
  model = Trigrams(position_encoding="learned", max_length=10)
  for options in ({}, {"cache_length": 500}):
    generated = decoding.generate(
      model, VARIABLES, PROMPTS, max_tokens=4, **options
    )
    assert generated == [most_probable(p, 4) for p in PROMPTS]
    with pytest.raises(ValueError, match=r"max_length=10 .*max_tokens=4 or"):
      decoding.generate(model, VARIABLES, PROMPTS, max_tokens=5, **options)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"prompts": []}, "no row"),
    ({"prompts": [[1], []]}, r"prompts\[1\] is empty"),
    ({"prompts": [[1, VOCABULARY]]}, f"token {VOCABULARY}"),
    ({"prompts": [[-1]]}, "token -1"),
    ({"max_tokens": 0}, "max_tokens=0"),
    ({"block": 0}, "block=0"),
    ({"temperature": -1}, "temperature=-1"),
    ({"stop": ["x"]}, "decode="),
    ({"stop": [""], "decode": text}, "empty string"),
    ({"rows": [1, 2]}, "rows=.* 4 prompts"),
  ],
)
def test_bad_input(options, message):
  """Said at the call, not at the first token."""
  options = {"prompts": PROMPTS, "max_tokens": 2} | options
  with pytest.raises(ValueError, match=message):
    decoding.stream(MODEL, VARIABLES, **options)
