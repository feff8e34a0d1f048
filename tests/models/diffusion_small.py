"""Small diffusion transformers, their random parameters and inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

SMALL = {
  "sample_shape": (6, 8),
  "channels": 3,
  "width": 24,
  "depth": 2,
  "heads": 2,
  "num_classes": 5,
  "implementation": "xla",
}
CROSS = {**SMALL, "conditioning": "cross", "label_tokens": 2}
VIDEO = {
  **CROSS,
  "sample_shape": (3, 4, 6),
  "patch_size": (1, 2, 2),
  "position_encoding": "rotary",
}


def randomised(model, seed=0):
  """Parameters without the zeros that hide what is behind them."""
  shapes = jax.eval_shape(
    functools.partial(model.init, **model.example_inputs()), jax.random.key(0)
  )
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    scale = leaf.shape[0] ** -0.5 if path[-1].key == "kernel" else 0.3
    values = scale * rng.standard_normal(leaf.shape)
    return jnp.asarray(values, leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def inputs_of(model, batch=2, shape=None, seed=1):
  rng = np.random.default_rng(seed)
  shape = batch, *(shape or model.sample_shape), model.channels
  x = jnp.asarray(rng.standard_normal(shape), jnp.float32)
  time = jnp.asarray(rng.uniform(0, 1000, batch), jnp.float32)
  label = rng.integers(0, model.num_classes + 1, (batch, model.label_tokens))
  return x, time, jnp.asarray(label, jnp.int32)
