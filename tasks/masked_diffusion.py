"""Masked diffusion: tokens that were masked, from all that were not."""

import io
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

import storage
from input_pipeline import sequences
from input_pipeline.sequences import records, sources
from tasks import record_filling
from tasks.base import Batch, Shown, Variables, create_model
from tasks.token_task import TokenTask
from training import evaluation
from training.ranges import Number


class MaskedDiffusion(TokenTask):
  """A language model that fills in masked tokens, in any order.

  The loss of a row is a bound of -log p(x | prompt) in nats (LLaDA, arXiv
  2502.09992; MDLM, arXiv 2406.07524),

    E_t [1/t sum_i 1[x_t^i = mask] (-log p(x^i | x_t))],

  t uniform, each token that counts masked with probability t; tokens with
  weight 0, as those of a prompt, never are. It is summed over rows, and divided
  by the tokens that count. The mask is a token more than the data have, the
  last one, and has no probability (in LLaDA it has): no token is a mask.

  Data are sources of `input_pipeline.sequences` whose targets are their tokens.
  The model is a language model with causal=False.
  """

  room = sequences
  unit = "token"
  directions = types.MappingProxyType({"loss": "min", "accuracy": "max"})
  curves = ("loss", "accuracy")
  given = ("dtype", "vocabulary_size")
  sample_options = record_filling.OPTIONS
  ranges = types.MappingProxyType(
    {
      "masking.least": Number(0, 1, above=True),
      "masking.evaluation_times": Number(1, whole=True),
    }
  )

  def __init__(self, config: ml_collections.ConfigDict, info: Any):
    """Makes the model, for the tokens of `info` and the mask.

    Raises:
      ValueError: for data or a field of the config that does not fit.
    """
    super().__init__(config, info)
    _check_data(config.data.source, info)
    self.mask = info.vocabulary_size
    self.model = create_model(
      config, "language", vocabulary_size=info.vocabulary_size + 1
    )
    if self.model.causal:
      raise ValueError(
        "model.causal=True hides the tokens behind a mask, of which masked "
        "diffusion reads those that are not masked: set it to False."
      )
    self.units_per_example = int((info.arrays["weights"] > 0).sum())

  @staticmethod
  def default_config() -> ml_collections.ConfigDict:
    """The fields that only this task has."""
    config = ml_collections.ConfigDict()
    config.model = ml_collections.ConfigDict(
      dict(name="transformer", causal=False)
    )
    config.data = sequences.default_config()
    config.data.source = "records"
    config.masking = ml_collections.ConfigDict(
      dict(
        # Training draws t from here to 1.
        least=1e-3,
        # In evaluation every row is masked with each of so many t, the middles
        # of as many parts of [0, 1].
        evaluation_times=8,
      )
    )
    config.checkpoint = ml_collections.ConfigDict(dict(best_metric="loss"))
    return config

  def batch_spec(
    self, rows: int, *, train: bool
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """tokens int32 and weights float32 [rows, length]; index in evaluation."""
    arrays = self.info.arrays if train else self.info.eval_arrays
    spec = {
      name: jax.ShapeDtypeStruct((rows, *arrays[name].shape), dtype)
      for name, dtype in (("tokens", jnp.int32), ("weights", jnp.float32))
    }
    if not train:
      spec["index"] = jax.ShapeDtypeStruct((rows,), jnp.int32)
    return spec

  def prepare(self, key: jax.Array, batch: Batch) -> Batch:
    """Draws t and masks of each row, with a key of its own.

    Row n of N has its t from the n-th of N equal parts, so that a batch has all
    kinds and gradients differ less, as in MDLM; which example is row n is
    chance.

    Returns:
      The batch with masked int32 [rows, length], what the model reads, and
      scale float32 [rows, length], weight / t where a token is masked, else 0.
    """
    rows = len(batch["tokens"])
    keys = jax.random.split(key, rows)
    time_keys, mask_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    part = (jnp.arange(rows) + jax.vmap(jax.random.uniform)(time_keys)) / rows
    least = self.config.masking.least
    return self._masked(mask_keys, batch, least + (1 - least) * part)

  def inputs(
    self, batch: Batch
  ) -> tuple[Sequence[jax.Array], Mapping[str, jax.Array]]:
    """What is left of the tokens: rows are filled, and have no places."""
    return (batch["masked"],), {}

  def nats(self, logits: jax.Array, batch: Batch) -> jax.Array:
    """The bound: the sum of scaled cross entropies, the mask left out."""
    nats = optax.softmax_cross_entropy_with_integer_labels(
      logits[..., : self.mask], batch["tokens"]
    )
    return (nats * batch["scale"]).sum()

  def evaluate_step(
    self, variables: Variables, batch: Batch
  ) -> dict[str, jax.Array]:
    """Sums of a batch: weight, loss, and of masked tokens, masks and accuracy.

    What is masked depends on an example's index alone. Loss is a mean over t,
    masks and accuracy are sums over t.
    """
    times = self.config.masking.evaluation_times
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    keys = fold(jax.random.key(0), batch["index"])

    def sums_of(number):
      # Strata of t; a row's draws are others for each.
      t = jnp.full(len(keys), (number + 0.5) / times)
      of_time = jax.vmap(jax.random.fold_in, in_axes=(0, None))
      made = self._masked(of_time(keys, number), batch, t)
      logits = self.logits(variables, made)
      counted = made["scale"] > 0
      told = logits[..., : self.mask].argmax(-1) == batch["tokens"]
      return {
        "loss": self.nats(logits, made) / times,
        "masks": counted.sum(dtype=jnp.float32),
        "accuracy": (counted & told).sum(dtype=jnp.float32),
      }

    sums = jax.lax.map(sums_of, jnp.arange(times))
    sums = {name: each.sum(0) for name, each in sums.items()}
    return {**sums, "weight": self.weight(batch)}

  def _masked(self, keys: jax.Array, batch: Batch, t: jax.Array) -> Batch:
    """Masks tokens of each row with probability t, [rows]."""
    length = batch["tokens"].shape[1]
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (length,)))(keys)
    hidden = (drawn < t[:, None]) & (batch["weights"] > 0)
    return {
      **batch,
      "masked": jnp.where(hidden, self.mask, batch["tokens"]),
      "scale": jnp.where(hidden, batch["weights"] / t[:, None], 0.0),
    }

  def summarize(self, totals: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The bound per token, accuracy on masked tokens, and how many count.

    Raises:
      ValueError: if nothing counted.
    """
    result = evaluation.means(
      {name: totals[name] for name in ("weight", "loss")}
    )
    masks = max(float(totals["masks"]), 1.0)
    result["accuracy"] = float(totals["accuracy"]) / masks
    return {**result, "tokens": float(totals["weight"])}

  @staticmethod
  def describe(result: Mapping[str, Any]) -> str:
    """ "loss 0.4210 nats on 107000 tokens, accuracy 81.20 % where masked"."""
    return (
      f"loss {result['loss']:.4f} nats on {result['tokens']:g} tokens, "
      f"accuracy {result['accuracy']:.2%} where masked"
    )

  @staticmethod
  def report(result: Mapping[str, Any]) -> dict[str, Any]:
    """loss, accuracy and tokens."""
    return {name: result[name] for name in ("loss", "accuracy", "tokens")}

  def show(
    self,
    variables: Variables,
    evaluations: Sequence[evaluation.SplitEvaluation],
    workdir: str,
  ) -> Shown:
    """Writes some records into samples.txt, where the data are records."""
    del evaluations
    if sources.SOURCES[self.config.data.source] is not records.Records:
      return Shown()
    path, written = storage.path(workdir) / "samples.txt", io.StringIO()
    self.sample(variables, output=written)
    path.write_text(written.getvalue())
    return Shown(
      files=(path.name,),
      text=f"records of sentences:\n{written.getvalue()}",
      commands=(f"python sample.py --weights={storage.quote(path.parent)}",),
    )

  def sample(self, variables: Variables, **options: Any) -> None:
    """Writes sentences and their records; see `record_filling.OPTIONS`."""
    source = record_filling.find_source(self.config)
    record_filling.write(self.model, variables, source, **options)


def _check_data(source: str, info: Any) -> None:
  """Raises `ValueError` for data whose tokens are not what is to be told."""
  for arrays in (info.arrays, info.eval_arrays):
    names = {"tokens", "targets", "weights"}
    same = names <= set(arrays) and not set(arrays) & {"positions", "segments"}
    if same:
      counted = arrays["weights"] > 0
      same = arrays["targets"].shape == arrays["tokens"].shape
      same = same and counted.any()
      same = same and np.array_equal(
        arrays["targets"][counted], arrays["tokens"][counted]
      )
    if not same:
      raise ValueError(
        f"data.source is {source!r}, whose targets are not its own tokens in "
        "whole rows; task='masked_diffusion' needs one such as 'records'."
      )
