r"""Trains a byte-level BPE tokeniser on text.

  python -m tools.train_tokenizer --files='corpus/*.txt' \
    --vocabulary_size=8192 --output=tokenizer.json
  python train.py --config=configs/language.py:tiny --workdir=runs/language \
    --config.data.files='corpus/*.txt' --config.data.tokenizer=tokenizer.json

Its alphabet has all 256 bytes, so any text has ids and comes back as it went
in, and `<|endoftext|>` separates documents. It learns from what a run with the
same options would train on, and never from the text for evaluation. Without
`--files` that is the text that comes with Python.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

import storage
from input_pipeline import text
from input_pipeline.text import corpus
from training import cli, console

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> str:
  """Learns merges, and returns the tokenizer.json.

  Args:
    texts: what to learn from.
    vocabulary_size: with the 256 bytes and the end-of-text token.

  Raises:
    ValueError: if these alone are more.
  """
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  least = len(alphabet) + 1
  if vocabulary_size < least:
    raise ValueError(
      f"vocabulary_size is {vocabulary_size}, but all bytes and the end of "
      f"text are {least}."
    )
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocabulary_size,
    initial_alphabet=alphabet,
    special_tokens=[END_OF_TEXT],
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  return tokenizer.to_str(pretty=True)


def main(argv: Sequence[str] | None = None) -> None:
  """Reads the command line, trains and writes."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  config = text.default_config()
  for name in ("files", "format", "field", "eval_files", "train_split"):
    parser.add_argument(f"--{name}", default=config[name])
  parser.add_argument("--data_dir")
  parser.add_argument("--eval_share", type=float, default=config.eval_share)
  parser.add_argument("--vocabulary_size", type=int, default=8192)
  parser.add_argument("--output", default="tokenizer.json")
  options = vars(parser.parse_args(argv))
  size, output = options.pop("vocabulary_size"), options.pop("output")
  config.update(options)
  try:
    documents = corpus.open_corpus(config).documents("train")
    trained = train_tokenizer((d.text for d in documents), size)
    storage.write_whole(storage.path(output), trained)
  except cli.USER_ERRORS as error:
    sys.exit(f"{type(error).__name__}: {error}")
  console.say(
    f"wrote {output}; use it with --config.data.tokenizer="
    f"{storage.quote(output)}"
  )


if __name__ == "__main__":
  main()
