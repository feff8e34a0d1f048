"""What is printed of the tokens that a model goes on with."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from tasks import text_sampling


class Bytes:
  """The tokenizer of 256 bytes and an end of text."""

  end_of_text = 256

  def encode(self, text):
    return list(text.encode())

  def decode(self, ids):
    return bytes(i for i in ids if i < 256).decode(errors="replace")


class Characters(Bytes):
  """One that has fewer tokens, and no end of text."""

  end_of_text = None

  def encode(self, text):
    if not text.isascii():
      raise ValueError("the text has 'é' as character 0.")
    return super().encode(text)


class Script(nn.Module):
  """Says what comes after each position, whatever the tokens were."""

  script: tuple[int, ...]
  vocabulary_size: int = 257
  position_encoding: str = "learned"
  max_length: int = 100
  scale: float = 10.0

  def init_cache(self, batch, length):
    return jnp.zeros((batch, length))

  def __call__(self, tokens, positions, cache, train):
    said = jnp.asarray(self.script)[positions + 1]
    return self.scale * jax.nn.one_hot(said, self.vocabulary_size), cache


def says(text, *, before="", end=True):
  """A model that goes on from `before` with `text`."""
  return Script((*before.encode(), *text.encode(), *([256] * 100 * end)))


def flat():
  """A model for which letters are about as probable."""
  return Script(tuple(range(97, 123)) * 10, scale=1.0)


def settled(tokens, cuts, stop=()):
  """What `texts` yields of tokens that come in blocks which end at `cuts`."""
  ends = [*cuts, len(tokens)]
  blocks = [[tokens[a:b]] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
  texts = text_sampling.texts(Bytes(), [[32]], blocks, stop)
  return [text for (text,) in texts]


def test_a_character_comes_when_it_is_whole():
  tokens = list("a€😀b".encode())
  assert settled(tokens, [2, 4, 6]) == ["a", "€", "", "😀b", ""]
  assert settled(tokens, range(1, 8)) == [
    *("a", "", "", "€", "", "", ""),
    "😀b",
    "",
  ]


def test_bytes_that_are_no_character_come_at_last():
  assert settled([97, 0xE2, 0x82], [1, 2]) == ["a", "", "", "\ufffd"]
  assert settled([0xE2, 97, 98], [1, 2]) == ["", "\ufffda", "b", ""]


def test_nothing_comes_of_a_stop():
  """Nor of what could become one."""
  tokens = list(b"one two\n\nthree")
  assert settled(tokens, [8, 9], ["\n\n"]) == ["one two", "", "", ""]
  assert settled(tokens, [5, 9], ["\n\n", " twin", "e t"]) == ["on"] + [""] * 3
  assert settled(tokens, [6], [" twin"]) == ["one", " two\n\nthree", ""]
  # At the end, what could have become one is text.
  assert settled(tokens[:6], [], [" twin"]) == ["one", " tw"]


def test_the_prompt_and_its_continuation_are_all_that_is_printed(capsys):
  model = says(" is 4 € a pound.", before="Tea")
  text_sampling.write(
    model, {}, Bytes(), prompt="Tea", temperature=0.0, max_tokens=90
  )
  printed = capsys.readouterr()
  assert printed.out == "Tea is 4 € a pound."
  # The end of the text is a token, too.
  assert "19 tokens: the first 16 after" in printed.err
  assert "tokens/s" in printed.err


def test_defaults_are_those_that_the_options_say(capsys):
  signatures = [
    inspect.signature(f).parameters
    for f in (text_sampling.write, text_sampling.decoding.stream)
  ]
  for name, (default, _) in text_sampling.OPTIONS.items():
    parameter = next(s[name] for s in signatures if name in s)
    assert parameter.default == default or not (parameter.default or default)
  drawn = {"prompt": "a", "max_tokens": 20}
  texts = []
  for options in ({}, {"temperature": 0.8}, {"temperature": 0.0}):
    text_sampling.write(flat(), {}, Bytes(), **drawn, **options)
    texts.append(capsys.readouterr().out)
  assert texts[0] == texts[1] != texts[2]


def test_several_prompts_and_samples(capsys):
  model = says("abcdefgh")
  text_sampling.write(
    model,
    {},
    Bytes(),
    prompt=["a", "xyz"],
    num_samples=2,
    temperature=0.0,
    max_tokens=3,
  )
  texts = ["abcd", "abcd", "xyzdef", "xyzdef"]
  assert capsys.readouterr().out == "\n\n".join(texts)


def test_an_empty_prompt_is_a_text_from_its_beginning(capsys):
  text_sampling.write(
    says("!abc"), {}, Bytes(), prompt="", temperature=0.0, stop="c"
  )
  assert capsys.readouterr().out == "ab"


def test_as_many_tokens_as_there_are_positions_for(capsys):
  model = Script(tuple(range(97, 123)) * 10, max_length=10)
  text_sampling.write(model, {}, Bytes(), prompt="abcd", temperature=0.0)
  assert capsys.readouterr().out == "abcdefghijk"
  with pytest.raises(ValueError, match="max_length=10"):
    text_sampling.write(model, {}, Bytes(), prompt="abcd", max_tokens=8)
  with pytest.raises(ValueError, match="max_length=10"):
    text_sampling.write(model, {}, Bytes(), prompt="a" * 11)
  assert not capsys.readouterr().out


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"prompt": "é"}, "prompt='é' .*character 0"),
    ({"prompt": "ok\udcff"}, "prompt='ok.*surrogates"),
    ({"prompt": ""}, "prompt='' .*no end_of_text"),
    ({"prompt": "a", "num_samples": 0}, "num_samples=0"),
    ({"prompt": "a", "top_p": 2.0}, "top_p=2.0"),
  ],
)
def test_bad_input_prints_nothing(options, message, capsys):
  tokenizer = Characters() if options["prompt"] in ("", "é") else Bytes()
  with pytest.raises(ValueError, match=message):
    text_sampling.write(says("abc"), {}, tokenizer, **options)
  assert not capsys.readouterr().out
