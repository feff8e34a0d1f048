"""Language modelling: the next token, from those before it."""

import io
import math
import pathlib
import shlex
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import storage
from input_pipeline import text
from tasks import text_sampling
from tasks.base import Batch, Shown, Variables, create_model
from tasks.token_task import TokenTask
from training import evaluation

TOKENIZER = "tokenizer.json"


class LanguageModeling(TokenTask):
  """Predicts each token of text; sums are over targets with weight 1.

  Rows of several documents bring their segments and positions to the model.
  Rows of a stream do not, since each is one run of tokens from position 0 on;
  so the mask is known before the program runs.
  """

  room = text
  unit = "token"
  directions = types.MappingProxyType(
    {"loss": "min", "bits_per_byte": "min", "accuracy": "max"}
  )
  counts = ("bytes",)
  curves = ("loss", "bits_per_byte")
  given = ("dtype", "vocabulary_size")
  sample_options = text_sampling.OPTIONS

  def __init__(self, config: ml_collections.ConfigDict, info: Any):
    """Makes the model, for the tokens of `info`.

    Raises:
      ValueError: for a field of the config that does not fit.
    """
    super().__init__(config, info)
    self.model = create_model(
      config, "language", vocabulary_size=info.vocabulary_size
    )
    self.units_per_example = config.data.length
    _check_model(self.model, config.data.length)

  @staticmethod
  def default_config() -> ml_collections.ConfigDict:
    """The fields that only language modelling has."""
    config = ml_collections.ConfigDict()
    config.model = ml_collections.ConfigDict(dict(name="transformer"))
    config.data = text.default_config()
    config.checkpoint = ml_collections.ConfigDict(dict(best_metric="loss"))
    return config

  def batch_spec(
    self, rows: int, *, train: bool
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """tokens, targets, weights, and what else is used, [rows, length].

    Of documents, segments and positions; in evaluation, bytes. See
    `input_pipeline.text.pipeline`.
    """
    names = {"tokens": jnp.int32, "targets": jnp.int32, "weights": jnp.float32}
    if self.config.data.packing == "documents":
      names |= {"segments": jnp.int32, "positions": jnp.int32}
    if not train:
      names["bytes"] = jnp.float32
    shape = (rows, self.config.data.length)
    return {n: jax.ShapeDtypeStruct(shape, dtype) for n, dtype in names.items()}

  def evaluate_step(
    self, variables: Variables, batch: Batch
  ) -> dict[str, jax.Array]:
    """Sums over targets: weight, loss in nats, accuracy, and bytes."""
    logits = self.logits(variables, batch)
    weights = batch["weights"]
    right = logits.argmax(-1) == batch["targets"]
    return {
      "weight": self.weight(batch),
      "loss": self.nats(logits, batch),
      "accuracy": (weights * right).sum(),
      "bytes": (weights * batch["bytes"]).sum(),
    }

  def summarize(self, totals: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Means, perplexity, and bits per byte: of sums, divided once.

    Raises:
      ValueError: if there was no target.
    """
    result = super().summarize(totals)
    loss, size = result["loss"], result["bytes"]
    bits = float(totals["loss"]) / math.log(2)
    return result | {
      # Beyond, a double overflows.
      "perplexity": math.exp(min(loss, 700.0)),
      "bits_per_byte": bits / size if size else math.nan,
      "tokens": int(totals["weight"]),
    }

  @staticmethod
  def describe(result: Mapping[str, Any]) -> str:
    """ "1.93 bits per byte, loss 1.3378 on 98304 tokens, accuracy 61.2 %"."""
    return (
      f"{result['bits_per_byte']:.4f} bits per byte, loss "
      f"{result['loss']:.4f}, accuracy {result['accuracy']:.2%} on "
      f"{result['tokens']} tokens"
    )

  @staticmethod
  def report(result: Mapping[str, Any]) -> dict[str, Any]:
    """loss, perplexity, bits_per_byte, accuracy, tokens and bytes."""
    names = "loss perplexity bits_per_byte accuracy tokens bytes"
    return {name: result[name] for name in names.split()}

  def files(self) -> Mapping[str, bytes]:
    """The tokeniser."""
    return {TOKENIZER: self.info.tokenizer.save()}

  def record(self) -> Mapping[str, Any]:
    """What the text was."""
    return {"text": self.info.source}

  @staticmethod
  def adopt(
    config: ml_collections.ConfigDict, workdir: pathlib.PurePath
  ) -> None:
    """Takes the tokeniser that the run keeps."""
    config.data.tokenizer = str(workdir / TOKENIZER)

  def show(
    self,
    variables: Variables,
    evaluations: Sequence[evaluation.SplitEvaluation],
    workdir: str,
  ) -> Shown:
    """Writes a sample into samples.txt."""
    sample = io.StringIO()
    prompt = self._prompt(evaluations[0].batches)
    text_sampling.write(
      self.model,
      variables,
      self.info.tokenizer,
      prompt=prompt,
      output=sample,
      log=io.StringIO(),
    )
    path = storage.path(workdir) / "samples.txt"
    path.write_text(sample.getvalue())
    command = f"python sample.py --weights={storage.quote(path.parent)}"
    return Shown(
      files=(path.name,),
      text=f"a sample:\n{sample.getvalue()}",
      commands=(f"{command} --prompt={shlex.quote(prompt or 'The ')}",),
    )

  def _prompt(self, batches: Iterable[Mapping[str, np.ndarray]]) -> str:
    """Nothing; or a word to go on from, where no token begins a text."""
    tokenizer = self.info.tokenizer
    if tokenizer.end_of_text is not None:
      return ""
    first = next(iter(batches))["tokens"][0]
    start = tokenizer.decode(first.tolist()).split(maxsplit=1)
    return start[0] if start else tokenizer.decode(first[:1].tolist())

  @classmethod
  def sampling_info(cls, config: ml_collections.ConfigDict) -> Any:
    """The tokeniser alone; no text is opened."""
    return text.tokenizer_info(config.data)

  def sample(self, variables: Variables, **options: Any) -> None:
    """Writes prompts and how the model goes on from them; see OPTIONS."""
    text_sampling.write(self.model, variables, self.info.tokenizer, **options)


def _check_model(model: Any, length: int) -> None:
  """Raises `ValueError` for a model that cannot predict rows of `length`."""
  if not model.causal:
    raise ValueError(
      "model.causal=False lets tokens see those that they are to predict: "
      "language modelling needs a causal model."
    )
  if model.position_encoding == "learned" and model.max_length < length:
    raise ValueError(
      f"model.max_length={model.max_length} learned positions are fewer than "
      f"data.length={length}, the tokens of a row."
    )
