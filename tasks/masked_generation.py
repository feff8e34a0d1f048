"""Masked generation: tokens of an image from those that are visible."""

import io
import types
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import storage
from input_pipeline import latents as latent_data
from tasks import (
  generation_checks,
  image_decoding,
  image_sampling,
  mask_draws,
  sample_evaluation,
  visual_batches,
)
from tasks.base import Batch, Shown, Variables, create_model
from tasks.generator import Generator
from training import evaluation
from training.ranges import Number


class MaskedGeneration(Generator):
  """Makes images by flow matching, given a class or a text (`models.lina`).

  The loss of an image is the mean over its masked tokens and over draws of
  noise. All images of a training batch have as many masked tokens, so the mean
  over images is that over tokens too.
  """

  room = latent_data
  unit = "image"
  quality = sample_evaluation
  given = ("dtype", "num_classes")
  evaluate_options = sample_evaluation.OPTIONS
  sample_options = image_sampling.OPTIONS
  ranges = types.MappingProxyType(
    {
      "mask_ratio.mean": Number(0, 1),
      "mask_ratio.deviation": Number(0, above=True),
      "mask_ratio.low": Number(0, 1, above=True),
      "mask_ratio.high": Number(0, 1, above=True),
      "noise_draws": Number(1, whole=True),
      "condition_dropout": Number(0, 1),
      "evaluation.num_samples": Number(0, whole=True),
      "sampling.steps": Number(1, whole=True),
      "sampling.flow_steps": Number(1, whole=True),
      "sampling.guidance": Number(0),
      "sampling.min_guidance": Number(0),
    }
  )

  def __init__(self, config: ml_collections.ConfigDict, info: Any):
    """Makes the model, for the classes or texts of `info`.

    Raises:
      ValueError: for a field of the config that does not fit.
    """
    super().__init__(config, info)
    self.model = create_model(
      config, "generation", num_classes=len(info.class_names)
    )
    self.places = int(np.prod(self.model.grid))
    self.most_visible = mask_draws.most_visible(config.mask_ratio, self.places)
    generation_checks.check_masks(config.mask_ratio, self.places)
    generation_checks.check_data(config.data, info, self.model)

  @staticmethod
  def default_config() -> ml_collections.ConfigDict:
    """The fields that only masked generation has."""
    config = ml_collections.ConfigDict()
    config.model = ml_collections.ConfigDict(dict(name="lina_d48w768"))
    config.data = latent_data.default_config()
    # Share of tokens that are to be made, one for each batch: a normal
    # distribution that is cut off.
    config.mask_ratio = ml_collections.ConfigDict(
      dict(mean=1.0, deviation=0.25, low=0.7, high=1.0)
    )
    # How often noise is drawn for what the transformer says of a token.
    config.noise_draws = 4
    # How often an image is learned without its class or text.
    config.condition_dropout = 0.1
    config.sampling = ml_collections.ConfigDict(
      dict(steps=64, flow_steps=25, guidance=2.4, min_guidance=1.0)
    )
    # What `eval.py` makes and measures; see `tasks.sample_evaluation`.
    config.evaluation = ml_collections.ConfigDict(
      dict(num_samples=1000, features="", statistics="")
    )
    config.checkpoint = ml_collections.ConfigDict(dict(best_metric="loss"))
    return config

  def prepare(self, key: jax.Array, batch: Batch) -> Batch:
    """Draws what a training batch is to be learned with.

    Args:
      key: randomness of all that is drawn, also in `loss`.
      batch: as `batch_spec` says.

    Returns:
      tokens [batch, N, token_dim]; visible int32 [batch, V], places, of which
      all rows have as many, padded with N; label, or text and text_length, some
      of them as if there was none; mask [batch]; damaged [batch]; and key
      [batch], from which `loss` draws times and noise.
    """
    count_key, drop_key, key = jax.random.split(key, 3)
    rows = len(batch["mask"])
    ratio = self.config.mask_ratio
    count = mask_draws.visible_count(count_key, ratio, self.places)
    drop = jax.random.bernoulli(
      drop_key, self.config.condition_dropout, (rows,)
    )
    keys = jax.random.split(key, rows)
    return self._prepare(keys, batch, jnp.full((rows,), count), drop)

  def _prepare(
    self, keys: jax.Array, batch: Batch, counts: jax.Array, drop: jax.Array
  ) -> Batch:
    """Prepares examples by their keys.

    Args:
      keys: [batch].
      batch: as `batch_spec` says.
      counts: [batch], how many tokens are visible.
      drop: bool [batch], who loses the class or text.
    """
    latent_keys, place_keys, flow_keys = jax.vmap(
      lambda key: jax.random.split(key, 3), out_axes=1
    )(keys)
    visible = jax.vmap(
      lambda key, count: mask_draws.visible_places(
        key, count, self.places, self.most_visible
      )
    )(place_keys, counts)
    mask = batch["mask"]
    clean = visual_batches.clean(self.info, latent_keys, batch)
    tokens = self.model.patchify(clean)
    return {
      # Zeros where nothing counts, as NaN times a gradient of 0 is NaN.
      "tokens": jnp.where(mask[:, None, None] > 0, tokens, 0),
      "visible": visible,
      **visual_batches.condition(
        self.info, self.model.num_classes, batch, drop
      ),
      "mask": mask,
      "damaged": batch.get("damaged", jnp.zeros(mask.shape, bool)),
      "key": flow_keys,
    }

  def evaluate_step(
    self, variables: Variables, batch: Batch
  ) -> dict[str, jax.Array]:
    """Sums over images, each with its own mask ratio and with its class."""
    fold = lambda index: jax.random.fold_in(jax.random.key(0), index)
    keys = jax.vmap(fold)(batch["index"])
    count_keys, keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    ratio = self.config.mask_ratio
    counts = jax.vmap(
      lambda key: mask_draws.visible_count(key, ratio, self.places)
    )(count_keys)
    nobody = jnp.zeros(len(keys), bool)
    return self.sums(variables, self._prepare(keys, batch, counts, nobody))

  def losses(self, variables: Variables, batch: Batch) -> jax.Array:
    """Flow-matching loss of each image of a prepared batch, float32 [batch].

    The velocity of x_t = s noise + (1 - s) x is noise - x. Its squared error is
    a mean over channels, over masked tokens and over draws of s and noise, for
    which the transformer runs once (arXiv 2601.22630).
    """
    tokens, visible = batch["tokens"], batch["visible"]
    apply = lambda *x, method: self.model.apply(variables, *x, method=method)
    given = [
      batch[name] for name in ("label", "text", "text_length") if name in batch
    ]
    condition = apply(*given, method="condition")
    z = apply(condition, tokens, visible, method="encode_decode")
    # [batch, draws, N] and [batch, draws, N, token_dim].
    times, noise = jax.vmap(
      lambda key, x: mask_draws.times_and_noise(key, self.config.noise_draws, x)
    )(batch["key"], tokens)
    tokens, share = tokens[:, None], times[..., None] / 1000
    x_t = share * noise + (1 - share) * tokens
    velocity = apply(x_t, times, z[:, None], method="velocity")
    error = jnp.square(velocity - (noise - tokens)).mean(-1).mean(1)
    rows = jnp.arange(len(visible))[:, None]
    masked = jnp.ones_like(error).at[rows, visible].set(0, mode="drop")
    return (error * masked).sum(1) / masked.sum(1)

  def show(
    self,
    variables: Variables,
    evaluations: Sequence[evaluation.Evaluation],
    workdir: str,
  ) -> Shown:
    """Draws images of some classes or texts into samples.png."""
    del evaluations
    folder = storage.path(workdir)
    log = io.StringIO()
    image_sampling.draw(
      self.model,
      variables,
      image_decoding.create(self.model, variables, self.info),
      sampling=self.config.sampling,
      text=self.config.data.text,
      out=str(folder / "samples.png"),
      output=log,
    )
    of_run = f"--weights={storage.quote(folder)}"
    return Shown(
      files=("samples.png",),
      text=log.getvalue(),
      commands=(f"python sample.py {of_run}",),
    )

  def sample(self, variables: Variables, **options: Any) -> None:
    """Writes a picture of images; see `image_sampling.OPTIONS`."""
    image_sampling.draw(
      self.model,
      variables,
      image_decoding.create(self.model, variables, self.info),
      sampling=self.config.sampling,
      **{"text": self.config.data.text, **options},
    )
