"""The room of sequences: what every room promises."""

import numpy as np
import pytest

from input_pipeline import sequences


@pytest.fixture
def config():
  config = sequences.default_config()
  config.num_threads = 0
  config.train_examples = 11
  config.eval_examples = 7
  config.options.update(length=12, pairs=(1, 3), vocabulary_size=24)
  return config


def take(iterator, number):
  return [next(iterator) for _ in range(number)]


def rows_of(batches):
  return [row.tobytes() for batch in batches for row in batch["tokens"]]


def test_an_epoch_has_each_example_once(config):
  train = sequences.train_iterator(config, seed=3, global_batch_size=11)
  first, second = take(train, 2)
  assert first["tokens"].shape == (11, 12)
  assert set(rows_of([first])) == set(rows_of([second]))
  assert rows_of([first]) != rows_of([second])
  assert len(set(rows_of([first]))) == 11
  other = next(sequences.train_iterator(config, seed=4, global_batch_size=11))
  assert not set(rows_of([other])) & set(rows_of([first]))
  evaluated = [*sequences.eval_batches(config, batch_size=4)]
  assert not set(rows_of(evaluated)) & set(rows_of([first, other]))


def test_a_stream_goes_on_whatever_the_batches_are(config):
  whole = rows_of(
    take(sequences.train_iterator(config, seed=0, global_batch_size=4), 6)
  )
  train = sequences.train_iterator(config, seed=0, global_batch_size=2)
  begun = rows_of(take(train, 3))
  state = train.get_state()
  later = sequences.train_iterator(config, seed=0, global_batch_size=3)
  later.set_state(state)
  assert begun + rows_of(take(later, 6)) == whole
  part = sequences.train_iterator(
    config, seed=0, global_batch_size=4, rows=[1, 2]
  )
  expected = [row for i, row in enumerate(whole) if i % 4 in (1, 2)]
  assert rows_of(take(part, 6)) == expected


def test_evaluation_pads_with_what_does_not_count(config):
  batches = [*sequences.eval_batches(config, batch_size=4)]
  index = np.concatenate([batch["index"] for batch in batches])
  assert index.tolist() == [0, 1, 2, 3, 4, 5, 6, -1]
  weights = np.concatenate([batch["weights"] for batch in batches])
  assert (weights[-1] == 0).all()
  assert (weights[:-1].sum(1) > 0).all()
  again = sequences.eval_batches(config, batch_size=4)
  assert rows_of(again) == rows_of(again) == rows_of(batches)
  (part,) = sequences.eval_batches(config, batch_size=8, rows=[2, 5])
  assert part["index"].tolist() == [2, 5]


def test_what_is_known_before_a_model_is_made(config):
  config.eval_options.update(length=20, pairs=(5,))
  info = sequences.dataset_info(config)
  assert (info.vocabulary_size, info.classes) == (24, 24)
  assert (info.num_train_examples, info.num_eval_examples) == (11, 7)
  assert info.groups == ("5_pairs",)
  assert sequences.num_train_examples(config) == 11
  assert info.arrays["tokens"].shape == (12,)
  assert info.eval_arrays["tokens"].shape == (20,)
  assert info.eval_arrays["group"].shape == ()
  (batch,) = sequences.eval_batches(config, batch_size=7)
  assert batch["tokens"].shape == (7, 20)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"source": "mqr"}, "source 'mqr'; did you mean mqar"),
    ({"train_examples": 0}, "train_examples is 0"),
    ({"eval_examples": -1}, "eval_examples is -1"),
    ({"num_threads": -1}, "num_threads is -1"),
    ({"options": {"lenght": 4}}, "'lenght'; did you mean length"),
    (
      {"eval_options": {"vocabulary_size": 30}},
      "vocabulary_size is 30; it must be 24, as in training",
    ),
  ],
)
def test_fields_that_do_not_fit(config, fields, message):
  config.update(fields)
  with pytest.raises(ValueError, match=message):
    sequences.dataset_info(config)
