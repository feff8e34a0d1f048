"""The perceptron: counts, and what it computes."""

import jax
import numpy as np
import pytest

import models
from tests import parity_helper
from tests.models import counting, small

# With 1000 classes, on 28 x 28 pixels of three channels: 2352-256-256-1000.
COUNTS = {"perceptron": (925_160, 0)}


def test_it_is_dense_layers_on_pixels():
  model = models.create("perceptron", widths=(6, 5), num_classes=4)
  x = small.images(2, 7, 1)
  variables = parity_helper.randomise(model.init(jax.random.key(0), x), 0)
  params = variables["params"]
  y = np.asarray(x).reshape(2, 49)
  for name in ("layer_0", "layer_1"):
    y = np.maximum(y @ params[name]["kernel"] + params[name]["bias"][None], 0)
  maps = model.apply(variables, x, method="features")
  assert [m.shape for m in maps] == [(2, 1, 1, 6), (2, 1, 1, 5)]
  np.testing.assert_allclose(maps[1][:, 0, 0], y, rtol=1e-5, atol=1e-6)
  head = params["head"]["logits"]
  logits = y @ head["kernel"] + head["bias"][None]
  ours = model.apply(variables, x)
  np.testing.assert_allclose(ours, logits, rtol=1e-5, atol=1e-5)


def test_counts():
  model = models.create("perceptron")
  assert counting.count(model, 28) == COUNTS["perceptron"]
  mnist = models.create("perceptron", num_classes=10)
  shapes = jax.eval_shape(
    lambda: mnist.init(jax.random.key(0), np.zeros((1, 28, 28, 1), np.float32))
  )
  # As the protocol of TauGate has it (784-256-256-10).
  assert sum(x.size for x in jax.tree.leaves(shapes)) == 269_322


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"widths": ()}, r"widths is \(\); there must"),
    ({"stochastic_depth_rate": 0.1}, "stochastic_depth_rate is 0.1"),
  ],
)
def test_what_does_not_fit(fields, message):
  with pytest.raises(ValueError, match=message):
    models.create("perceptron", **fields).init(
      jax.random.key(0), small.images(1, 4)
    )
