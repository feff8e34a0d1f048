"""Encodes captions: the last hidden states of a transformer of ours."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

import experiment
import storage
import tasks
from experiment.weights import load_weights
from input_pipeline.text import tokenizers
from input_pipeline.text.documents import Document
from input_pipeline.text.tokenizer import Tokenizer
from models import pretrained
from training import fingerprints


@dataclasses.dataclass(frozen=True)
class TextEncoder:
  """A language model with its tokeniser.

  Attributes:
    model: a `models.transformer.Transformer`.
    variables: of the model.
    tokenizer: whose ids it knows.
  """

  model: nn.Module
  variables: Mapping[str, Any]
  tokenizer: Tokenizer

  @property
  def fingerprint(self) -> str:
    """Of the weights."""
    return fingerprints.digest(self.variables)

  def tokenize(self, captions: Sequence[Document]) -> list[np.ndarray]:
    """The ids of each caption, without special tokens.

    Raises:
      ValueError: for text that has no ids, or an id that the model lacks.
    """
    ids = [ids for ids, _ in self.tokenizer.encode_documents(captions)]
    most = max((int(i.max()) for i in ids if len(i)), default=0)
    if most >= self.model.vocabulary_size:
      raise ValueError(
        f"the tokeniser has id {most}, but the encoder knows "
        f"{self.model.vocabulary_size}: it is another model's."
      )
    return ids

  def encode(self, ids: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
    """What the model's head would read, float32 [captions, tokens, width].

    Args:
      ids: of each caption; the result has as many tokens as the longest.
      batch_size: captions in a batch. What is after a caption's end is zero.
    """
    length = max(map(len, ids))
    states = []
    # None: no bar where nobody watches a terminal.
    starts = tqdm.trange(
      0, len(ids), batch_size, desc="encoding", unit="batch", disable=None
    )
    for start in starts:
      tokens, real = _pad(ids[start : start + batch_size], batch_size, length)
      positions = np.where(real, np.arange(length)[None, :], -1)
      found = np.asarray(self._run(tokens, positions), np.float32)
      states.append(np.where(real[..., None], found, 0))
    return np.concatenate(states)[: len(ids)]

  def _run(self, tokens: np.ndarray, positions: np.ndarray) -> jax.Array:
    return _hidden_states(self.model, self.variables, tokens, positions)


@functools.partial(jax.jit, static_argnums=0)
def _hidden_states(
  model: nn.Module,
  variables: Mapping[str, Any],
  tokens: jax.Array,
  positions: jax.Array,
) -> jax.Array:
  states = model.apply(
    variables, tokens, positions=positions, method="hidden_states"
  )
  return states.astype(jnp.float32)


def _pad(
  ids: Iterable[np.ndarray], rows: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
  """Ids as int32 [rows, length], and which of them are real."""
  tokens = np.zeros((rows, length), np.int32)
  real = np.zeros((rows, length), bool)
  for row, each in enumerate(ids):
    tokens[row, : len(each)] = each
    real[row, : len(each)] = True
  return tokens, real


def load(source: str, tokenizer: str = "") -> TextEncoder:
  """Loads a language model.

  Args:
    source: the workdir of a run, of which it is the last checkpoint and the
      moving average if there is one; or what `pretrained.from_huggingface`
      takes.
    tokenizer: a tokenizer.json; "" for that of the run or of the folder.

  Raises:
    ValueError: if the model is none of text or cannot be read.
    CheckpointError: if the checkpoint cannot be read.
  """
  if not _is_run(source):
    model, variables = pretrained.from_huggingface(source)
    path = tokenizer or str(pathlib.PurePath(source) / "tokenizer.json")
    return TextEncoder(model, variables, tokenizers.create(path, ()))
  config = experiment.load_trained(source)
  if config.task != "language_modeling":
    raise ValueError(
      f"encoder {source!r} is a run of task={config.task!r}; text needs one of "
      "'language_modeling', or a folder of the Hugging Face hub."
    )
  if tokenizer:
    raise ValueError(
      f"tokenizer is {tokenizer!r}, but the run in {source!r} has its own."
    )
  info = tasks.find(config.task).sampling_info(config)
  setup = experiment.create_evaluation(config, info=info)
  with jax.set_mesh(setup.mesh):
    variables = load_weights(setup, source)
  # To one device, as batches are.
  variables = jax.device_put(jax.device_get(variables))
  return TextEncoder(setup.task.model, variables, info.tokenizer)


def _is_run(source: str) -> bool:
  folder = storage.path(source)
  return (folder / "checkpoints").is_dir()
