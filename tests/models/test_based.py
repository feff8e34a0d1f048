"""BASED's layers against its formulas in NumPy, float64: values, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import transformer_variants
from models.transformer import Transformer
from tests.models import language

WIDTH, HEADS, FEATURES, LENGTH = 12, 3, 2, 11
# The published window of 6, of which half is before a token.
OPTIONS = {
  **transformer_variants.SIZES["based_360m"]["mixer_options"],
  "sliding": {"window": 6 // 2 + 1, "position_encoding": "rotary"},
}
OPTIONS["linear"] = {**OPTIONS["linear"], "feature_dim": FEATURES}


def small(**fields):
  published = transformer_variants.SIZES["based_360m"]
  size = {
    "vocabulary_size": 13,
    "width": WIDTH,
    "depth": 4,
    "heads": HEADS,
    "mlp_width": 20,
    "mixers": ("convolution", "linear", "sliding", "convolution"),
    "mixer_options": OPTIONS,
  }
  return Transformer(**{**published, **size, **fields})


def silu(x):
  return x / (1 + np.exp(-x))


def rms(x, p):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"]


def convolution(p, x):
  u = np.einsum("td,dhc->htc", x, p["in"]["kernel"])
  u = u + p["in"]["bias"][:, None]
  y = np.zeros_like(u[0])
  for t, back in np.ndindex(len(x), 3):
    if t >= back:
      y[t] += p["convolution"]["kernel"][2 - back] * u[0][t - back]
  return (silu(y) * u[1]) @ p["out"]["kernel"] + p["out"]["bias"]


def linear(p, x):
  q, k, v = (
    np.einsum("td,dhf->htf", x, p[name]["kernel"])
    for name in ("query", "key", "value")
  )
  s = q @ k.swapaxes(1, 2) / np.sqrt(FEATURES)
  weights = np.tril(1 + s + s**2 / 2)
  y = weights @ v / (weights.sum(-1, keepdims=True) + 1e-12)
  return np.einsum("htv,hvd->td", y, p["out"]["kernel"])


def rotated(x):
  half = x.shape[-1] // 2
  angle = np.arange(LENGTH)[:, None] / 1e4 ** (np.arange(half) / half)
  a, b = x[..., :half], x[..., half:]
  cos, sin = np.cos(angle), np.sin(angle)
  return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def sliding(p, x):
  q, k, v = (
    np.einsum("td,dhf->htf", x, p[name]["kernel"])
    for name in ("query", "key", "value")
  )
  s = rotated(q) @ rotated(k).swapaxes(1, 2) / np.sqrt(WIDTH // HEADS)
  offset = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
  weights = np.exp(s) * ((offset >= 0) & (offset <= 6 // 2))
  y = weights / weights.sum(-1, keepdims=True) @ v
  return np.einsum("htv,hvd->td", y, p["out"]["kernel"])


def restated(params, tokens):
  """Logits [length, vocabulary] of one row."""
  x = params["embed"]["embedding"][tokens]
  mixers = (convolution, linear, sliding, convolution)
  for i, mixer in enumerate(mixers):
    p = params[f"layer_{i}"]
    x = x + mixer(p["mixer"], rms(x, p["mixer_norm"]))
    y = rms(x, p["mlp_norm"])
    hidden = silu(y @ p["mlp"]["gate"]["kernel"]) * (
      y @ p["mlp"]["expand"]["kernel"]
    )
    x = x + hidden @ p["mlp"]["shrink"]["kernel"]
  return rms(x, params["final_norm"]) @ params["embed"]["embedding"].T


@pytest.fixture(scope="module")
def case():
  variables = language.variables(small())
  tokens = language.tokens((2, LENGTH))
  wide = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
  expected = np.stack([restated(wide, row) for row in tokens])
  return variables, wide, tokens, expected


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_are_those_of_the_formulas(case, dtype):
  variables, _, tokens, expected = case
  out = jax.jit(small(dtype=dtype).apply)(variables, tokens)
  error = np.abs(out - expected).max() / np.abs(expected).max()
  assert error < (1e-5 if dtype == jnp.float32 else 0.05)


def test_gradients_are_those_of_the_formulas(case):
  """Along a random direction of all parameters, by a central difference."""
  variables, wide, tokens, expected = case
  rng = np.random.default_rng(5)
  factors = rng.standard_normal(expected.shape)
  direction = jax.tree.map(lambda x: rng.standard_normal(x.shape), wide)

  def value(params):
    return (small().apply({"params": params}, tokens) * factors).sum()

  gradient = jax.jit(jax.grad(value))(variables["params"])
  for name in ("embed", "layer_0", "layer_1", "layer_2", "final_norm"):
    moved = []
    for step in (1e-5, -1e-5):
      own = jax.tree.map(lambda x, d, s=step: x + s * d, wide, direction)
      own = {**wide, name: own[name]}
      logits = np.stack([restated(own, row) for row in tokens])
      moved.append((logits * factors).sum())
    dots = jax.tree.map(
      lambda g, d: (np.asarray(g, np.float64) * d).sum(),
      gradient[name],
      direction[name],
    )
    slope = sum(jax.tree.leaves(dots))
    np.testing.assert_allclose(slope, (moved[0] - moved[1]) / 2e-5, rtol=1e-4)


def test_decoding_holds_states_of_the_published_sizes():
  published = transformer_variants.SIZES["based_360m"]
  cache = jax.eval_shape(lambda: Transformer(**published).init_cache(1, 4096))
  # 16 heads of 64 channels and a sum, of 1 + 16 + 16^2 features.
  assert cache["layer_1"]["memory"].size == 283_920
  assert cache["layer_2"]["keys"].shape == (1, 16, 129, 64)
  assert cache["layer_0"]["inputs"].shape == (1, 2, 2048)
