"""The diffusion transformer: DiT's totals and outputs, ways of computing."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import pretrained, taps, weight_maps
from models.diffusion_transformer import SHARDING_RULES, DiffusionTransformer
from tests import parity_helper
from tests.models import diffusion_torch
from tests.models.diffusion_small import (
  CROSS,
  SMALL,
  VIDEO,
  inputs_of,
  randomised,
)
from training import placement, sharding

# With the frozen table of 256 positions for patches of two, as DiT counts.
COUNTS = {
  "dit_s_2": 32_963_360,
  "dit_b_2": 130_512_416,
  "dit_l_2": 458_102_816,
  "dit_xl_2": 675_129_632,
}


@pytest.mark.parametrize("name", COUNTS)
def test_totals(name):
  model = models.create(name)
  variables = jax.eval_shape(
    functools.partial(model.init, **model.example_inputs()), jax.random.key(0)
  )
  table = math.prod(model.token_grid(model.sample_shape)) * model.width
  total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables))
  assert total + table == COUNTS[name]
  assert (model.guided_channels, model.learned_variance) == (3, True)


@pytest.mark.parametrize("shape", [(6, 8), (10, 4)])
def test_it_is_the_public_model(shape):
  torch = parity_helper.import_torch()
  model = DiffusionTransformer(**SMALL, learned_variance=True)
  variables = randomised(model)
  # Their times are rounded in float32 too, and so is all else here.
  theirs = diffusion_torch.create(model)
  tensors = pretrained.to_tensors(variables, model)
  parity_helper.fill(theirs, {name: t.copy() for name, t in tensors.items()})
  x, time, label = inputs_of(model, shape=shape)
  direction = np.random.default_rng(2).standard_normal((2, *shape, 6))
  direction = direction.astype(np.float32)

  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(variables):
    out = model.apply(variables, x, time, label)
    return (out * direction).mean(), out

  (_, out), grads = jax.jit(run)(variables)
  x, time, label = (torch.from_numpy(np.array(a)) for a in (x, time, label))
  wanted = theirs(x.permute(0, 3, 1, 2), time, label[:, 0].long())
  wanted = wanted.permute(0, 2, 3, 1)
  (wanted * torch.from_numpy(direction)).mean().backward()
  wanted = wanted.detach().numpy()
  assert np.abs(wanted).max() > 1
  np.testing.assert_allclose(out, wanted, atol=1e-4, rtol=1e-4)
  grads = pretrained.to_tensors(grads, model)
  for name, parameter in theirs.named_parameters():
    np.testing.assert_allclose(
      grads[name], parameter.grad.numpy(), atol=1e-4, rtol=1e-3, err_msg=name
    )


def test_published_weights():
  model = DiffusionTransformer(**SMALL)
  variables = randomised(model)
  tensors = pretrained.to_tensors(variables, model)
  table = diffusion_torch.table(3, 4, 24)[None]
  loaded = pretrained.from_tensors({**tensors, "pos_embed": table}, model)
  jax.tree.map(np.testing.assert_array_equal, loaded, variables)
  with pytest.raises(ValueError, match="pos_embed is not the table"):
    pretrained.from_tensors({**tensors, "pos_embed": table[:, ::-1]}, model)
  with pytest.raises(
    ValueError, match=r"pos_embed has \(1, 9, 24\), the model"
  ):
    pretrained.from_tensors({**tensors, "pos_embed": table[:, :9]}, model)
  with pytest.raises(ValueError, match="conditioning is 'cross'; published"):
    weight_maps.of(DiffusionTransformer(**CROSS))


def test_it_begins_with_nothing():
  model = DiffusionTransformer(**CROSS)
  x, time, label = inputs_of(model)
  variables = jax.jit(model.init)(jax.random.key(0), x, time, label)
  out, values = taps.read(
    model, variables, x, time, label, names=["*/hidden_state"]
  )
  assert (out == 0).all()
  # Each block is the identity.
  first, last = values.values()
  np.testing.assert_array_equal(first, last)


WAYS = {
  "remat": ("cross", {"remat": True}),
  "joint remat": ("joint", {"remat": True}),
  "bfloat16": ("cross", {"dtype": jnp.bfloat16}),
}


@pytest.mark.parametrize("case", WAYS)
def test_ways_of_computing(case):
  conditioning, fields = WAYS[case]
  model = DiffusionTransformer(**{**VIDEO, "conditioning": conditioning})
  variables = randomised(model)
  inputs = inputs_of(model)

  def run(model):
    def loss(variables):
      out = model.apply(variables, *inputs)
      return (out**2).mean(), out

    (_, out), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)
    return out, grad

  out, grad = run(model)
  other, other_grad = run(model.clone(**fields))
  assert other.dtype == jnp.float32
  error = 1e-5 if "remat" in case else 0.05
  for have, want in zip(
    jax.tree.leaves((other, other_grad)),
    jax.tree.leaves((out, grad)),
    strict=True,
  ):
    assert have.dtype == want.dtype
    size = np.linalg.norm(want) + 1e-2
    assert np.linalg.norm(have - want) <= error * size


def test_four_devices_compute_what_one_does():
  fields = {"width": 32, "heads": 4, "conditioning": "joint", "remat": True}
  model = DiffusionTransformer(**{**CROSS, **fields})
  variables = randomised(model)
  inputs = inputs_of(model, batch=4)

  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(variables, inputs):
    out = model.apply(variables, *inputs)
    return (out**2).mean(), out

  wanted = jax.jit(run)(variables, inputs)
  mesh = sharding.create_mesh({"fsdp": 2, "model": 2}, jax.devices()[:4])
  placed = placement.placements(variables, mesh, (), SHARDING_RULES)
  split = {name for name, p in placed.items() if "model" in p.axes}
  for layer in ("attention/query", "attention/text_out", "text_mlp/expand"):
    assert f"params/block_0/{layer}/kernel" in split
  assert not any("modulation" in name for name in split)
  with jax.set_mesh(mesh):
    variables = jax.device_put(
      variables, placement.state_shardings(variables, mesh, (), SHARDING_RULES)
    )
    inputs = jax.device_put(inputs, sharding.batch_sharding(mesh))
    have = jax.jit(run)(variables, inputs)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-4, rtol=1e-3),
    have,
    wanted,
  )
