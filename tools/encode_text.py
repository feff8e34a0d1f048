r"""Encodes captions once, for a generator to learn images of texts.

  python -m tools.encode_text --encoder=runs/language --out=text.npz \
    --config=configs/lina.py:digits --template="the digit {name}"
  python -m tools.encode_text --encoder=gpt2 --out=text.npz \
    --captions=captions.jsonl --max_tokens=256

`--encoder` is the workdir of a language model's run, or a folder or repository
of the Hugging Face hub of which `models.pretrained` knows the architecture; a
text is its last hidden state. Captions are of classes, one a class by
`--template` and the names of the config's classes; or lines of JSON, each with
`text` and, to say whose it is, `label`, the number of a class, or `split` and
`example`, an image's place in its split. Without these, line n is class n.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

import experiment
import storage
from input_pipeline.latents import captions as captions_lib
from input_pipeline.text.documents import Document
from models import lina_layers
from tools.latents import caption_sources, text_encoder
from training import checkpoints, cli, console

DTYPES = ("float16", "float32")


def encode_text(
  encoder: str,
  out: str,
  texts: Sequence[Document],
  owners: Mapping[str, Sequence[Any]],
  *,
  tokenizer: str = "",
  max_tokens: int = 0,
  batch_size: int = 32,
  dtype: str = "float16",
) -> None:
  """Writes the file.

  Args:
    encoder: see `text_encoder.load`.
    out: the .npz file.
    texts: the captions.
    owners: "label", or "example" and "split", of each; or nothing.
    tokenizer: see `text_encoder.load`.
    max_tokens: how many a text may have, those after it are cut off; 0 for as
      many as a generator takes, and then longer ones are an error.
    batch_size: texts that are encoded together.
    dtype: of what is stored, one of `DTYPES`.

  Raises:
    ValueError: for options or texts that do not fit.
  """
  _check_options(max_tokens, batch_size, dtype)
  loaded = text_encoder.load(encoder, tokenizer)
  whole = loaded.tokenize(texts)
  ids = _cut(texts, whole, max_tokens)
  states = loaded.encode(ids, batch_size)
  stored = states.astype(dtype)
  if not np.isfinite(stored).all():
    raise ValueError(
      f"encoded texts are not finite in {dtype}: try --dtype=float32."
    )
  found = captions_lib.Captions(
    text=stored,
    lengths=np.array([len(each) for each in ids], np.int32),
    **{name: np.array(values) for name, values in owners.items()},
  )
  captions_lib.save(
    storage.path(out),
    found,
    captions=np.array([each.text for each in texts]),
    encoder=np.array(str(encoder)),
    fingerprint=np.array(loaded.fingerprint),
  )
  tokens, width = found.text_shape
  cut = sum(len(a) < len(b) for a, b in zip(ids, whole, strict=True))
  console.say(
    f"{out} has {len(texts)} texts of {tokens} tokens and width {width}"
    + (f", {cut} of them cut off" if cut else "")
    + f"; train on them with --config.data.text={storage.quote(out)} "
    f"--config.model.text_width={width}"
  )


def _check_options(max_tokens: int, batch_size: int, dtype: str) -> None:
  most = lina_layers.MAX_TEXT
  if not 0 <= max_tokens <= most:
    raise ValueError(
      f"max_tokens is {max_tokens}; it must be 1 to {most}, which a generator "
      "takes, or 0."
    )
  if dtype not in DTYPES:
    raise ValueError(f"dtype is {dtype!r}; it must be {' or '.join(DTYPES)}.")
  if batch_size < 1:
    raise ValueError(f"batch_size is {batch_size}; it must be 1 or more.")


def _cut(
  texts: Sequence[Document], ids: Sequence[np.ndarray], max_tokens: int
) -> list[np.ndarray]:
  """The first `max_tokens` ids of each text, or all.

  Raises:
    ValueError: if no text has any, or one has more than generators take.
  """
  most = lina_layers.MAX_TEXT
  longest = max(range(len(ids)), key=lambda row: len(ids[row]))
  if not len(ids[longest]):
    raise ValueError("no caption has a token.")
  if not max_tokens and len(ids[longest]) > most:
    raise ValueError(
      f"{texts[longest].name} has {len(ids[longest])} tokens, but a generator "
      f"takes {most}: cut texts off with --max_tokens."
    )
  return [each[: max_tokens or most] for each in ids]


def main(argv: Sequence[str]) -> None:
  """Reads the flags and encodes."""
  del argv
  args = flags.FLAGS
  if bool(args.template) == bool(args.captions):
    raise ValueError("Give either --captions, or --template and --config.")
  if args.captions:
    texts, owners = caption_sources.of_lines(args.captions)
  elif args.config is None:
    raise ValueError("Give --config: the images whose classes have names.")
  else:
    texts, owners = caption_sources.of_classes(args.config, args.template)
  encode_text(
    args.encoder,
    args.out,
    texts,
    owners,
    tokenizer=args.tokenizer,
    max_tokens=args.max_tokens,
    batch_size=args.batch_size,
    dtype=args.dtype,
  )


if __name__ == "__main__":
  cli.define_config_flag(
    experiment.optional_fields, load_run=experiment.load_config
  )
  flags.DEFINE_string("encoder", None, "A run, or a folder of the hub.")
  flags.DEFINE_string("out", None, "The .npz file to write.")
  flags.DEFINE_string("captions", "", "Files of JSON lines.")
  flags.DEFINE_string("template", "", "Of a class's caption, with {name}.")
  flags.DEFINE_string(
    "tokenizer", "", "A tokenizer.json; the encoder's if not."
  )
  flags.DEFINE_integer("max_tokens", 0, "Where texts are cut off; 0: nowhere.")
  flags.DEFINE_integer("batch_size", 32, "Texts that are encoded together.")
  flags.DEFINE_string("dtype", "float16", "Of what is stored, or float32.")
  flags.mark_flags_as_required(["encoder", "out"])
  cli.run(main, (*cli.USER_ERRORS, checkpoints.CheckpointError))
