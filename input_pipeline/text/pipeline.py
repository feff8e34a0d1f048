"""Batches of rows of tokens for training and for evaluation.

A row is a function of its position in one global stream, as an image is; see
`input_pipeline.stream`.
"""

import dataclasses
from collections.abc import Sequence

import grain
import ml_collections
import numpy as np

from input_pipeline import stream
from input_pipeline.text import rows as rows_lib
from input_pipeline.text import tokenizers
from input_pipeline.text.corpus import open_corpus
from input_pipeline.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class TextInfo:
  """What has to be known of the text before a model is made.

  Attributes:
    vocabulary_size: ids that tokens have.
    tokenizer: that text and tokens are converted with.
    num_eval_examples: rows of the evaluation.
    eval_tokens: targets that it counts.
    eval_bytes: UTF-8 bytes that they stand for.
    source: number, bytes and SHA-256 of the documents that were opened for it;
      unless they are in files of their own, those to train on are among them.
    num_train_examples: not known, as packing the text to train on takes time.
  """

  vocabulary_size: int
  tokenizer: Tokenizer
  num_eval_examples: int = 0
  eval_tokens: int = 0
  eval_bytes: int = 0
  source: dict[str, int | str] = dataclasses.field(default_factory=dict)
  num_train_examples: int | None = None


def dataset_info(config: ml_collections.ConfigDict) -> TextInfo:
  """Opens what evaluation needs.

  Raises:
    ValueError: for files or a tokeniser that do not fit, or no text.
  """
  corpus = open_corpus(config)
  tokens = corpus.tokens("eval")
  return TextInfo(
    vocabulary_size=corpus.tokenizer.vocabulary_size,
    tokenizer=corpus.tokenizer,
    num_eval_examples=_eval_rows(config).num_rows,
    # Nothing predicts the first of a sequence. End-of-text, which may be the
    # first of one and the last of another, has no bytes.
    eval_tokens=int(np.maximum(tokens.lengths - 1, 0).sum()),
    eval_bytes=int(tokens.sizes.sum() - tokens.sizes[tokens.starts].sum()),
    source=corpus.describe(),
  )


def tokenizer_info(config: ml_collections.ConfigDict) -> TextInfo:
  """What is known without any text, for those who bring their own.

  Raises:
    ValueError: for a tokeniser that is not there or is made of a text.
  """
  tokenizer = tokenizers.create(config.tokenizer, ())
  return TextInfo(tokenizer.vocabulary_size, tokenizer)


def num_train_examples(config: ml_collections.ConfigDict) -> int:
  """Rows that have all tokens to train on once: an epoch."""
  return _train_rows(config).num_rows


def train_iterator(
  config: ml_collections.ConfigDict,
  *,
  seed: int,
  global_batch_size: int,
  rows: Sequence[int] | None = None,
) -> stream.TrainIterator:
  """Endless shuffled batches: the rows of this process.

  Row n of the stream is a function of the config, `seed` and n, and batch k
  has those from `k * global_batch_size`. Each epoch has its own order, and
  epochs follow each other without a gap.

  Args:
    config: `config.data`, see `config.default_config`.
    seed: of the order, and of random offsets.
    global_batch_size: rows in a batch of all processes together.
    rows: which of them this process reads, ascending; all by default.

  Returns:
    An iterator of dicts of arrays `[local_batch, length]`: tokens int32, what
    goes in; targets int32, the token after each; weights float32, 1 where that
    is to be predicted and 0 elsewhere; segments int32, which number from 1 the
    documents of a row, or pieces of one, that do not see each other; and
    positions int32, of a token in its segment. Padding has segment 0 and
    position -1.

  Raises:
    ValueError: for rows that no batch has, and for a config that does not fit.
  """
  rows = stream.check_rows(rows, global_batch_size)
  read = _train_rows(config)
  examples = stream.shuffled(read.num_rows, read.read, seed=seed)
  return stream.TrainIterator(
    examples, config, batch_size=global_batch_size, rows=rows
  )


def eval_batches(
  config: ml_collections.ConfigDict,
  *,
  batch_size: int,
  rows: Sequence[int] | None = None,
) -> grain.IterDataset:
  """Every target of the evaluation text once: the rows of this process.

  Targets have weight 1 in one row only; elsewhere they are context. All
  processes have the same number of batches, the last ones are padded.

  Args:
    config: `config.data`, see `config.default_config`.
    batch_size: rows in a batch of all processes together.
    rows: which of them this process reads, ascending; all by default.

  Returns:
    An iterable of dicts as `train_iterator` has them, and bytes float32
    `[local_batch, length]`, of the text that a target stands for. It can be
    iterated again.

  Raises:
    ValueError: as `train_iterator`.
  """
  rows = stream.check_rows(rows, batch_size)
  read = _eval_rows(config)
  num_batches = -(-read.num_rows // batch_size)
  examples = grain.MapDataset.range(num_batches * batch_size).map(read.read)
  return stream.batches_of_rows(
    examples, config, batch_size=batch_size, rows=rows
  )


def _train_rows(
  config: ml_collections.ConfigDict,
) -> rows_lib.SpanRows | rows_lib.RandomRows:
  tokens = open_corpus(config).tokens("train")
  if config.random_offsets:
    return rows_lib.RandomRows(tokens, config.length)
  rows = rows_lib.SpanRows(tokens, config.length, config.length)
  _check_rows(rows, "train on")
  return rows


def _eval_rows(config: ml_collections.ConfigDict) -> rows_lib.SpanRows:
  tokens = open_corpus(config).tokens("eval")
  stride = config.eval_stride or config.length
  rows = rows_lib.SpanRows(tokens, config.length, stride, with_bytes=True)
  _check_rows(rows, "evaluate")
  return rows


def _check_rows(rows: rows_lib.SpanRows, use: str) -> None:
  if not rows.num_rows:
    raise ValueError(
      f"The text to {use} has no token that another one comes before: give a "
      "longer one."
    )
