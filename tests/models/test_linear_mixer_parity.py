"""The mixer `linear` as transformers' gated DeltaNet layer, weights and all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import sequence_mixers
from tests import parity_helper

WIDTH, HEADS, DIM, SIZE = 12, 2, 6, 4
OPTIONS = {
  "feature_map": "identity",
  "normalizer": "identity",
  "qk_norm": "unit",
  "update": "delta",
  "decay": "data",
  "short_convolution": SIZE,
  "output_norm": True,
  "output_gate": "elementwise",
  "gate_activation": "silu",
}


def layer():
  """Theirs with random parameters, those that begin as 1 too."""
  torch, module = parity_helper.import_transformers("qwen3_next")
  config = module.Qwen3NextConfig(
    hidden_size=WIDTH,
    linear_num_key_heads=HEADS,
    linear_num_value_heads=HEADS,
    linear_key_head_dim=DIM,
    linear_value_head_dim=DIM,
    linear_conv_kernel_dim=SIZE,
    num_hidden_layers=1,
    # Theirs divides queries by the root of their channels before the norm.
    rms_norm_eps=1e-6 / DIM,
    layer_types=["linear_attention"],
  )
  theirs = module.Qwen3NextGatedDeltaNet(config, 0).eval()
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, parameter in theirs.named_parameters():
      parameter.copy_(torch.randn(parameter.shape, generator=generator))
      # The factor of their decay is one, as a sigmoid has it.
      if name == "A_log":
        parameter.zero_()
  return torch, theirs


def ours_of(tensors):
  """Our parameters, with the names and layouts of the mixer."""
  inner = HEADS, DIM
  mixed = tensors["in_proj_qkvz.weight"].T.reshape(WIDTH, HEADS, 4, DIM)
  two = tensors["in_proj_ba.weight"].T.reshape(WIDTH, HEADS, 2)
  filters = tensors["conv1d.weight"][:, 0].T.reshape(SIZE, 3, *inner)
  names = "query", "key", "value"
  return {
    **{name: {"kernel": mixed[:, :, i]} for i, name in enumerate(names)},
    **{
      f"{name}_convolution": {"kernel": filters[:, i]}
      for i, name in enumerate(names)
    },
    "gate": {"kernel": mixed[:, :, 3]},
    "write_strength": {"kernel": two[..., 0], "bias": np.zeros(HEADS)},
    # exp(-softplus(a + b)) = sigmoid(-a - b).
    "decay": {"kernel": -two[..., 1], "bias": -tensors["dt_bias"]},
    "output_norm": {"scale": tensors["norm.weight"]},
    "out": {"kernel": tensors["out_proj.weight"].T.reshape(*inner, WIDTH)},
  }


@pytest.mark.parity
def test_is_the_layer_of_transformers():
  torch, theirs = layer()
  tensors = {n: x.detach().numpy() for n, x in theirs.named_parameters()}
  params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), ours_of(tensors))
  mixer = sequence_mixers.create(
    "linear", {"heads": HEADS, "head_dim": DIM}, OPTIONS
  )
  rng = np.random.default_rng(1)
  x, weight = rng.standard_normal((2, 2, 70, WIDTH)).astype(np.float32)
  expected_shapes = jax.eval_shape(mixer.init, jax.random.key(0), x)["params"]
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(
    jnp.shape, expected_shapes
  )
  inputs = torch.from_numpy(x).requires_grad_()
  expected = theirs(inputs)
  (expected * torch.from_numpy(weight)).sum().backward()

  @jax.jit
  def run(params, x):
    def weighed(params, x):
      out, _ = mixer.apply({"params": params}, x)
      return (out * weight).sum(), out

    return jax.value_and_grad(weighed, (0, 1), has_aux=True)(params, x)

  (_, out), (bars, x_bar) = run(params, x)
  _assert_near(out, expected.detach().numpy(), "output")
  _assert_near(x_bar, inputs.grad.numpy(), "x")
  gradients = {n: x.grad.numpy() for n, x in theirs.named_parameters()}
  wanted = ours_of(gradients)
  # They have no such bias.
  del wanted["write_strength"]["bias"]
  for module, leaves in wanted.items():
    for name, bar in leaves.items():
      _assert_near(bars[module][name], bar, f"{module}/{name}")


def _assert_near(actual, expected, name):
  """By the largest number; they add 1e-6 to squared lengths of heads."""
  np.testing.assert_allclose(
    actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max(), err_msg=name
  )
