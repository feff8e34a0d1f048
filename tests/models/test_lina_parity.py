"""LINA against a second statement in PyTorch, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import lina, pretrained
from models.flow_head import FlowHead
from models.lina_attention import GATE_LEAVES, GATES
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


def our_loss(model, variables, given, latents, visible, share, noise):
  """The masked loss of the fact sheet, with the noise given."""
  apply = functools.partial(model.apply, variables)
  tokens = model.patchify(latents)
  condition = apply(given, method="condition")
  z = apply(condition, tokens, visible, method="encode_decode")
  noise = jnp.stack([model.patchify(e) for e in noise])
  sigma = share[..., None]
  x_t = sigma * noise + (1 - sigma) * tokens[None]
  velocity = apply(x_t, 1000 * share, z[None], method="velocity")
  error = jnp.square(velocity - (noise - tokens[None])).mean(-1)
  rows = jnp.arange(len(visible))[:, None]
  masked = jnp.ones(tokens.shape[:2]).at[rows, visible].set(0, mode="drop")
  weights = jnp.broadcast_to(masked[None], error.shape)
  return (error * weights).sum() / (weights.sum() + 1e-5)


# Compiles a whole model with its gradient.
@pytest.mark.slow
@pytest.mark.parametrize("case", LOSSES)
def test_a_training_loss(case):
  torch = parity_helper.import_torch()
  model, variables, theirs = pair(**LOSSES[case])
  rng = np.random.default_rng(4)
  p = model.patch_size
  shape = (3 * p, 5 * p, model.token_dim // p**2)
  latents, *noise = rng.standard_normal((1 + DRAWS, BATCH, *shape), np.float32)
  # Times of whole numbers, as they are drawn in training.
  share = rng.integers(0, 1000, (DRAWS, BATCH, 15)).astype(np.float32) / 1000
  visible = np.array([[7, 0, 14], [3, 9, 1]], np.int32)
  if model.text_width:
    given = rng.standard_normal((BATCH, 6, model.text_width), np.float32)
  else:
    given = np.array([2, 7], np.int32)
  noise = np.stack(noise)
  # Padded, in ours.
  padded = np.concatenate([np.full((BATCH, 2), 15, np.int32), visible], 1)
  others = {k: v for k, v in variables.items() if k != "params"}

  @jax.jit
  @jax.value_and_grad
  def run(params):
    state = {"params": params, **others}
    return our_loss(model, state, given, latents, padded, share, noise)

  loss, grads = run(variables["params"])
  channels_first = lambda x: torch.from_numpy(np.moveaxis(x, -1, -3)).double()
  of_given = torch.from_numpy(given)
  expected = theirs.loss(
    of_given.double() if model.text_width else of_given,
    channels_first(latents),
    torch.from_numpy(visible).long(),
    torch.from_numpy(share).double(),
    channels_first(noise),
  )
  expected.backward()
  np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
  # What embeds the frame before has none: no image has such a frame.
  compare_gradients(grads, model, theirs, 2e-4)
