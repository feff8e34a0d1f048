"""The fields of `config.data` for language."""

import ml_collections
from ml_collections import config_dict

from input_pipeline import checks, stream

FORMATS = ("text", "jsonl", "tfds")
PACKINGS = ("documents", "stream")


def default_config() -> ml_collections.ConfigDict:
  """Bytes of the text that comes with Python, in rows of whole documents."""
  config = ml_collections.ConfigDict()
  # Paths and globs ("corpus/**/*.txt"), with commas between them; with
  # format="tfds" the name of a prepared data set. "" is the embedded text, see
  # `standard_library.py`, which is split by file.
  config.files = ""
  # "text": a file is a document; "jsonl": a line is; "tfds": an example is.
  config.format = "text"
  config.field = "text"  # Of a JSON line or of an example: where its text is.
  # What is evaluated: other files, or, if there are none, the last
  # `eval_share` of all characters of `files`.
  config.eval_files = ""
  config.eval_share = 0.1
  # Of TFDS only, as for images: its folder, and slices as "train[:90%]".
  config.data_dir = config_dict.placeholder(str)
  config.train_split = "train"
  config.eval_split = "test"

  # "bytes", "characters" (those of the whole text), or a tokenizer.json.
  config.tokenizer = "bytes"
  # A document follows an end-of-text token and ends with one, if the tokeniser
  # has it. Without one nothing predicts a first token, which is not counted.
  config.end_of_text = True

  config.length = 256  # Tokens of a row.
  # "documents": rows hold whole documents, and pieces of those that are longer,
  # which do not see each other. "stream": rows are cut from all documents, one
  # after another.
  config.packing = "documents"
  # Of a stream: rows begin at random places instead of one after another.
  config.random_offsets = False
  # Targets between one window of an evaluation and the next: all but the last
  # `eval_stride` of a window are context. 0 is `length`: no context.
  config.eval_stride = 0

  # Threads that read ahead, and processes with as many each; see
  # `input_pipeline.stream`.
  config.num_threads = 1
  config.num_workers = 0
  return config


def check_config(config: ml_collections.ConfigDict) -> None:
  """Raises `ValueError` for fields of which no rows can be made.

  Files, splits and tokenisers are checked where they are opened.
  """
  stream.check_reading(config)
  checks.check_integer("length", config.length, 1)
  checks.check_integer("eval_stride", config.eval_stride, 0)
  if config.eval_stride > config.length:
    raise ValueError(
      f"eval_stride is {config.eval_stride}, but a window of length="
      f"{config.length} would leave targets out: it must not be longer."
    )
  for name, known in (("format", FORMATS), ("packing", PACKINGS)):
    if config[name] not in known:
      raise ValueError(
        f"{name} is {config[name]!r}, but it must be one of {', '.join(known)}."
      )
  if not 0 < config.eval_share < 1:
    raise ValueError(
      f"eval_share is {config.eval_share}, but it must be above 0 and below 1."
    )
  if config.random_offsets and config.packing != "stream":
    raise ValueError(
      "random_offsets=True cuts rows anywhere, which only packing='stream' "
      f"allows, but packing is {config.packing!r}."
    )
  if config.format == "tfds" and (config.eval_files or not config.files):
    raise ValueError(
      "format='tfds' takes the name of a data set in files and its part for "
      f"evaluation in eval_split, but files is {config.files!r} and "
      f"eval_files is {config.eval_files!r}."
    )
