"""What a model with random weights writes: its skeleton holds, nothing else."""

import io

import pytest

from evaluation import structured
from input_pipeline.sequences import records
from models.transformer import Transformer
from tasks import record_filling
from tests.models import language

SOURCE = records.Records(fields=("who", "job"), least=1, most=2, budget=3)
RECORDS = record_filling.unseen(SOURCE, 5)
SENTENCES = [record.sentence for record in RECORDS]


@pytest.fixture(scope="module")
def fill():
  model = Transformer(
    vocabulary_size=SOURCE.vocabulary_size + 1,
    width=8,
    depth=1,
    heads=2,
    mlp_width=8,
    causal=False,
  )
  variables = language.variables(model)
  return lambda sentences=SENTENCES, **options: record_filling.fill(
    model, variables, SOURCE, sentences, **options
  )


def scores(texts):
  return structured.structured_scores(
    texts, [r.values for r in RECORDS], SENTENCES, SOURCE.fields
  )


@pytest.mark.parametrize(
  ("options", "executed"),
  [
    ({"steps": 4}, 3),
    ({"steps": 4, "nulls": False}, 3),
    ({"steps": 4, "order": "remask"}, 4),
    ({"steps": 2, "temperature": 2.0}, 2),
  ],
)
def test_with_a_skeleton_everything_is_a_record(fill, options, executed):
  texts, steps = fill(**options)
  assert steps == executed
  assert len(set(texts)) > 1
  for text in texts:
    parsed = structured.parse(text, SOURCE.fields)
    assert (parsed.valid, parsed.adherent) == (True, True)
    assert text.startswith('{\n  "who": "')
  assert scores(texts)["schema_compliance"] == 1
  assert scores(texts)["hallucination_rate"] > 0.5


def test_without_a_skeleton_nothing_is(fill):
  texts, steps = fill(scaffold=False, steps=4)
  assert steps == 4
  assert scores(texts)["structure_validity"] == 0


def test_the_flag_is_of_the_prompt_and_a_seed_of_the_draws(fill, monkeypatch):
  # No row depends on those beside it.
  alone, _ = fill(SENTENCES[:2], steps=2)
  assert alone == fill(steps=2)[0][:2]
  flags, prompt = [], records.Records.prompt

  def watched(self, sentence, *, padded):
    flags.append(padded)
    return prompt(self, sentence, padded=padded)

  monkeypatch.setattr(records.Records, "prompt", watched)
  for nulls in (False, True):
    fill(SENTENCES[:1], steps=2, nulls=nulls)
  assert flags == [False, True]
  drawn = [
    fill(SENTENCES[:2], steps=2, temperature=2.0, seed=seed)[0]
    for seed in (0, 0, 1)
  ]
  assert drawn[0] == drawn[1] != drawn[2]


def test_sentences_come_before_their_records(monkeypatch):
  monkeypatch.setattr(
    record_filling,
    "fill",
    lambda *given, **options: (["{}"] * len(given[3]), 1),
  )
  for prompt, expected in (
    ("who AB", "who AB\n{}\n"),
    (["who AB", "job C"], "who AB\n{}\n\njob C\n{}\n"),
    ((), "".join(f"{s}\n{{}}\n\n" for s in SENTENCES[:3])[:-1]),
  ):
    output = io.StringIO()
    record_filling.write(None, {}, SOURCE, prompt=prompt, output=output)
    assert output.getvalue() == expected


def test_a_sentence_that_is_too_long(fill):
  with pytest.raises(ValueError, match="there is room for 15"):
    fill(["who ABCDEFG,job ABCDEFG"])
