"""DiMR: a diffusion network of several resolutions (arXiv 2406.09416).

A transformer reads the image on a coarse grid, stages of convolutions go on at
twice the resolution, and each says what the noise is at its own. The time
enters by the factors of normalisation alone (`models.time_norms`). Released as
github.com/qihao067/DiMR, whose two configs are the variants here.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import dimr_layers, layers, taps

KIND = "diffusion"
# Heads, and hidden channels of feed-forward layers.
SHARDING_RULES = (
  ("attention/(query|key|value)/kernel", (None, "model", None)),
  ("attention/out/kernel", ("model", None, None)),
  ("mlp/(expand|gate)/kernel", (None, "model")),
  ("mlp/(expand|gate)/bias", ("model",)),
  ("mlp/shrink/kernel", ("model", None)),
)


class DiMR(taps.Tapped):
  """From an image in noise, its time and class to the noise.

  `model.apply(variables, x, time, label)` is the prediction of the last stage,
  and with `method="predictions"` those of all, for a loss with the targets of
  `loss_targets`.

  Attributes:
    sample_shape: height and width of the images. Smaller ones may be given,
      and have the positions of the upper left corner; no larger ones.
    channels: of an image.
    widths: channels of each stage, from the coarsest to that of all pixels;
      each has twice the resolution of the one before.
    depths: blocks of each stage, odd: those of the second half read what those
      of the first half gave.
    heads: of the first stage's attention. The others have convolutions.
    mlp_ratio: hidden channels of a feed-forward layer over those of its stage.
    kernel_size: side of the filters, odd.
    num_classes: number of classes; the index `num_classes` is for none.
    loss_weights: of each stage's squared error.
    remat: whether the backward pass computes each block again.
    implementation: of the attention, see `attention.kernels.dispatch`.
    dtype: dtype of the computation; residual streams, softmax, norms and the
      results are float32.
    param_dtype: dtype of the parameters.
  """

  sample_shape: tuple[int, int] = (32, 32)
  channels: int = 4
  widths: tuple[int, ...] = (960, 480)
  depths: tuple[int, ...] = (39, 21)
  heads: int = 16
  mlp_ratio: int = 2
  kernel_size: int = 7
  num_classes: int = 1000
  loss_weights: tuple[float, ...] = (0.25, 1.0)
  remat: bool = False
  implementation: str = "auto"
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32

  def setup(self):
    _check_fields(self)
    self.stage = [self._stage(i) for i in range(len(self.widths))]

  def __call__(
    self,
    x: jax.Array,
    time: jax.Array,
    label: jax.Array | None = None,
    text: jax.Array | None = None,
    text_length: jax.Array | None = None,
    train: bool = False,
  ) -> jax.Array:
    """Returns the noise in an image.

    Args:
      x: floating point [batch, height, width, channels].
      time: [batch], the step of DDPM, 0 to 999, which the paper counts from 1;
        or a thousand times that of flow matching.
      label: integers [batch], up to `num_classes`, which is none; None if all
        are.
      text: must be None, as `text_length`: there is no such variant.
      text_length: see `text`.
      train: changes nothing: there is no dropout.

    Returns:
      float32, like `x`.

    Raises:
      ValueError: if an argument has another shape or dtype.
    """
    return self.predictions(x, time, label, text, text_length, train)[-1]

  def predictions(
    self,
    x: jax.Array,
    time: jax.Array,
    label: jax.Array | None = None,
    text: jax.Array | None = None,
    text_length: jax.Array | None = None,
    train: bool = False,
  ) -> tuple[jax.Array, ...]:
    """Returns what each stage predicts, from the coarsest to that like `x`.

    Takes and raises what the call does.
    """
    del train
    if label is None:
      label = jnp.full(x.shape[:1], self.num_classes)
    _check_inputs(self, x, time, label, text, text_length)
    # With n = time + 1 the surrogate 8 n / 1000 - 4 of a log-SNR, over 4.
    tau = (time.astype(jnp.float32) + 1) / 500 - 1
    outputs, features = [], None
    for stage in self.stage:
      output, features = stage(x, tau, label, features)
      outputs.append(output)
    return tuple(outputs)

  @nn.nowrap
  def loss_targets(
    self, target: jax.Array
  ) -> tuple[tuple[jax.Array, float], ...]:
    """Returns what each stage shall predict, and the weight of its error.

    The mean of r x r pixels times r, so that noise keeps its deviation.

    Args:
      target: what the call shall return, [batch, height, width, channels].

    Raises:
      ValueError: if the coarsest grid does not divide the sides.
    """
    _check_sides(self, target.shape[1:3])
    last, made = len(self.widths) - 1, []
    for i, weight in enumerate(self.loss_weights):
      ratio = 2 ** (last - i)
      batch, height, width, channels = target.shape
      cells = target.reshape(
        batch, height // ratio, ratio, width // ratio, ratio, channels
      )
      made.append((cells.sum((2, 4)) / ratio, weight))
    return tuple(made)

  @nn.nowrap
  def example_inputs(self) -> dict[str, jax.Array]:
    """Returns arguments of the call, of one image, to initialise with."""
    return {
      "x": jnp.zeros((1, *self.sample_shape, self.channels)),
      "time": jnp.zeros((1,)),
      "label": jnp.zeros((1,), jnp.int32),
    }

  def _stage(self, i: int) -> dimr_layers.Stage:
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    patch_size = 2 ** (len(self.widths) - 1 - i)
    hidden_width = self.mlp_ratio * self.widths[i]
    if i == 0:
      kind = dimr_layers.TransformerBlock
      options = {"heads": self.heads, "implementation": self.implementation}
    else:
      kind = dimr_layers.ConvolutionBlock
      options = {"kernel_size": self.kernel_size}
    return dimr_layers.Stage(
      self.widths[i],
      self.depths[i],
      functools.partial(
        nn.remat(kind) if self.remat else kind,
        hidden_width=hidden_width,
        **options,
        **dtypes,
      ),
      patch_size,
      tuple(side // patch_size for side in self.sample_shape),
      self.num_classes + 1 if i == 0 else 0,
      **dtypes,
    )


def _check_fields(model: DiMR) -> None:
  """Raises ValueError for fields that do not fit one another."""
  stages = len(model.widths)
  for name in ("depths", "loss_weights"):
    if len(values := getattr(model, name)) != stages or not stages:
      raise ValueError(
        f"{name} is {values}; widths {model.widths} need one for each stage"
      )
  if even := [depth for depth in model.depths if depth < 1 or depth % 2 == 0]:
    raise ValueError(
      f"depths is {model.depths}; each must be odd, and {even[0]} is not: the "
      "second half of the blocks reads the first, and one is between"
    )
  if model.heads < 1 or model.widths[0] % model.heads:
    raise ValueError(
      f"heads is {model.heads}; it must divide the width {model.widths[0]} of "
      "the first stage"
    )
  if model.kernel_size < 1 or model.kernel_size % 2 == 0:
    raise ValueError(f"kernel_size is {model.kernel_size}; it must be odd")
  _check_sides(model, model.sample_shape)


def _check_sides(model: DiMR, sides: tuple[int, ...]) -> None:
  coarsest = 2 ** (len(model.widths) - 1)
  if any(side < 1 or side % coarsest for side in sides):
    raise ValueError(
      f"images are {' x '.join(map(str, sides))}; {len(model.widths)} stages "
      f"need sides that are multiples of {coarsest}"
    )


def _check_inputs(model: DiMR, x, time, label, text, text_length) -> None:
  """Raises ValueError for arguments of a call that do not fit."""
  layers.check_images(x)
  if x.shape[-1] != model.channels:
    raise ValueError(
      f"x has {x.shape[-1]} channels; the model has channels={model.channels}"
    )
  _check_sides(model, x.shape[1:3])
  if any(a > b for a, b in zip(x.shape[1:3], model.sample_shape, strict=True)):
    raise ValueError(
      f"x has images of {x.shape[1]} x {x.shape[2]}; there are positions for "
      f"sample_shape={tuple(model.sample_shape)} and no more"
    )
  if time.shape != x.shape[:1]:
    raise ValueError(
      f"time has shape {time.shape}; x {x.shape} needs {x.shape[:1]}"
    )
  if label.shape != x.shape[:1] or not jnp.issubdtype(label.dtype, jnp.integer):
    raise ValueError(
      f"label is {label.dtype} of shape {label.shape}; x {x.shape} needs "
      f"integers {x.shape[:1]}"
    )
  if text is not None or text_length is not None:
    raise ValueError("text and text_length must be None: DiMR has classes")


VARIANTS = {
  "dimr_xl_2r": (DiMR, {}),
  "dimr_g_2r": (DiMR, {"widths": (1152, 576), "depths": (57, 29)}),
}
