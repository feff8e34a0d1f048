import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import parity_helper
from training import optimizers

RATE = 0.1


def create(**fields):
  config = optimizers.default_config()
  config.update(fields)
  return optimizers.create_optimizer(config, lambda step: RATE)


def run(tx, gradients, start):
  """Walks a one-parameter model through a list of gradients."""
  params = {"kernel": jnp.asarray(start)}
  state = tx.init(params)
  for gradient in gradients:
    updates, state = tx.update({"kernel": jnp.asarray(gradient)}, state, params)
    params = optax.apply_updates(params, updates)
  return np.asarray(params["kernel"])


@pytest.fixture
def problem():
  rng = np.random.default_rng(0)
  start = rng.normal(size=(3, 5)).astype(np.float32)
  return start, rng.normal(size=(6, 3, 5)).astype(np.float32)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_equals_pytorch(name, problem):
  torch = parity_helper.import_torch()
  start, gradients = problem
  parameter = torch.nn.Parameter(torch.tensor(start))
  peer = {
    "adamw": lambda p: torch.optim.AdamW(
      p, RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.3
    ),
    "adam": lambda p: torch.optim.Adam(p, RATE, weight_decay=0.3),
    "sgd": lambda p: torch.optim.SGD(
      p, RATE, momentum=0.9, nesterov=True, weight_decay=0.3
    ),
  }[name]([parameter])
  for gradient in gradients:
    parameter.grad = torch.tensor(gradient)
    peer.step()
  ours = run(create(name=name, weight_decay=0.3), gradients, start)
  np.testing.assert_allclose(
    ours, parameter.detach().numpy(), rtol=2e-5, atol=1e-6
  )


def test_rmsprop_is_tensorflows(problem):
  start, gradients = problem
  w, rms, momentum = start.astype(np.float64), 1.0, 0.0
  for gradient in gradients:
    g = gradient + 0.3 * w
    rms = 0.9 * rms + 0.1 * g**2
    momentum = 0.8 * momentum + RATE * g / np.sqrt(rms + 1e-3)
    w = w - momentum
  tx = create(name="rmsprop", momentum=0.8, eps=1e-3, weight_decay=0.3)
  np.testing.assert_allclose(run(tx, gradients, start), w, rtol=2e-5, atol=1e-6)


def test_lamb_scales_each_update_to_its_parameter(problem):
  start, gradients = problem
  w, m, v = start.astype(np.float64), 0.0, 0.0
  for t, g in enumerate(gradients, start=1):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    update = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6) + 0.3 * w
    w = w - RATE * np.linalg.norm(w) / np.linalg.norm(update) * update
  tx = create(name="lamb", eps=1e-6, weight_decay=0.3)
  np.testing.assert_allclose(run(tx, gradients, start), w, rtol=2e-5, atol=1e-6)


def test_clips_by_the_global_norm():
  tx = create(name="sgd", momentum=0.0, clip_norm=1.0)
  params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
  gradients = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
  updates, _ = tx.update(gradients, tx.init(params), params)
  np.testing.assert_allclose(updates["a"], [-0.06], rtol=1e-6)
  np.testing.assert_allclose(updates["b"], [-0.08], rtol=1e-6)


def test_decay_follows_the_name_rule():
  params = {
    "attention": {"relative_bias": 0, "query": {"kernel": 0, "bias": 0}},
    "norm": {"scale": 0},
    "head": {"kernel": 0},
  }
  mask = optimizers.decay_mask(params, r"bias|scale")
  assert mask == {
    "attention": {
      "relative_bias": False,
      "query": {"kernel": True, "bias": False},
    },
    "norm": {"scale": False},
    "head": {"kernel": True},
  }
  assert optimizers.decay_mask(params, "")["norm"]["scale"]


def test_errors_name_the_field():
  with pytest.raises(ValueError, match=r"optimizer.name='adan'.*adamw"):
    create(name="adan")
  with pytest.raises(ValueError, match=r"decay_exclude='\('"):
    create(decay_exclude="(")
