"""Templates against the golden one of the fact sheet, and null words."""

import json

import numpy as np
import pytest

from generation import schema_templates

MASK = 256


def encode(text):
  return list(text.encode())


def build(fields, budgets, **options):
  options = {"encode": encode, "mask": MASK, **options}
  return schema_templates.build_template(fields, budgets, **options)


def test_the_template_of_bytes():
  tokens, slot_mask, segments = build(("name", "born"), (4, 3))
  assert len(tokens) == 37
  assert np.flatnonzero(slot_mask).tolist() == [13, 14, 15, 16, 31, 32, 33]
  assert np.flatnonzero(segments == 0).tolist() == [13, 14, 15, 16]
  assert np.flatnonzero(segments == 1).tolist() == [31, 32, 33]
  np.testing.assert_array_equal(slot_mask, segments >= 0)
  np.testing.assert_array_equal(slot_mask, tokens == MASK)
  assert (~slot_mask).mean() == pytest.approx(0.810811, abs=1e-6)
  text = bytes(np.where(slot_mask, ord("x"), tokens).tolist()).decode()
  assert text == '{\n  "name": "xxxx",\n  "born": "xxx"\n}'
  fenced = build(("name", "born"), (4, 3), fence=True)
  begin = b"```json\n"
  np.testing.assert_array_equal(fenced.tokens, [*begin, *tokens])
  assert fenced.slot_mask[len(begin) :].tolist() == slot_mask.tolist()


def test_pieces_are_encoded_one_by_one_and_names_are_escaped():
  pieces = []

  def watched(text):
    pieces.append(text)
    return encode(text)

  template = build(('a"b', "ü"), 2, encode=watched)
  assert pieces == ["{\n", '  "a\\"b": "', '",\n', '  "ü": "', '"\n', "}"]
  filled = np.where(template.slot_mask, ord("x"), template.tokens)
  read = json.loads(bytes(filled.tolist()).decode())
  assert read == {'a"b': "xx", "ü": "xx"}


@pytest.mark.parametrize(
  ("fields", "budgets", "options", "message"),
  [
    ((), 2, {}, r"fields=\(\) must be one or more"),
    ("name", 2, {}, "fields='name' must be one or more names"),
    (("a", "a"), 2, {}, "all of them different"),
    (("a", "b"), (2,), {}, r"budgets=\(2,\) must have a number"),
    (("a", "b"), (2, 0), {}, "1 or more, for each of 2 fields"),
    (("a",), 1, {"mask": ord("{")}, "mask=123 is a token of the skeleton"),
  ],
)
def test_templates_that_cannot_be(fields, budgets, options, message):
  with pytest.raises(ValueError, match=message):
    build(fields, budgets, **options)


def test_what_breaks_a_string_is_unfit():
  texts = [*map(chr, range(128)), "ü", 'a"', "<none>", ""]
  unfit = schema_templates.unfit_tokens(texts)
  expected = [*range(32), ord('"'), ord("\\"), 129, 131]
  assert list(unfit) == expected
  for token, text in enumerate(texts):
    if token not in unfit:
      assert json.loads(f'"{text}"') == text


@pytest.mark.parametrize(
  ("value", "expected"),
  [
    ("Einstein<none><none>", "Einstein"),
    ("Einstein", "Einstein"),
    ("<none>", ""),
    ("", ""),
    ("<no", ""),
    ("Einstein<none><no", "Einstein"),
    # Not known to be a null word.
    ("a<", "a<"),
    ("a<none>b", "a<none>b"),
    ("a<none>b<none>", "a<none>b"),
    ("a<none> ", "a<none> "),
  ],
)
def test_null_words_at_the_end_are_dropped(value, expected):
  assert schema_templates.strip_null(value) == expected
  own = value.replace("<none>", "#")
  if "<" not in own:
    expected = expected.replace("<none>", "#")
    assert schema_templates.strip_null(own, "#") == expected


def test_a_null_word_has_letters():
  with pytest.raises(ValueError, match="null='' has to be"):
    schema_templates.strip_null("a", "")
