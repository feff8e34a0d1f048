"""Dense layers of images: the order for TPUs gives what the plain one does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention.kernels import dispatch
from models import dense, layers
from models.head_projections import ToHeads


@pytest.fixture
def on_tpu(monkeypatch):
  monkeypatch.setattr(dispatch, "chip", lambda: ("tpu", "TPU v5 lite"))


def _layer(x, kernel, bias):
  return jnp.sin(dense.add_bias(dense.image_matmul(x, kernel), bias)).sum()


def _numbers(*shapes):
  rng = np.random.default_rng(0)
  return [
    jnp.asarray(rng.standard_normal(shape), "float32") for shape in shapes
  ]


@pytest.mark.parametrize("width", [3, 8])
def test_values_and_gradients_in_the_order_of_tpus(monkeypatch, width):
  arguments = _numbers((8, 2, width, 4), (4, 5), (5,))
  run = lambda: jax.value_and_grad(_layer, (0, 1, 2))(*arguments)
  expected = run()
  monkeypatch.setattr(dispatch, "chip", lambda: ("tpu", "TPU v5 lite"))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
    run(),
    expected,
  )


@pytest.mark.parametrize(
  ("batch", "width", "inward"),
  [
    (8, 3, True),
    (12, 3, False),
    (128, 3, False),
    (144, 3, True),
    (8, 16, False),
  ],
)
def test_which_batches_go_inward(on_tpu, batch, width, inward):
  x = jnp.ones((batch, 2, width, 4))
  jaxpr = str(jax.make_jaxpr(dense.image_matmul)(x, jnp.ones((4, 5))))
  assert ("transpose" in jaxpr) == inward


def test_a_device_has_its_share_of_the_batch(on_tpu, monkeypatch):
  monkeypatch.setattr(dispatch, "BATCH_AXES", ("data",))
  axis_type = (jax.sharding.AxisType.Auto,)
  with jax.set_mesh(jax.make_mesh((2,), ("data",), axis_types=axis_type)):
    for batch, inward in ((8, False), (16, True)):
      x = jnp.ones((batch, 2, 3, 4))
      jaxpr = str(jax.make_jaxpr(dense.image_matmul)(x, jnp.ones((4, 5))))
      assert ("transpose" in jaxpr) == inward


def test_to_heads_is_a_dense_layer_of_all():
  (x,) = _numbers((2, 3, 3, 8))
  plain = layers.DenseGeneral((3, 2, 4), bias_init=jax.nn.initializers.ones)
  variables = plain.init(jax.random.key(0), x)
  ours = ToHeads(3, 2, 4)
  assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x)) == (
    jax.tree.map(jnp.shape, variables)
  )
  kernels = [
    f.init(jax.random.key(0), x)["params"]["kernel"] for f in (plain, ours)
  ]
  np.testing.assert_array_equal(*kernels)
  expected = plain.apply(variables, x)
  for i, out in enumerate(ours.apply(variables, x)):
    np.testing.assert_allclose(out, expected[..., i, :, :], atol=1e-5)
