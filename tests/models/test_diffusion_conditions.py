"""What a diffusion transformer reads beside noise: classes, texts, none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import taps
from models.diffusion_transformer import DiffusionTransformer
from tests.models.diffusion_small import (
  CROSS,
  SMALL,
  VIDEO,
  inputs_of,
  randomised,
)


def cross_reference(model, params, x, time, label):
  """The model with cross-attention and rotary positions, in NumPy, float64."""
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  dim, (frames, rows, columns) = model.width // model.heads, (3, 2, 3)
  dense = lambda q, x: x @ q["kernel"] + q["bias"]
  silu = lambda x: x / (1 + np.exp(-x))
  gelu = lambda x: (
    x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  )

  def norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)

  def heads(q, x):
    flat = x @ q["kernel"].reshape(model.width, -1) + q["bias"].reshape(-1)
    return flat.reshape(*x.shape[:2], model.heads, dim)

  def turn(x):
    z = x[..., : dim // 2] + 1j * x[..., dim // 2 :]
    n = 0
    for f in range(frames):
      for r in range(rows):
        for c in range(columns):
          angles = [
            place * 10000.0 ** -np.array([0, 0.5]) for place in (f, r, c)
          ]
          z[:, n] *= np.exp(1j * np.concatenate(angles))
          n += 1
    return np.concatenate([z.real, z.imag], -1)

  def attend(q, k, v):
    weights = np.exp(np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(dim))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*q.shape[:2], -1)

  angles = time[:, None] * 10000 ** (-np.arange(128) / 128)
  features = np.concatenate([np.cos(angles), np.sin(angles)], -1)
  t = p["time_embed"]
  c = silu(dense(t["shrink"], silu(dense(t["expand"], features))))
  tokens = p["label_embed"]["embedding"][label]
  start = np.broadcast_to(p["condition"]["start"], (len(x), 1, model.width))
  tokens = np.concatenate([start, tokens], 1)
  patches = [
    x[:, f, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].reshape(len(x), -1)
    for f in range(frames)
    for r in range(rows)
    for c in range(columns)
  ]
  h = dense(p["patch_embed"], np.stack(patches, 1))
  for i in range(model.depth):
    b = p[f"block_{i}"]
    m = np.split(dense(b["modulation"], c)[:, None], 6, -1)
    y = norm(h) * (1 + m[1]) + m[0]
    a = b["attention"]
    q, k, v = (heads(a[name], y) for name in ("query", "key", "value"))
    h = h + m[2] * dense(a["out"], attend(turn(q), turn(k), v))
    a = b["cross_attention"]
    y = norm(h) * b["cross_norm"]["scale"] + b["cross_norm"]["bias"]
    k, v = heads(a["key"], tokens), heads(a["value"], tokens)
    h = h + dense(a["out"], attend(heads(a["query"], y), k, v))
    y = norm(h) * (1 + m[4]) + m[3]
    h = h + m[5] * dense(b["mlp"]["shrink"], gelu(dense(b["mlp"]["expand"], y)))
  m = np.split(dense(p["final"]["modulation"], c)[:, None], 2, -1)
  h = dense(p["final"]["out"], norm(h) * (1 + m[1]) + m[0])
  h = h.reshape(len(x), frames, rows, columns, 2, 2, -1)
  return h.transpose(0, 1, 2, 4, 3, 5, 6).reshape(x.shape)


def test_cross_attention_and_rotary_positions():
  model = DiffusionTransformer(**VIDEO)
  variables = randomised(model)
  x, time, label = inputs_of(model)
  out = jax.jit(model.apply)(variables, x, time, label)
  wanted = cross_reference(
    model, variables["params"], *(np.asarray(a) for a in (x, time, label))
  )
  assert np.abs(wanted).max() > 1
  np.testing.assert_allclose(out, wanted, atol=1e-4, rtol=1e-4)


def test_no_label_is_the_class_for_none():
  model = DiffusionTransformer(**CROSS)
  variables = randomised(model)
  x, time, _ = inputs_of(model)
  none = jnp.full((2, 2), model.num_classes)
  run = jax.jit(model.apply)
  out = run(variables, x, time)
  np.testing.assert_array_equal(out, run(variables, x, time, none))
  other = run(variables, x, time, none - 1)
  assert np.abs(out - other).max() > 1e-3


@pytest.mark.parametrize("conditioning", ["cross", "joint"])
def test_padded_texts(conditioning):
  fields = {**SMALL, "num_classes": 0, "text_width": 5}
  model = DiffusionTransformer(**fields, conditioning=conditioning)
  variables = randomised(model)
  x, time, _ = inputs_of(model)
  text = jax.random.normal(jax.random.key(3), (2, 4, 5))
  lengths = jnp.array([4, 1])
  padded = text.at[1, 1:].set(jnp.nan)

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 3), has_aux=True)
  def run(variables, x, time, text, lengths=None):
    out = model.apply(variables, x, time, None, text, lengths)
    return (out**2).sum(), out

  (_, out), (_, grad) = run(variables, x, time, padded, lengths)
  assert (grad[1, 1:] == 0).all()
  assert np.isfinite(grad).all()
  (_, alone), (_, own) = run(variables, x[1:], time[1:], text[1:, :1])
  np.testing.assert_allclose(out[1:], alone, atol=2e-5)
  np.testing.assert_allclose(grad[1:, :1], own, atol=1e-4)
  # No text is a text without tokens.
  forward = jax.jit(model.apply)
  nothing = forward(variables, x, time, None, text, jnp.array([0, 0]))
  np.testing.assert_allclose(nothing, forward(variables, x, time), atol=2e-5)


def test_joint_attention_reads_the_label():
  model = DiffusionTransformer(**{**CROSS, "conditioning": "joint"})
  variables = randomised(model)
  x, time, label = inputs_of(model)
  last = set(variables["params"]["block_1"])
  assert "text_mlp" not in last
  assert "text_mlp" in variables["params"]["block_0"]
  out, values = taps.read(
    model, variables, x, time, label, names=["block_1/*weights"]
  )
  (weights,) = values.values()
  # 12 places, the start token and two labels.
  assert weights.shape == (2, 2, 15, 15)
  swapped = model.apply(variables, x, time, label[:, ::-1])
  np.testing.assert_allclose(out, swapped, atol=1e-4)
  other = model.apply(variables, x, time, (label + 1) % 5)
  assert np.abs(out - other).max() > 1e-2
