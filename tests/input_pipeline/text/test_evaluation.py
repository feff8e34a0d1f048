"""Evaluation against brute force: a fixed table of logits, any tokeniser."""

import itertools

import numpy as np
import pytest

from input_pipeline import text
from input_pipeline.text import tokenizers
from input_pipeline.text.documents import Document

from .conftest import DOCUMENTS

LENGTH = 16


def log_probabilities(vocabulary_size):
  """Of the next token after each position and token."""
  logits = 2 * np.random.default_rng(0).normal(
    size=(LENGTH, vocabulary_size, vocabulary_size)
  )
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def evaluate(config, table, batch_size=3):
  """(nats, bytes, targets) of all batches together."""
  sums = np.zeros(3)
  for batch in text.eval_batches(config, batch_size=batch_size):
    nats = -table[batch["positions"], batch["tokens"], batch["targets"]]
    assert batch["tokens"].shape == (batch_size, LENGTH)
    weights = batch["weights"].astype(np.float64)
    sums += [(x * weights).sum() for x in (nats, batch["bytes"], 1)]
  return sums


def sequences(tokenizer, packing, end_of_text):
  """What is predicted: lists of (token, its bytes)."""
  end = tokenizer.end_of_text if end_of_text else None
  mark = [] if end is None else [(end, b"")]
  documents = [
    [(token, tokenizer.decode_bytes([token])) for token in tokenizer.encode(t)]
    for t in DOCUMENTS
  ]
  if packing == "stream":
    joined = [[*document, *mark] for document in documents]
    return [mark + list(itertools.chain.from_iterable(joined))]
  return [mark + document + mark for document in documents]


def brute_force(table, sequences, stride):
  """One target at a time: the first window that has it counts it."""
  nats, size, targets = 0.0, 0, 0
  for sequence in sequences:
    for i in range(1, len(sequence)):
      windows = (b for b in itertools.count(0, stride) if i <= b + LENGTH)
      position = i - 1 - next(windows)
      (token, piece), (before, _) = sequence[i], sequence[i - 1]
      nats -= table[position, before, token]
      size += len(piece)
      targets += 1
  return nats, size, targets


@pytest.mark.parametrize("packing", ["documents", "stream"])
@pytest.mark.parametrize("end_of_text", [True, False])
@pytest.mark.parametrize("name", ["bytes", "characters", "bpe"])
def test_every_target_counts_once(
  lines_config, bpe_file, name, packing, end_of_text
):
  config = lines_config
  config.update(packing=packing, end_of_text=end_of_text)
  config.tokenizer = bpe_file if name == "bpe" else name
  info = text.dataset_info(config)
  tokenizer = tokenizers.create(
    config.tokenizer, [Document("", t) for t in DOCUMENTS]
  )
  assert info.vocabulary_size == tokenizer.vocabulary_size
  table = log_probabilities(info.vocabulary_size)
  expected = sequences(tokenizer, packing, end_of_text)
  whole = sum(len(t.encode()) for t in DOCUMENTS)
  for stride in (0, 1, 5):
    config.eval_stride = stride
    actual = evaluate(config, table)
    np.testing.assert_allclose(
      actual, brute_force(table, expected, stride or LENGTH), rtol=1e-9
    )
    info = text.dataset_info(config)
    assert actual[1:].tolist() == [info.eval_bytes, info.eval_tokens]
    if end_of_text and tokenizer.end_of_text is not None:
      assert info.eval_bytes == whole
    else:
      assert info.eval_bytes < whole


def test_blocks_of_nanogpt(config, tmp_path):
  # x = data[i : i + 16] and y = data[i + 1 : i + 17], for i = 0, 16, ...
  data = "".join(map(chr, np.random.default_rng(0).integers(97, 123, 1000)))
  path = tmp_path / "text"
  path.write_text(data)
  config.update(files=str(path), tokenizer="characters", packing="stream")
  tokenizer = text.dataset_info(config).tokenizer
  held_out = data[900:]
  (batch,) = text.eval_batches(config, batch_size=7)
  for row, i in enumerate(range(0, 99, 16)):
    x, y = held_out[i : i + 16][: 99 - i], held_out[i + 1 : i + 17]
    size = len(y)
    assert tokenizer.decode(batch["tokens"][row, :size]) == x
    assert tokenizer.decode(batch["targets"][row, :size]) == y
    assert batch["weights"][row].tolist() == [1] * size + [0] * (16 - size)
  assert batch["weights"].sum() == 99


def test_context_is_never_shorter_than_length_less_stride(lines_config):
  config = lines_config
  config.update(packing="stream", eval_stride=5)
  first = True
  for batch in text.eval_batches(config, batch_size=1):
    counted = batch["positions"][batch["weights"] > 0]
    assert counted.min() == (0 if first else LENGTH - 5)
    first = False


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_batches_do_not_depend_on_processes(lines_config, batch_size):
  whole = list(text.eval_batches(lines_config, batch_size=batch_size))
  rows = text.dataset_info(lines_config).num_eval_examples
  assert len(whole) == -(-rows // batch_size)
  shares = np.array_split(np.arange(batch_size), min(batch_size, 2))
  parts = [
    list(text.eval_batches(lines_config, batch_size=batch_size, rows=share))
    for share in shares
  ]
  for k, batch in enumerate(whole):
    for name, array in batch.items():
      joined = np.concatenate([part[k][name] for part in parts])
      np.testing.assert_array_equal(joined, array)
  padding = batch_size * len(whole) - rows
  last = whole[-1]["weights"][batch_size - padding :]
  assert not last.any()
  assert (whole[-1]["positions"][batch_size - padding :] == -1).all()
