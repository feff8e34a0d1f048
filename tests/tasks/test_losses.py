import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks import losses
from tests import parity_helper


@pytest.fixture
def problem():
  rng = np.random.default_rng(0)
  logits = 5 * rng.normal(size=(7, 11)).astype(np.float32)
  return logits, rng.dirichlet(np.ones(11), size=7).astype(np.float32)


@pytest.mark.parity
@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_value_and_gradient_equal_pytorch(name, dtype, problem):
  torch = parity_helper.import_torch()
  logits, targets = problem
  logits = np.asarray(jnp.asarray(logits, dtype), np.float32)
  x = torch.tensor(logits, requires_grad=True)
  peer = {
    "softmax": lambda y: torch.nn.functional.cross_entropy(
      x, y, reduction="none"
    ),
    "sigmoid": lambda y: torch.nn.functional.binary_cross_entropy_with_logits(
      x, y, reduction="none"
    ).sum(-1),
  }[name](torch.tensor(targets))
  peer.sum().backward()
  ours = losses.classification_loss(
    name, jnp.asarray(logits, dtype), jnp.asarray(targets)
  )
  assert ours.dtype == jnp.float32
  np.testing.assert_allclose(ours, peer.detach().numpy(), rtol=1e-5)
  gradient = jax.grad(
    lambda z: losses.classification_loss(name, z, targets).sum()
  )(jnp.asarray(logits, dtype))
  # bfloat16 rounds the gradient to 8 bits.
  tolerance = 1e-5 if dtype == "float32" else 1e-2
  np.testing.assert_allclose(
    gradient.astype(jnp.float32), x.grad.numpy(), rtol=tolerance, atol=1e-6
  )


def test_label_smoothing_mixes_with_uniform():
  smooth = losses.smooth_labels(jnp.array([[0.0, 1.0, 0.0, 0.0]]), 0.2)
  np.testing.assert_allclose(smooth, [[0.05, 0.85, 0.05, 0.05]], rtol=1e-6)


def test_unknown_loss_is_an_error(problem):
  with pytest.raises(ValueError, match=r"loss.name='hinge'.*softmax, sigmoid"):
    losses.classification_loss("hinge", *problem)
