"""A layer of gated attention against transformers' and the paper's layouts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import normalization, pretrained, sequence_mixers
from models.huggingface import decoders
from models.huggingface.options import Options
from models.weight_maps.hub import gated_attention
from tests import parity_helper

HEADS, KV_HEADS, DIM, WIDTH, LENGTH = 4, 2, 16, 24, 13
CONFIG = {
  "vocab_size": 61,
  "hidden_size": WIDTH,
  "num_hidden_layers": 4,
  "num_attention_heads": HEADS,
  "num_key_value_heads": KV_HEADS,
  "head_dim": DIM,
  "max_position_embeddings": 64,
  "rms_norm_eps": 1e-3,
}


def _x():
  rng = np.random.default_rng(0)
  return rng.standard_normal((2, LENGTH, WIDTH)).astype(np.float32)


def _load(tensors, mixer, order="heads"):
  return pretrained.from_tensors(
    tensors,
    mixer,
    init=functools.partial(mixer.init, x=_x()),
    weight_map=gated_attention.weight_map(mixer, order),
  )


@pytest.mark.parity
@pytest.mark.parametrize("bias", [False, True])
def test_qwen3_next_s_layer(bias):
  torch, module = parity_helper.import_transformers("qwen3_next")
  rope = {"rope_type": "default", "rope_theta": 50.0}
  rope["partial_rotary_factor"] = 0.25
  options = {**CONFIG, "attention_bias": bias, "rope_parameters": rope}
  config = module.Qwen3NextConfig(**options, attn_implementation="eager")
  theirs = module.Qwen3NextAttention(config, layer_idx=3).eval()
  rng = np.random.default_rng(1)
  with torch.no_grad():
    for parameter in theirs.parameters():
      noise = rng.standard_normal(tuple(parameter.shape), np.float32)
      noise *= 0.3 if parameter.ndim == 1 else 0.5
      parameter.copy_(torch.from_numpy(noise))
  x = _x()
  hidden = torch.from_numpy(x).requires_grad_()
  places = torch.arange(LENGTH)[None].expand(len(x), -1)
  turns = module.Qwen3NextRotaryEmbedding(config)(hidden, places)
  unseen = torch.full((LENGTH, LENGTH), -torch.inf).triu(1)[None, None]
  expected, _ = theirs(hidden, turns, unseen)
  direction = rng.standard_normal(x.shape, np.float32)
  (expected * torch.from_numpy(direction)).sum().backward()
  tensors = {n: p.detach().numpy() for n, p in theirs.named_parameters()}

  fields = decoders.qwen3_next_attention(Options(config.to_dict()))
  mixer = sequence_mixers.create("full", fields)
  variables = _load(tensors, mixer)

  @jax.jit
  def run(variables, x):
    def loss(variables, x):
      out, _ = mixer.apply(variables, x)
      return (out * direction).sum(), out

    return jax.grad(loss, (0, 1), has_aux=True)(variables, x)

  (gradients, to_x), out = run(variables, x)
  np.testing.assert_allclose(out, expected.detach().numpy(), atol=1e-4)
  np.testing.assert_allclose(to_x, hidden.grad.numpy(), rtol=1e-4, atol=1e-3)
  weight_map = gated_attention.weight_map(mixer)
  found = pretrained.to_tensors(gradients, mixer, weight_map=weight_map)
  assert found.keys() == tensors.keys()
  for name, parameter in theirs.named_parameters():
    want = parameter.grad.numpy()
    error = np.linalg.norm(found[name] - want)
    # One number for all keys of a query moves no softmax, but norms follow.
    assert error < 1e-4 * np.linalg.norm(want), name


def _grouped(tensors, x, headwise):
  """The repository's layer: q_proj split within each head of keys."""
  group = HEADS // KV_HEADS
  project = lambda name: x @ tensors[f"{name}.weight"].T.astype(np.float64)
  both = project("q_proj").reshape(*x.shape[:2], KV_HEADS, -1)
  q = both[..., : group * DIM].reshape(*x.shape[:2], HEADS, DIM)
  gate = both[..., group * DIM :]
  gate = gate.reshape(*x.shape[:2], HEADS, 1 if headwise else DIM)
  k, v = (
    project(name).reshape(*x.shape[:2], KV_HEADS, DIM)
    for name in ("k_proj", "v_proj")
  )
  norm = lambda y, name: (
    y
    / np.sqrt(np.square(y).mean(-1, keepdims=True) + 1e-6)
    * tensors[f"{name}.weight"]
  )
  q, k = norm(q, "q_norm"), norm(k, "k_norm")
  k, v = (np.repeat(y, group, axis=2) for y in (k, v))
  scores = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(DIM)
  scores = np.where(np.tri(LENGTH, dtype=bool), scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  out = np.einsum("bhij,bjhd->bihd", weights, v) / (1 + np.exp(-gate))
  return out.reshape(*x.shape[:2], -1) @ tensors["o_proj.weight"].T


@pytest.mark.parametrize("gate", ["headwise", "elementwise"])
def test_the_paper_s_layout(gate):
  rng, x = np.random.default_rng(3), _x()
  gates = HEADS if gate == "headwise" else HEADS * DIM
  shapes = {
    "q_proj": (HEADS * DIM + gates, WIDTH),
    "k_proj": (KV_HEADS * DIM, WIDTH),
    "v_proj": (KV_HEADS * DIM, WIDTH),
    "o_proj": (WIDTH, HEADS * DIM),
    "q_norm": (DIM,),
    "k_norm": (DIM,),
  }
  tensors = {
    f"{name}.weight": rng.standard_normal(shape, np.float32)
    for name, shape in shapes.items()
  }
  fields = {"heads": HEADS, "kv_heads": KV_HEADS, "head_dim": DIM}
  fields |= {"qk_norm": normalization.RMSNorm, "output_gate": gate}
  mixer = sequence_mixers.create("full", fields)
  variables = _load(tensors, mixer, "groups")
  out, _ = jax.jit(mixer.apply)(variables, x)
  expected = _grouped(tensors, x, gate == "headwise")
  np.testing.assert_allclose(out, expected, atol=1e-4 * np.abs(expected).max())
  other, _ = jax.jit(mixer.apply)(_load(tensors, mixer), x)
  assert jnp.abs(other - out).max() > 0.1
  weight_map = gated_attention.weight_map(mixer, "groups")
  back = pretrained.to_tensors(variables, mixer, weight_map=weight_map)
  jax.tree.map(np.testing.assert_array_equal, back, tensors)


def test_an_order_that_is_not_known():
  mixer = sequence_mixers.create("full", {"heads": 2, "head_dim": 4})
  with pytest.raises(ValueError, match=r"order 'group'; did you mean groups"):
    gated_attention.weight_map(mixer, "group")
