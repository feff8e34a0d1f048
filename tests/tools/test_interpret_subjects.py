"""The model that studies look into, and the questions that it is asked."""

import jax
import numpy as np
import pytest

import interpret
from input_pipeline.sequences import digits_grid
from models import decoding
from tools import grid_questions, interpret_subjects
from tools.interpret_studies import imbalanced_attention


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
  folder = tmp_path_factory.mktemp("shared")
  return interpret_subjects.digits_grid(folder, 0, "test")


def test_image_tokens_are_digits(subject):
  questions = grid_questions.ask(subject.source, "which", 3)
  assert subject.model.image_tokens(questions.images.shape) == 16
  assert questions.grids.shape == (3, 4, 4)


@pytest.mark.parametrize("kind", ["which", "how_many", "is_there", "list"])
def test_questions_have_true_answers(subject, kind):
  words = subject.source.words
  questions = grid_questions.ask(subject.source, kind, 20)
  more = grid_questions.ask(subject.source, kind, 22)
  assert questions.images.min() == -1
  assert questions.images.max() == 1
  for i, grid in enumerate(questions.grids):
    np.testing.assert_array_equal(more.images[i], questions.images[i])
    asked = [words[token] for token in questions.prompts[i]]
    answer = words[questions.answers[i]]
    assert asked[0] == kind
    if kind == "which":
      _, row, _, column = asked[1].split("_")
      assert answer == str(grid[int(row), int(column)])
    elif kind == "how_many":
      assert answer == str((grid == int(asked[1])).sum())
    elif kind == "is_there":
      there = int(asked[1]) in grid
      assert (answer, questions.groups[i]) == (
        ("yes", "present") if there else ("no", "absent")
      )
    else:
      assert answer == str(grid.min())
  other = grid_questions.ask(subject.source, kind, 20, seed=1)
  assert (other.grids != questions.grids).any()


def test_accuracies_are_of_the_likeliest_word(subject):
  questions = grid_questions.ask(subject.source, "is_there", 30)
  logits = jax.jit(subject.model.apply)(
    subject.variables, questions.prompts, questions.images
  )
  told = np.asarray(logits)[:, -1].argmax(-1)
  # What is said most is right once it is the answer.
  questions = questions._replace(
    answers=np.where(np.arange(30) % 3 == 0, told, (told + 1) % 20)
  )
  found = grid_questions.accuracies(subject.model, subject.variables, questions)
  right = np.arange(30) % 3 == 0
  absent = questions.groups == "absent"
  assert 0 < absent.sum() < 30
  np.testing.assert_allclose(found["absent"], right[absent].mean())
  np.testing.assert_allclose(found["present"], right[~absent].mean())
  np.testing.assert_allclose(found["hallucination"], 1 - right[absent].mean())


def test_lists_are_decoded(subject):
  questions = grid_questions.ask(subject.source, "list", 4)
  said = grid_questions.listed(
    subject.model, subject.variables, questions, subject.source
  )
  first = grid_questions.first_logits(
    subject.model, subject.variables, questions
  ).argmax(-1)
  assert len(said) == 4
  for row, word in zip(said, np.asarray(first), strict=True):
    assert all(0 <= digit <= 9 for digit in row)
    assert word > 9 or row[0] == word


def test_scores_of_lists():
  grids = np.array([[[1, 2], [3, 3]], [[4, 4], [4, 4]]])
  scores = grid_questions.list_scores([[1, 2, 9, 9, 8], [4]], grids)
  assert scores == {
    "recall": pytest.approx((2 / 3 + 1) / 2),
    "hallucinated": 1.0,
    "precision": 3 / 5,
    "exact": 0.5,
  }
  assert grid_questions.list_scores([[], []], grids)["precision"] == 0.0


def test_a_kind_that_the_source_lacks():
  with pytest.raises(ValueError, match="with listing=True of list"):
    grid_questions.ask(digits_grid.DigitsGrid(), "list", 1)


@pytest.mark.parametrize(
  "name", ["layer_1/mixer/head_outputs", "vision_trunk/block_0/hidden_state"]
)
def test_lists_are_decoded_with_edits(subject, name):
  """As if each word were told of the whole text so far, with the edit."""
  questions = grid_questions.ask(subject.source, "list", 3)

  def reverse(value, site):
    del site
    return -3 * value[..., ::-1]

  model = interpret.edited(subject.model, {name: reverse})
  options = {"max_tokens": 4, "stop": ()}
  said = decoding.generate(
    model,
    subject.variables,
    questions.prompts.tolist(),
    images=questions.images,
    **options,
  )
  text = np.concatenate([questions.prompts, np.array(said)[:, :-1]], axis=1)
  logits, _ = interpret.run(
    subject.model,
    subject.variables,
    (text, questions.images),
    edit={name: reverse},
  )
  np.testing.assert_array_equal(np.asarray(logits).argmax(-1), said)
  plain = subject.model.apply(subject.variables, text, questions.images)
  assert abs(logits - plain).max() > 1e-3


def test_a_wrong_name_in_the_vit_is_refused(subject):
  questions = grid_questions.ask(subject.source, "list", 1)
  model = interpret.edited(
    subject.model, {"vision_trunk/block_7/hidden_state": lambda x, site: x}
  )
  with pytest.raises(ValueError, match="no tap to edit 'vision_trunk/block_7"):
    grid_questions.listed(model, subject.variables, questions, subject.source)


def test_the_weight_of_the_image_is_that_of_each_layer(subject):
  questions = grid_questions.ask(subject.source, "which", 5)
  mass = lambda **options: imbalanced_attention.image_mass(
    subject, questions, options, 0
  )
  plain, boosted = mass(), mass(alpha=0.7, beta=0.4)
  # The same program as of the first masses.
  maps = imbalanced_attention._maps(
    decoding.hashable(subject.model),
    subject.variables,
    questions.prompts,
    questions.images,
  )
  for layer in range(2):
    weights = np.asarray(maps[layer])
    image = weights[:, :, -1, :16].sum(-1).mean()
    np.testing.assert_allclose(plain[f"layer_{layer}"], image, rtol=1e-5)
  first = weights[:, :, -1, 0].mean()
  np.testing.assert_allclose(plain["first_token"], first, rtol=1e-5)
  # The first layer is not boosted.
  np.testing.assert_allclose(plain["layer_0"], boosted["layer_0"], rtol=1e-5)
  assert boosted["layer_1"] > plain["layer_1"] + 1e-4
  assert plain["marked"] + 1e-4 < boosted["marked"] < boosted["layer_1"]
