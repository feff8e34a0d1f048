"""Retrieval scores: by loops, and of a circuit built by hand that copies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interpret
from interpret import head_edits, retrieval_heads
from models.transformer import Transformer

rng = np.random.default_rng(0)


def _looking_at(places, length, heads=1):
  """Maps [1, heads, length, length] whose rows look at `places`, else at 0."""
  weights = np.zeros((1, heads, length, length), np.float32)
  weights[..., 0] = 0.4
  for query, key in places.items():
    weights[0, :, query, 0] = 0.0
    weights[0, :, query, key] = 1.0
  return weights


def test_the_answer_of_the_sheet():
  """5 9 2 9, copied at the first, second and fourth step."""
  tokens = np.array([[1, 5, 9, 2, 3, 5, 9, 2, 9]])
  answer = np.arange(9)[None] >= 5
  weights = _looking_at({4: 1, 5: 2, 6: 1, 7: 2}, 9)
  score = lambda **options: retrieval_heads.retrieval_score(
    weights, tokens, answer, **options
  )
  np.testing.assert_allclose(score(), [[2 / 3]], rtol=1e-6)
  np.testing.assert_allclose(score(form="events"), [[3 / 4]])
  copied = retrieval_heads.copies(weights, tokens, answer)
  assert np.flatnonzero(copied).tolist() == [5, 6, 8]
  # The needle is elsewhere: looking at 2 is not copying from it.
  source = np.arange(9)[None] == 1
  np.testing.assert_allclose(score(source=source), [[1 / 3]], rtol=1e-6)
  # Arguments stay as they are.
  assert answer.sum() == 4


@pytest.mark.parametrize("form", retrieval_heads.FORMS)
def test_scores_by_loops(form):
  batch, heads, length = 3, 4, 11
  weights = rng.dirichlet(np.ones(length), (batch, heads, length))
  weights = (weights * np.tri(length)).astype(np.float32)
  tokens = rng.integers(0, 4, (batch, length))
  answer = rng.random((batch, length)) < 0.5
  answer[:, 0] = False
  source = rng.random((batch, length)) < 0.7
  expected = np.zeros((batch, heads))
  for row in range(batch):
    for head in range(heads):
      hits = [
        t
        for t in np.flatnonzero(answer[row])
        if tokens[row, j := weights[row, head, t - 1].argmax()]
        == tokens[row, t]
        and source[row, j]
      ]
      if form == "events":
        expected[row, head] = len(hits) / answer[row].sum()
      else:
        copied = {tokens[row, t] for t in hits}
        expected[row, head] = len(copied) / len({*tokens[row, answer[row]]})
  found = jax.jit(retrieval_heads.retrieval_score, static_argnames="form")(
    weights, tokens, answer, source, form=form
  )
  assert 0.05 < expected.mean() < 0.95
  np.testing.assert_allclose(found, expected, rtol=1e-6)


# Of the circuit: words, places, and channels of the residual stream, which are
# a word, a place, the word before, and the word to say.
WORDS, PLACES = 12, 24
WIDTH = 3 * WORDS + PLACES
WORD, PLACE, BEFORE, SAID = np.split(
  np.arange(WIDTH), np.cumsum([WORDS, PLACES, WORDS])
)


def _circuit():
  """Two layers of two heads: (0, 0) looks back one place, (1, 0) copies."""
  model = Transformer(
    vocabulary_size=WORDS,
    width=WIDTH,
    depth=2,
    heads=2,
    head_dim=PLACES,
    mlp="none",
    position_encoding="learned",
    max_length=PLACES,
    tied_head=False,
  )
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)
  )
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)["params"]
  for name in ("layer_0", "layer_1"):
    params[name]["mixer_norm"]["scale"][:] = 1
  params["final_norm"]["scale"][:] = 1
  params["embed"]["embedding"][np.arange(WORDS), WORD] = 1
  params["position_embed"]["embedding"][np.arange(PLACES), PLACE] = 1
  first, second = params["layer_0"]["mixer"], params["layer_1"]["mixer"]
  # The query of a place is the key of the one before.
  here = np.arange(PLACES)
  first["query"]["kernel"][PLACE[1:], 0, here[:-1]] = 5
  first["key"]["kernel"][PLACE, 0, here] = 5
  words = np.arange(WORDS)
  first["value"]["kernel"][WORD, 0, words] = 1
  first["out"]["kernel"][0, words, BEFORE] = 1
  # The query of a word is the key of that which has it before.
  second["query"]["kernel"][WORD, 0, words] = 5
  second["key"]["kernel"][BEFORE, 0, words] = 5
  second["value"]["kernel"][WORD, 0, words] = 1
  second["out"]["kernel"][0, words, SAID] = 1
  params["head"]["logits"]["kernel"][SAID, words] = 1
  return model, {"params": params}


def _repeated():
  """Rows of different words after a first, said twice; their second halves."""
  said = [rng.permutation(np.arange(1, WORDS))[:7] for _ in range(3)]
  tokens = np.stack([np.concatenate([[0], row, row]) for row in said])
  # The first of the second half nothing before foretells.
  return tokens, np.broadcast_to(np.arange(15) >= 9, tokens.shape)


def test_the_copy_head_of_a_circuit_scores_one_and_others_nothing():
  model, variables = _circuit()
  tokens, answer = _repeated()
  found = retrieval_heads.of_model(model, variables, tokens, answer)
  assert found.accuracy == 1
  np.testing.assert_array_equal(found.scores, [[0, 0], [1, 0]])
  top = retrieval_heads.top_heads(found.scores, 0.25)
  assert head_edits.pairs_of(top) == ((1, 0),)
  # Without it, or the head that it builds on, nothing is answered.
  for layer in (0, 1):
    name = f"layer_{layer}/mixer/attention_weights"
    for head, right in ((0, False), (1, True)):
      out, _ = interpret.run(
        model,
        variables,
        tokens,
        edit={name: head_edits.Ablation(heads=(head,))},
      )
      said = np.argmax(out[:, :-1], -1) == tokens[:, 1:]
      assert said[answer[:, 1:]].all() == right


def test_rows_that_are_answered_wrongly_do_not_count():
  model, variables = _circuit()
  tokens, answer = _repeated()
  # The last word of the first row is another than was said.
  tokens[0, -1] = next(w for w in range(1, WORDS) if w not in tokens[0])
  found = retrieval_heads.of_model(model, variables, tokens, answer)
  np.testing.assert_allclose(found.accuracy, 2 / 3, rtol=1e-6)
  assert found.scores[1, 0] == 1
  none = retrieval_heads.of_model(model, variables, tokens[:1], answer[:1])
  assert none.accuracy == 0
  assert np.isnan(none.scores).all()
  with pytest.raises(ValueError, match="answered nothing"):
    retrieval_heads.top_heads(none.scores, 0.5)


def test_five_percent_of_heads():
  for layers, heads, count in (
    (16, 20, 16),
    (32, 32, 51),
    (4, 8, 2),
    (1, 2, 1),
  ):
    scores = rng.random((layers, heads))
    top = retrieval_heads.top_heads(scores, 0.05)
    assert top.sum() == count
    assert scores[top].min() > scores[~top].max(initial=0)
  same = retrieval_heads.top_heads(np.ones((2, 3)), 0.34)
  assert head_edits.pairs_of(same) == ((0, 0), (0, 1))


def test_what_does_not_fit():
  weights, tokens = _looking_at({}, 5), np.zeros((1, 5), int)
  answer = np.ones((1, 5), bool)
  score = retrieval_heads.retrieval_score
  with pytest.raises(ValueError, match="form is 'sets'"):
    score(weights, tokens, answer, form="sets")
  with pytest.raises(ValueError, match=r"must be \[1, heads, 4, 4\]"):
    score(weights, tokens[:, 1:], answer)
  with pytest.raises(ValueError, match=r"answer has shape \(1, 4\)"):
    score(weights, tokens, answer[:, 1:])
  with pytest.raises(ValueError, match=r"source has shape \(5,\)"):
    score(weights, tokens, answer, answer[0])
  with pytest.raises(ValueError, match=r"fraction is 5; it"):
    retrieval_heads.top_heads(np.ones((2, 3)), 5)
