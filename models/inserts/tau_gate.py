"""TauGate: a threshold and a gain for each hidden neuron (arXiv 2602.11726)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import taps
from models.insertion import STATE, Insert, Site
from models.inserts import features


class TauGate(Insert):
  """Multiplies the neurons that a layer reads with scale * g.

  g = sigmoid(s (z - threshold)), z what the neurons are before their
  activation. So h = scale g activation(z): in distinction to a bias a threshold
  does not shift what survives, and without one the scale alone is IA3's.

  The paper's abstract says what the gate is, soft in training and hard at
  inference. That it stands behind the activation, what it begins with and the
  sharpness are our choice (reconstructed; no code was released): the threshold
  is -4 / s at first, which gives g >= 0.982 for z >= 0. Gates are float32.

  It is put at the layer behind the neurons, as "mlp/shrink", of which it
  changes the input. With `last_sharpness` it counts training steps, in the
  collection "insert_state".

  The value "gate" is a tap.

  Attributes:
    source: path of the layer that gives z, beside this one or beside what this
      one is in; as "expand".
    sharpness: s, where training begins.
    last_sharpness: s after `anneal_steps`, linear between; 0 for the first.
    anneal_steps: training steps from one to the other.
    hard: whether g is 1 for z > threshold, and 0.
  """

  source: str = ""
  sharpness: float = 10.0
  last_sharpness: float = 0.0
  anneal_steps: int = 0
  hard: bool = False

  def reads(self):
    return (self.source,) if self.source else ()

  @nn.compact
  def before(self, site: Site, x: jax.Array) -> jax.Array:
    """Gives the layer the neurons that the gates leave.

    Raises:
      ValueError: if there is no source, or it is not of the shape of x; or for
        sharpness that is not positive.
    """
    self._check(site)
    z = site.value(self.source)
    if getattr(z, "shape", None) != x.shape:
      raise ValueError(
        f"source={self.source!r} of tau_gate at {site.place} gives "
        f"{getattr(z, 'shape', type(z))}; the layer reads {x.shape}, and each "
        "of these needs its value before the activation"
      )
    shape = features.shape_of_input(site.module, x)
    dtype = features.param_dtype(site.module)
    start = nn.initializers.constant(-4 / self.sharpness)
    threshold = self.param("threshold", start, shape, dtype)
    scale = self.param("scale", nn.initializers.ones, shape, dtype)
    away = z.astype(jnp.float32) - features.per_feature(
      threshold.astype(jnp.float32), x
    )
    if self.hard:
      gate = (away > 0).astype(jnp.float32)
    else:
      gate = nn.sigmoid(self._sharpness() * away)
    gate = taps.tap(self, "gate", gate)
    gain = features.per_feature(scale.astype(jnp.float32), x) * gate
    return (x * gain).astype(x.dtype)

  def _sharpness(self) -> float | jax.Array:
    """s of this step, the last one where nothing is trained."""
    if not self.last_sharpness:
      return self.sharpness
    steps = self.variable(STATE, "steps", jnp.zeros, (), jnp.float32)
    now = steps.value
    if self.is_mutable_collection(STATE) and not self.is_initializing():
      steps.value = now + 1
    done = jnp.minimum(now / self.anneal_steps, 1)
    return self.sharpness + (self.last_sharpness - self.sharpness) * done

  def _check(self, site: Site) -> None:
    if not self.source:
      raise ValueError(
        f"tau_gate at {site.place} has no source; it must be the path of the "
        "layer that the neurons come from, as 'expand'"
      )
    if self.sharpness <= 0 or self.last_sharpness < 0:
      raise ValueError(
        f"sharpness is {self.sharpness} and last_sharpness "
        f"{self.last_sharpness}; they must be positive, the last may be 0"
      )
    if bool(self.last_sharpness) != (self.anneal_steps > 0):
      raise ValueError(
        f"last_sharpness is {self.last_sharpness} and anneal_steps "
        f"{self.anneal_steps}; it needs both or neither"
      )
