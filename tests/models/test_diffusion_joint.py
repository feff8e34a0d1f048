"""Blocks of joint attention against diffusers' of Stable Diffusion 3."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from models import diffusion_layers, grid_mixers
from models.attends import Layout
from models.weight_maps import layouts
from tests import parity_helper

pytestmark = pytest.mark.parity

WIDTH, HEADS = 24, 2
NAMES = {
  "modulation": "norm1.linear",
  "text_modulation": "norm1_context.linear",
  "attention/query": "attn.to_q",
  "attention/key": "attn.to_k",
  "attention/value": "attn.to_v",
  "attention/out": "attn.to_out.0",
  "attention/text_query": "attn.add_q_proj",
  "attention/text_key": "attn.add_k_proj",
  "attention/text_value": "attn.add_v_proj",
  "attention/text_out": "attn.to_add_out",
  "mlp/expand": "ff.net.0.proj",
  "mlp/shrink": "ff.net.2",
  "text_mlp/expand": "ff_context.net.0.proj",
  "text_mlp/shrink": "ff_context.net.2",
}


class Blocks(nn.Module):
  """Two, the second of which leaves the text alone."""

  @nn.compact
  def __call__(self, x, text, condition):
    for last in (False, True):
      mixer = grid_mixers.maker(
        "attention", {}, {"heads": HEADS, "text_out": not last}
      )
      block = diffusion_layers.JointBlock(
        mixer, Layout((2, 3), (2, 3), 4), 4 * WIDTH, last=last
      )
      x, text = block(x, text, nn.silu(condition))
    assert text is None
    return x


def tensors_of(params):
  """Our two blocks' arrays under their names."""
  blocks = {}, {}
  for path, array in traverse_util.flatten_dict(params).items():
    block, *modules, leaf = path
    index = int(block[-1])
    layout = layouts.DENSE if leaf == "kernel" else layouts.FLAT
    tensor = layout.store(np.array(array))
    if (index, modules) == (1, ["text_modulation"]):
      # The scale comes before the shift there.
      tensor = np.concatenate(np.split(tensor, 2)[::-1])
    leaf = "weight" if leaf == "kernel" else leaf
    name = f"{NAMES['/'.join(modules)]}.{leaf}"
    blocks[index][name] = np.ascontiguousarray(tensor)
  return blocks


def test_values_and_gradients():
  torch, theirs = parity_helper.import_diffusers("models.attention")
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  inputs = draw(2, 6, WIDTH), draw(2, 4, WIDTH), draw(2, WIDTH)
  direction = draw(2, 6, WIDTH)
  shapes = jax.eval_shape(Blocks().init, jax.random.key(0), *inputs)["params"]
  params = jax.tree.map(
    lambda leaf: jnp.asarray(0.3 * draw(*leaf.shape)), shapes
  )

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(params):
    out = Blocks().apply({"params": params}, *inputs)
    return (out * direction).mean(), out

  (_, out), grads = run(params)
  blocks = [
    theirs.JointTransformerBlock(
      WIDTH, HEADS, WIDTH // HEADS, context_pre_only=last
    )
    for last in (False, True)
  ]
  for block, tensors in zip(blocks, tensors_of(params), strict=True):
    parity_helper.fill(block, tensors)
  x, text, condition = map(torch.from_numpy, inputs)
  for block in blocks:
    text, x = block(hidden_states=x, encoder_hidden_states=text, temb=condition)
  (x * torch.from_numpy(direction)).mean().backward()
  np.testing.assert_allclose(out, x.detach().numpy(), atol=1e-4, rtol=1e-4)
  for block, tensors in zip(blocks, tensors_of(grads), strict=True):
    for name, parameter in block.named_parameters():
      # The last block's text asks nothing of which anything becomes.
      wanted = 0 if parameter.grad is None else parameter.grad.numpy()
      np.testing.assert_allclose(
        tensors[name], wanted, atol=1e-5, rtol=1e-3, err_msg=name
      )
