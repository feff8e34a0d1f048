"""Questions about digits on a grid, answered again from the image."""

import numpy as np
import pytest

from input_pipeline import digits
from input_pipeline.sequences.digits_grid import GROUPS, DigitsGrid


def _read(image, split):
  """The digits of an image, found among all of its split."""
  pixels, labels = digits.load(split)
  known = {
    np.round(x * (255 / 16)).astype(np.uint8).tobytes(): label
    for x, label in zip(pixels, labels, strict=True)
  }
  side = len(image) // 8
  cell = lambda y, x: image[8 * y : 8 * y + 8, 8 * x : 8 * x + 8, 0]
  return np.array(
    [
      [known[np.ascontiguousarray(cell(y, x)).tobytes()] for x in range(side)]
      for y in range(side)
    ]
  )


def _answer(grid, question):
  if question[0] == "which":
    return str(grid[int(question[2]), int(question[4])])
  count = (grid == int(question[1])).sum()
  if question[0] == "how_many":
    return str(count)
  return "yes" if count else "no"


@pytest.mark.parametrize(
  ("split", "own"), [("train", "train"), ("eval", "test")]
)
def test_answers_follow_from_the_image(split, own):
  source = DigitsGrid(questions=5)
  groups = []
  for seed in range(40):
    example = source.example(np.random.default_rng(seed), split)
    assert example["image"].shape == (32, 32, 1)
    assert example["image"].dtype == np.uint8
    grid = _read(example["image"], own)
    words = [source.words[i] for i in example["tokens"]]
    (ends,) = np.nonzero(example["weights"])
    assert len(ends) == 5
    begin = 0
    for end in ends:
      assert words[end] == "?"
      answer = source.words[example["targets"][end]]
      assert answer == _answer(grid, words[begin:end])
      group = GROUPS[example["group"][end]]
      told = {"yes": "present", "no": "absent"}.get(answer, words[begin])
      assert group == told
      groups.append(group)
      begin = end + 2
    assert set(words[begin:]) <= {"?"}
    np.testing.assert_array_equal(
      example["tokens"][1:], example["targets"][:-1]
    )
  # A half of the questions for a digit is of one that is absent.
  share = groups.count("absent") / (
    groups.count("absent") + groups.count("present")
  )
  assert set(groups) == set(GROUPS)
  assert 0.3 < share < 0.7


def test_kinds_and_sizes():
  source = DigitsGrid(side=2, questions=3, kinds=("which",))
  example = source.example(np.random.default_rng(0), "train")
  assert example["image"].shape == (16, 16, 1)
  assert set(example["group"]) == {0}
  assert source.vocabulary_size == 10 + 8
  assert DigitsGrid().vocabulary_size == 17 + 8


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"side": 10}, "side is 10, but it must be from 1 to 9"),
    ({"questions": 0}, "questions is 0"),
    ({"kinds": ("what",)}, "must have some of which, how_many, is_there"),
    ({"kinds": ("list",)}, "is_there, and with listing=True of list"),
    (
      {"side": 1, "kinds": ("which",), "questions": 2, "repeats": False},
      r"questions is 2, but with .* there are 1 different",
    ),
  ],
)
def test_fields_that_do_not_fit(fields, message):
  with pytest.raises(ValueError, match=message):
    DigitsGrid(**fields)


OPTIONS = {
  "questions": 6,
  "kinds": ("which", "how_many", "is_there", "list"),
  "listing": True,
  "repeats": False,
  "terse": True,
}


def _conversation(source, example):
  """Questions and answers in words, read off a row."""
  words = [
    source.words[i] for i in (*example["tokens"], example["targets"][-1])
  ]
  # Place i is a target if weight i - 1 counts.
  counts = np.concatenate([[0], example["weights"]]) > 0
  found, question, answer = [], [], []
  for word, is_answer in zip(words, counts, strict=True):
    if answer and not is_answer:
      found.append((question, answer))
      question, answer = [], []
    (answer if is_answer else question).append(word)
  if answer:
    found.append((question, answer))
    question = []
  assert set(question) <= {"?"}
  return found


def test_lists_end_their_rows_and_nothing_is_asked_twice():
  source = DigitsGrid(**OPTIONS)
  lists = lengths = 0
  for seed in range(40):
    example = source.example(np.random.default_rng(seed), "eval")
    assert len(example["tokens"]) == source.length == 3 * 5 + 10
    grid = _read(example["image"], "test")
    conversation = _conversation(source, example)
    questions = [tuple(question) for question, _ in conversation]
    assert len(set(questions)) == len(questions)
    for i, (question, answer) in enumerate(conversation):
      if question[0] == "list":
        assert i == len(conversation) - 1
        assert answer == [*map(str, sorted(set(grid.ravel()))), "end"]
        lists, lengths = lists + 1, lengths + len(answer)
        continue
      plain = question
      if question[0] == "which":
        _, row, _, column = question[1].split("_")
        plain = ["which", "row", row, "column", column]
      assert answer == [_answer(grid, plain)]
    groups = example["group"][example["weights"] > 0]
    is_list = conversation[-1][0][0] == "list"
    assert (source.groups[groups[-1]] == "list") == is_list
  assert lists > 10
  assert lengths > 4 * lists


def test_rows_of_lists_alone():
  source = DigitsGrid(questions=1, kinds=("list",), listing=True)
  assert source.length == 11
  example = source.example(np.random.default_rng(0), "train")
  ((question, answer),) = _conversation(source, example)
  assert question == ["list", "?"]
  assert answer[-1] == "end"
  # Words are those of all kinds, whichever are asked.
  assert source.words == DigitsGrid(listing=True).words
  assert set(DigitsGrid().words) < set(source.words)


def test_words_before_the_image():
  """As without them, moved by as many as stand before."""
  plain, source = DigitsGrid(questions=2), DigitsGrid(questions=2, preamble=3)
  assert source.length == plain.length + 3
  nothing = source.words.index("?")
  places = set()
  for seed in range(30):
    example = source.example(np.random.default_rng(seed), "train")
    before = int(example["image_start"])
    places.add(before)
    assert (example["tokens"][:before] == nothing).all()
    assert not example["weights"][: before + 1].any()
    grid = _read(example["image"], "train")
    rest = slice(before, before + plain.length)
    moved = {k: example[k][rest] for k in ("tokens", "targets", "weights")}
    for question, answer in _conversation(source, moved):
      assert [_answer(grid, question)] == answer
  assert places == {0, 1, 2, 3}
  with pytest.raises(ValueError, match="preamble is -1"):
    DigitsGrid(preamble=-1)
