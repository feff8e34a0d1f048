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


def test_five_steps_of_lars():
  """`util/lars.py` of efficient probing and MAE, in float64.

  Arrays of one axis, and of zeros, have no trust ratio; the learning rate comes
  after the momentum.
  """
  rng = np.random.default_rng(0)
  shapes = {
    "kernel": (3, 5),
    "bias": (5,),
    "zeros": (2, 2),
    "tokens": (1, 2, 3),
  }
  start = {
    k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()
  }
  start["zeros"][:] = 0
  rates = (0.0, 0.5, 1.6, 1.0, 0.3)
  config = optimizers.default_config()
  config.update(dict(name="lars", weight_decay=0.1, momentum=0.8))
  # What the names say, and that of one axis there is no decay.
  config.decay_exclude = ("tokens",)
  tx = optimizers.create_optimizer(config, lambda step: jnp.array(rates)[step])
  params = {name: jnp.asarray(array) for name, array in start.items()}
  state = tx.init(params)
  expected = {name: array.astype(np.float64) for name, array in start.items()}
  moments = dict.fromkeys(start, 0.0)
  for rate in rates:
    gradients = {
      name: rng.standard_normal(s).astype(np.float32)
      for name, s in shapes.items()
    }
    updates, state = tx.update(
      {name: jnp.asarray(g) for name, g in gradients.items()}, state, params
    )
    params = optax.apply_updates(params, updates)
    for name, gradient in gradients.items():
      w, g = expected[name], gradient.astype(np.float64)
      if w.ndim > 1:
        g = g + (0 if name == "tokens" else 0.1) * w
        norms = np.linalg.norm(w), np.linalg.norm(g)
        g = g * (0.001 * norms[0] / norms[1] if min(norms) else 1)
      moments[name] = 0.8 * moments[name] + g
      expected[name] = w - rate * moments[name]
  for name, array in expected.items():
    np.testing.assert_allclose(params[name], array, rtol=1e-5, atol=1e-7)


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
    "scale_block": {"scale": 0, "kernel": 0},
    "head": {"kernel": 0},
  }
  mask = optimizers.decay_mask(params, ("bias", "scale"))
  assert mask == {
    "attention": {
      "relative_bias": True,
      "query": {"kernel": True, "bias": False},
    },
    "scale_block": {"scale": False, "kernel": True},
    "head": {"kernel": True},
  }
  assert optimizers.decay_mask(params, ())["scale_block"]["scale"]


def test_own_rules_must_take_something():
  config = optimizers.default_config()
  names = ["head/kernel"]
  assert optimizers.group_by_rules(config, names)["decay_exclude"][""] == names
  for field, value in (
    ("decay_exclude", (*config.decay_exclude, "haed")),
    ("learning_rate_rules", (("haed", 0.1),)),
  ):
    config = optimizers.default_config()
    config[field] = value
    with pytest.raises(ValueError, match=rf"{field} has 'haed'.* are head"):
      optimizers.group_by_rules(config, names)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(name="adan"), r"optimizer.name='adan'.*adamw"),
    (dict(decay_exclude=("(",)), r"decay_exclude has '\('"),
    (dict(learning_rate_rules=(("a", -1.0),)), r"-1.0 for 'a'.*not negative"),
    (dict(learning_rate_rules=(("a", np.nan),)), "nan for 'a'"),
    (dict(learning_rate_rules=(("a", True),)), "True for 'a'"),
    (dict(clip_norm=-1.0), r"optimizer.clip_norm=-1.0 must be a number in \["),
    (dict(b1=1.0), r"optimizer.b1=1.0 must be a number in \[0, 1\)"),
    (dict(eps=0.0), r"optimizer.eps=0.0 must be a number in \(0, inf\)"),
    (dict(weight_decay=np.nan), "optimizer.weight_decay=nan"),
    (dict(learning_rate=np.inf), "optimizer.learning_rate=inf"),
    (dict(momentum=None), "optimizer.momentum=None"),
  ],
)
def test_errors_name_the_field(fields, message):
  with pytest.raises(ValueError, match=message):
    create(**fields)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (dict(momentum=0.8), "momentum=0.8 does nothing .*'adamw': sgd, rmsprop"),
    (dict(name="sgd", b1=0.8), "b1=0.8 does nothing .*: adamw, adam, lamb"),
    (dict(name="lamb", rms_decay=0.8), "rms_decay=0.8 .*: rmsprop would"),
    (
      dict(name="sgd", trust_coefficient=0.1),
      "trust_coefficient=0.1 .*: lars would",
    ),
    (dict(boundaries=("1 epochs",)), "boundaries=.*'cosine': stepwise"),
    (
      dict(schedule="stepwise", final_learning_rate=1e-5),
      "final_learning_rate=1e-05 .*: cosine, linear, onecycle would use it",
    ),
  ],
)
def test_what_would_do_nothing_is_an_error(fields, message):
  config = optimizers.default_config()
  optimizers.check_unused(config)
  config.update(fields)
  with pytest.raises(ValueError, match=message):
    optimizers.check_unused(config)
