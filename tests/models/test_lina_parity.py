"""LINA against a second statement in PyTorch, values and gradients."""

import functools

import jax
import ml_collections
import numpy as np
import pytest

import tasks
from configs import lina as lina_config
from input_pipeline import latents as latent_data
from models import lina, pretrained
from models.flow_head import FlowHead
from models.lina_attention import GATE_LEAVES, GATES
from tasks import mask_draws
from tests import parity_helper
from tests.models import lina_torch

pytestmark = pytest.mark.parity

SMALL = {
  "width": 24,
  "heads": 3,
  "connector_layers": 1,
  "encoder_layers": 1,
  "decoder_layers": 1,
  "flow_layers": 2,
  "queries": 4,
  "grid": (3, 5),
  "token_dim": 3,
  "num_classes": 7,
}
DRAWS = 4
BATCH = 2
BLOCKS = {
  **{f"gate {gate}": {"gate": gate} for gate in GATES},
  "subtraction": {"normalizer": "subtraction", "gate": "none"},
  "gated subtraction": {"normalizer": "subtraction"},
  "softmax": {"attention": "softmax", "gate": "none"},
  "no convolution": {"convolution": False},
}
LOSSES = {
  "classes": {},
  "text": {"text_width": 9, "token_dim": 8, "patch_size": 2},
}


def pair(**fields):
  """Returns a model, its variables, and the PyTorch module like it."""
  torch = parity_helper.import_torch()
  model = lina.Lina(**{**SMALL, **fields}, implementation="xla")
  init = functools.partial(model.init, **model.example_inputs())
  variables = parity_helper.randomise(
    jax.eval_shape(init, jax.random.key(0)), 1
  )
  # Gates about one, lest a denominator vanish.
  variables = jax.tree_util.tree_map_with_path(
    lambda path, x: x + (path[-1].key in GATE_LEAVES), variables
  )
  theirs = lina_torch.create(model)
  tensors = pretrained.to_tensors(variables, model)
  theirs.load_state_dict(
    {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
  )
  return model, variables, theirs.double()


def assert_close(ours, theirs, tolerance):
  """The largest difference, by the largest value that was expected."""
  theirs = theirs.detach().numpy()
  error = np.abs(np.asarray(ours, np.float64) - theirs).max()
  assert error <= tolerance * max(np.abs(theirs).max(), 1e-3), error


def compare_gradients(grads, model, theirs, tolerance=3e-5):
  ours = pretrained.to_tensors({"params": grads}, model)
  named = dict(theirs.named_parameters())
  assert ours.keys() == named.keys()
  for name, parameter in named.items():
    if parameter.grad is None:
      assert not ours[name].any(), name
    else:
      assert_close(ours[name], parameter.grad, tolerance)


@pytest.mark.parametrize("case", BLOCKS)
def test_a_decoder_block(case):
  torch = parity_helper.import_torch()
  model, variables, theirs = pair(**BLOCKS[case])
  rng = np.random.default_rng(2)
  tokens = model.queries + 15
  x, direction = rng.standard_normal((2, BATCH, tokens, 24), np.float32)

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
  def run(params, x):
    block = lambda model, x: model.decoder(x)
    y = model.apply({"params": params}, x, method=block)
    return (y * direction).sum(), y

  (_, y), (grads, x_grad) = run(variables["params"], x)
  block = theirs.image_encoder.blocks[1]
  x_theirs = torch.from_numpy(x).double().requires_grad_()
  y_theirs = block(x_theirs)
  (y_theirs * torch.from_numpy(direction)).sum().backward()
  assert_close(y, y_theirs, 1e-5)
  assert_close(x_grad, x_theirs.grad, 1e-5)
  compare_gradients(grads, model, theirs)


def test_the_flow_head():
  torch = parity_helper.import_torch()
  model, variables, theirs = pair()
  rng = np.random.default_rng(3)
  x_t, direction = rng.standard_normal((2, BATCH, 15, 3), np.float32)
  t = rng.uniform(0, 1000, (BATCH, 15)).astype(np.float32)
  z = rng.standard_normal((BATCH, 15, 24), np.float32)
  head = FlowHead(24, SMALL["flow_layers"])

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
  def run(params, x_t, z):
    velocity = head.apply({"params": params["flow_head"]}, x_t, t, z)
    return (velocity * direction).sum(), velocity

  (_, velocity), (grads, *inputs) = run(variables["params"], x_t, z)
  latents, z_theirs = (
    torch.from_numpy(y).double().requires_grad_() for y in (x_t, z)
  )
  images = latents.mT.reshape(BATCH, 3, 3, 5)
  expected = theirs.image_decoder(
    images, torch.from_numpy(t).double(), z_theirs
  )
  (expected * torch.from_numpy(direction)).sum().backward()
  # Angles reach a thousand, where float32 has 6e-5 of one.
  assert_close(velocity, expected, 1e-4)
  for ours, their in zip(inputs, (latents, z_theirs), strict=True):
    assert_close(ours, their.grad, 1e-4)
  compare_gradients(grads, model, theirs, 1e-4)


def create_task(model, **fields):
  """Masked generation with the model; text if it is of texts."""
  config = lina_config.get_config("test")
  config.noise_draws = DRAWS
  config.model = ml_collections.ConfigDict(
    {"name": "lina_d48w768", "implementation": "xla", **SMALL, **fields}
  )
  del config.model.num_classes
  p = model.patch_size
  sides = (n * p for n in model.grid)
  info = latent_data.DatasetInfo(
    num_eval_examples=0,
    class_names=tuple(map(str, range(model.num_classes))),
    image_shape=(*sides, model.token_dim // p**2),
    text_shape=(6, model.text_width) if model.text_width else None,
  )
  return tasks.create(config, info)


# Compiles a whole model with its gradient.
@pytest.mark.slow
@pytest.mark.parametrize("case", LOSSES)
def test_a_training_loss(case):
  torch = parity_helper.import_torch()
  model, variables, theirs = pair(**LOSSES[case])
  task = create_task(model, **LOSSES[case])
  rng = np.random.default_rng(4)
  p = model.patch_size
  shape = (BATCH, 3 * p, 5 * p, model.token_dim // p**2)
  images = rng.standard_normal(shape, np.float32)
  visible = np.array([[7, 0, 14], [3, 9, 1]], np.int32)
  batch = {
    "tokens": model.patchify(images),
    # Padded, in ours.
    "visible": np.concatenate([visible, np.full((BATCH, 2), 15, np.int32)], 1),
    "mask": np.ones(BATCH, np.float32),
    "damaged": np.zeros(BATCH, bool),
    "key": jax.random.split(jax.random.key(5), BATCH),
  }
  if model.text_width:
    given = rng.standard_normal((BATCH, 6, model.text_width), np.float32)
    batch |= {"text": given, "text_length": np.full(BATCH, 6, np.int32)}
  else:
    given = np.array([2, 7], np.int32)
    batch["label"] = given
  others = {k: v for k, v in variables.items() if k != "params"}

  @jax.jit
  @jax.value_and_grad
  def run(params):
    total, _ = task.loss({"params": params, **others}, batch, None)
    return total / task.weight(batch)

  loss, grads = run(variables["params"])
  # What is drawn is in tests/tasks/test_masked_generation.py.
  times, noise = jax.vmap(
    lambda key, x: mask_draws.times_and_noise(key, DRAWS, x)
  )(batch["key"], batch["tokens"])
  noise = [model.unpatchify(noise[:, i]) for i in range(DRAWS)]
  channels_first = lambda x: torch.from_numpy(
    np.moveaxis(np.asarray(x), -1, -3).copy()
  ).double()
  of_given = torch.from_numpy(given)
  expected = theirs.loss(
    of_given.double() if model.text_width else of_given,
    channels_first(images),
    torch.from_numpy(visible).long(),
    torch.from_numpy(np.array(times.swapaxes(0, 1))).double() / 1000,
    channels_first(np.stack(noise)),
  )
  expected.backward()
  np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
  # What embeds the frame before has none: no image has such a frame.
  compare_gradients(grads, model, theirs, 2e-4)
