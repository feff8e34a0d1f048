"""Feed-forward layers against their formulas in NumPy."""

import math

import jax
import numpy as np

from models import feed_forward


def test_formulas_of_feed_forward_layers():
  x = np.random.default_rng(0).standard_normal((1, 3, 8)).astype(np.float32)
  erf = np.vectorize(math.erf)
  functions = {
    "gelu": lambda z: z * (1 + erf(z / np.sqrt(2))) / 2,
    "squared_relu": lambda z: np.maximum(z, 0) ** 2,
    "swiglu": lambda z: z / (1 + np.exp(-z)),
    "sigmoid_glu": lambda z: 1 / (1 + np.exp(-z)),
    "geglu": lambda z: z * (1 + erf(z / np.sqrt(2))) / 2,
  }
  for kind, f in functions.items():
    layer = feed_forward.FeedForward(
      kind, 5, True, *[jax.nn.initializers.normal(0.5)] * 2
    )
    params = layer.init(jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda p: np.asarray(p) + 0.1, params)
    dense = lambda name, x, p=params: x @ p[name]["kernel"] + p[name]["bias"]
    hidden = dense("expand", x)
    gated = "gate" in params
    hidden = f(dense("gate", x)) * hidden if gated else f(hidden)
    np.testing.assert_allclose(
      layer.apply({"params": params}, x), dense("shrink", hidden), atol=1e-5
    )
