"""Guide-and-Rescale (arXiv 2409.01322): editing without training.

The image is taken back to noise by DDIM's inversion with the condition that it
has, the source, and made anew with another, the target. To the noise that
guidance predicts is added r G: G is the gradient, by the latent of this step
alone, of energies that compare attention maps and features with those that the
inverted latent of the same time has under the source condition; r ties the norm
of r G to that of guidance's own term. The released code is for Stable
Diffusion's U-Net, of whose blocks its features are named; which of a
transformer's hidden states take their place is our choice. In the released
code the inverted latents are one place off the times of sampling, since its
lists of times differ; here both go through one list. Where a batch has several
images, energies and norms are each image's own.
"""

import dataclasses
import fnmatch
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from attention import checks
from generation import sampler
from generation.denoiser import Denoiser, create_denoiser
from generation.paths import Path
from models import taps

DISTANCES = ("square", "absolute")
CONDITIONS = ("source", "target")
SELF_ATTENTION = "*/attention/attention_weights"


@dataclasses.dataclass(frozen=True)
class Guider:
  """An energy: scale times the sum over values of their mean distance.

  Attributes:
    names: of the values, or patterns of them; see `taps.read`.
    scale: its weight.
    distance: "square" or "absolute".
    condition: under which the current latent is looked at, "source" or
      "target"; the reference always has the source's.
  """

  names: tuple[str, ...]
  scale: float
  distance: str = "square"
  condition: str = "source"

  def __post_init__(self):
    for name, known in (("distance", DISTANCES), ("condition", CONDITIONS)):
      checks.choice(name, getattr(self, name), known)
    checks.number("scale", self.scale)
    if isinstance(self.names, str) or not self.names:
      raise ValueError(
        f"names is {self.names!r}; it must be a tuple of names of values"
      )


class Preset(NamedTuple):
  """What an edit of a kind takes.

  Attributes:
    guiders: the energies.
    active: the share of the steps, the first ones, that are guided by them.
    bounds: the least and the greatest ratio of the norms.
  """

  guiders: tuple[Guider, ...]
  active: float
  bounds: tuple[float, float]


class Terms(NamedTuple):
  """What a step adds up.

  Attributes:
    prediction: guidance's own, [batch, ...].
    gradient: G, like it.
    factor: r, [batch].
    energy: [batch].
  """

  prediction: jax.Array
  gradient: jax.Array
  factor: jax.Array
  energy: jax.Array


def presets(depth: int) -> dict[str, Preset]:
  """The two configurations of the paper, for a transformer of `depth` blocks.

  Scales, shares of steps and bounds are the published ones. "local" changes
  objects and keeps the layout, "style" the look of the whole. The hidden states
  are that of the last block, for the U-Net's last, and that of the middle one.
  """
  feature = lambda block: (f"block_{block}/hidden_state",)
  maps = (SELF_ATTENTION,)
  return {
    "local": Preset(
      (Guider(maps, 3e5), Guider(feature(depth - 1), 500.0, "absolute")),
      0.6,
      (0.33, 3.0),
    ),
    "style": Preset(
      (
        Guider(maps, 1e5),
        Guider(feature(depth // 2), 2.5, condition="target"),
      ),
      0.5,
      (1.5, 1.5),
    ),
  }


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=("target", "source", "latents", "times", "bounds"),
  meta_fields=("guiders", "path"),
)
@dataclasses.dataclass(frozen=True)
class GuidedDenoiser:
  """Predicts with r G; a `Denoise`.

  Attributes:
    target: with the target condition, and guidance.
    source: with the source condition, without guidance.
    latents: [steps + 1, batch, ...], of the inversion.
    times: of each of them, [steps + 1].
    bounds: the least and the greatest ratio of norms, [2].
    guiders: the energies.
    path: of the model.
  """

  target: Denoiser
  source: Denoiser
  latents: jax.Array
  times: jax.Array
  bounds: jax.Array
  guiders: tuple[Guider, ...]
  path: Path

  def __call__(self, x, time, state):
    """Predicts of x [batch, ...] at a time that the inversion went through."""
    terms, state = self.terms(x, time, state)
    change = _rows(terms.factor, x) * terms.gradient
    return self.path.change_noise(terms.prediction, change, time), state

  def terms(self, x, time, state):
    """Returns what is added up, `Terms`, and the state."""
    given, none, state = self.target.halves(x, time, state)
    prediction = self.target.combine(given, none)
    step = self.target.guidance * (given - none)
    energy, gradient = self.guide(x, time)
    slope = jnp.abs(self.path.noise_slope(time))
    factor = rescale(_norm(gradient), _norm(step) / slope, *self.bounds)
    return Terms(prediction, gradient, factor, energy), state

  def guide(self, x, time):
    """Returns the energy [batch] of x, and its gradient."""
    reference = self.latents[jnp.argmin(jnp.abs(self.times - time))]
    names = tuple(name for guider in self.guiders for name in guider.names)
    wanted = _read(self.source, reference, time, names)
    # Where the latent is the reference, equal values are compared, and what
    # they differ by in rounding has no direction.
    apart = jnp.any((x != reference).reshape(len(x), -1), axis=1)

    def energy(x):
      total = jnp.zeros(len(x), x.dtype)
      for name, denoiser in (("source", self.source), ("target", self.target)):
        of_it = [g for g in self.guiders if g.condition == name]
        if not of_it:
          continue
        names = tuple(n for guider in of_it for n in guider.names)
        values = _read(denoiser, x, time, names)
        for guider in of_it:
          part = _distance(guider, values, wanted)
          if name == "source":
            part = jnp.where(apart, part, 0)
          total += guider.scale * part
      return total.sum(), total

    gradient, total = jax.grad(energy, has_aux=True)(x)
    return total, gradient


def rescale(
  gradient: jax.Array, guidance: jax.Array, low: jax.Array, high: jax.Array
) -> jax.Array:
  """The factor r: clip(rho, low, high) / rho, for the ratio rho of two norms.

  Args:
    gradient: ||G||, [batch]; where it is 0, r is 1.
    guidance: ||w (e1 - e0)||, [batch]; where it is 0, rho is 1.
    low: the least ratio that there shall be.
    high: the greatest.
  """
  ratio = jnp.where(guidance > 0, gradient / _positive(guidance), 1)
  factor = jnp.clip(ratio, low, high) / _positive(ratio)
  return jnp.where(gradient > 0, factor, 1)


def edit(
  model: Any,
  variables: Mapping[str, Any],
  x: jax.Array,
  path: Path,
  *,
  source: Mapping[str, jax.Array],
  target: Mapping[str, jax.Array],
  preset: str | Preset = "local",
  steps: int = 50,
  guidance: float = 7.5,
  progress: sampler.Progress | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Edits images from what the source condition says to what the target says.

  Args:
    model: of `create_denoiser`; maps that are compared are in the open, so no
      kernel runs in these layers.
    variables: of the model.
    x: the images, [batch, ...].
    path: of the model.
    source: the condition that the images have: "label" or "text", by name.
    target: the condition that they shall have.
    preset: a name of `presets`, or guiders, share of steps and bounds.
    steps: of the inversion, and of sampling.
    guidance: w, other than 1.
    progress: what is shown on the way.

  Returns:
    (edited, latents): like `x`, and the inverted latents [steps + 1, ...].

  Raises:
    ValueError: for a preset that there is not, bounds or a share that do not
      fit, or no guidance.
  """
  preset = check(model, preset, guidance)
  times = path.times(steps)
  inverting = create_denoiser(model, variables, **source)
  latents = sampler.invert(inverting, x, path, times=times, progress=progress)
  plain = create_denoiser(model, variables, **target, guidance=guidance)
  guided = GuidedDenoiser(
    plain,
    inverting,
    latents,
    jnp.asarray(times, jnp.float32),
    jnp.asarray(preset.bounds, x.dtype),
    preset.guiders,
    path,
  )
  active = round(preset.active * steps)
  edited = sampler.sample(
    [guided, plain],
    latents[0],
    path,
    times=times,
    which=[0] * active + [1] * (steps - active),
    progress=progress,
  )
  return edited, latents


def check(model: Any, preset: str | Preset, guidance: float) -> Preset:
  """Returns the preset of `edit`, whose arguments these are.

  Raises:
    ValueError: for what does not fit.
  """
  checks.number("guidance", guidance)
  if guidance == 1:
    raise ValueError(
      "guidance=1 leaves no difference of conditions to scale by."
    )
  if not isinstance(preset, Preset):
    # The names of hidden states are those of a transformer's blocks.
    if not hasattr(model, "depth"):
      raise ValueError(
        f"the model is a {type(model).__name__}, whose hidden states the "
        f"preset {preset!r} does not name; a DiffusionTransformer has them"
      )
    known = presets(model.depth)
    checks.choice("preset", preset, known)
    preset = known[preset]
  low, high = preset.bounds
  if not 0 <= low <= high:
    raise ValueError(f"bounds={preset.bounds} must be 0 or more, and rise.")
  checks.share("active", preset.active)
  if not preset.guiders:
    raise ValueError("guiders=() leaves nothing to compare.")
  return preset


def _read(
  denoiser: Denoiser, x: jax.Array, time: jax.Array, names: Sequence[str]
) -> dict[str, jax.Array]:
  """Values of the model under the condition alone, without its other half."""
  condition = {k: v[: len(x)] for k, v in denoiser.condition.items()}
  times = jnp.full(x.shape[:1], jnp.maximum(time, 0.0), jnp.float32)
  return taps.read(
    denoiser.model, denoiser.variables, x, times, **condition, names=names
  )[1]


def _distance(guider, values, wanted) -> jax.Array:
  """The sum over values of mean distances, [batch]."""
  total = 0.0
  for name in _matching(guider.names, values):
    apart = values[name] - jax.lax.stop_gradient(wanted[name])
    apart = apart.reshape(len(apart), -1)
    of = jnp.square if guider.distance == "square" else jnp.abs
    total += of(apart).mean(axis=1)
  return total


def _matching(patterns, names):
  return [n for n in names if any(fnmatch.fnmatch(n, p) for p in patterns)]


def _norm(x: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.square(x).reshape(len(x), -1).sum(axis=1))


def _positive(x: jax.Array) -> jax.Array:
  return jnp.where(x > 0, x, 1)


def _rows(values: jax.Array, x: jax.Array) -> jax.Array:
  return values.reshape(-1, *(1,) * (x.ndim - 1))
