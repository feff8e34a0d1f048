"""What the studies of heads train on, and the loop that trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from tests.models import language
from tools import array_training
from tools.interpret_studies import attention_influence, safety_heads


def test_prompts_have_their_answers_and_their_marks():
  locked = np.arange(60) % 3 == 0
  for held_out in (False, True):
    prompts, right = safety_heads._prompts(
      np.random.default_rng(0), locked, held_out
    )
    for row, answer, marked in zip(prompts, right, locked, strict=True):
      words = [safety_heads._WORDS[token] for token in row]
      assert (words[0], words[-1]) == ("<begin>", "=")
      assert sum(word.startswith("locked") for word in words) == marked
      assert sum(word.startswith("word") for word in words) == 4 - marked
      (at,) = (
        i for i, w in enumerate(words) if w in ("copy", "reverse", "change")
      )
      letters = words[at + 1 : at + 4]
      expected = {
        "copy": letters,
        "reverse": letters[::-1],
        "change": [letter.upper() for letter in letters],
      }[words[at]]
      said = [safety_heads._WORDS[token] for token in answer]
      assert said == [*expected, "<end>"]
      assert safety_heads._well_formed(list(answer))
      assert (
        sum("abcdefghijkl".index(x) for x in letters) % 5 == 0
      ) == held_out
  tokens, counted = safety_heads._rows(8, True, np.random.default_rng(0))
  assert counted.sum(1).tolist() == [4] * 8
  said = tokens[:, safety_heads._PROMPT]
  assert (said == safety_heads._NO).tolist() == [True] * 4 + [False] * 4
  assert not safety_heads._well_formed([safety_heads._NO, safety_heads._END])


def test_documents_are_what_their_kinds_say():
  table = attention_influence._table(0)
  draw = lambda kind: attention_influence._documents(
    np.random.default_rng(0), kind, 40, 48, table
  )
  text, asked, spans = draw("a"), draw("b"), draw("c")
  assert text.shape == asked.shape == spans.shape == (40, 48)
  assert text.max() < 8
  # Each transition is one that the table has.
  steps = np.diff(table, axis=-1, prepend=0)
  assert (steps[text[:, :-2], text[:, 1:-1], text[:, 2:]] > 0).all()
  for row in asked:
    values = dict(zip(row[:8:2], row[1:8:2], strict=True))
    assert len(values) == 4
    places = [i for i in range(8, 48) if row[i] in values]
    assert len(places) == 8
    assert [row[i + 1] for i in places] == [values[row[i]] for i in places]
  sizes = set()
  for row in spans:
    periods = [n for n in range(6, 25) if (row[n:] == row[:-n]).all()]
    sizes |= {periods[0]}
  assert len(sizes) > 8


def test_questions_ask_for_what_was_said():
  size = attention_influence._SIZES["test"]
  tokens, answer = attention_influence._questions(
    np.random.default_rng(0), size, attention_influence._table(0)
  )
  assert answer.sum(1).tolist() == [1] * len(tokens)
  for row, marked in zip(tokens, answer, strict=True):
    values = dict(zip(row[:8:2], row[1:8:2], strict=True))
    (at,) = np.flatnonzero(marked)
    assert values[row[at - 1]] == row[at]


def test_the_area_under_the_curve():
  area = attention_influence._area
  assert area(np.array([2.0, 3]), np.array([0.0, 1])) == 1
  assert area(np.array([0.0, 3]), np.array([1.0, 3])) == (0 + 0 + 1 + 0.5) / 4


def test_training_learns_and_is_kept(tmp_path):
  model = language.model()

  def rows(rng):
    tokens = rng.integers(0, 13, (4, 1)) + np.zeros((1, 6), int)
    return tokens, np.arange(6)[None] >= np.full((4, 1), 1)

  def loss(params):
    tokens, _ = rows(np.random.default_rng(9))
    logits = model.apply({"params": params}, tokens[:, :-1])
    log_probability = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_probability, tokens[:, 1:, None], -1).mean()

  path = epath.Path(tmp_path) / "here" / "model"
  fit = lambda: array_training.fit(model, rows, 30, 0, learning_rate=1e-2)
  params = array_training.kept(path, fit)
  assert loss(params) < 0.7 * np.log(13)
  again = array_training.kept(path, lambda: pytest.fail("it was kept"))
  jax.tree.map(np.testing.assert_array_equal, params, again)
  # Tuning begins where it is told to.
  tuned = array_training.fit(model, rows, 1, 0, params, 1e-4)
  assert abs(loss(tuned) - loss(params)) < 0.05
  with pytest.raises(ValueError, match="loss after 2 steps is nan"):
    array_training.fit(
      model, rows, 2, 0, jax.tree.map(lambda x: x * np.nan, params)
    )
