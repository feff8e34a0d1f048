"""EScAIP: counts, a second statement, symmetries, slopes, padding, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from scipy import special

import models
from models import escaip, escaip_layers, taps
from models.escaip import EScAIP
from models.spherical_harmonics import spherical_harmonics
from tests import parity_helper

# Without and with the heads of energy and forces, from the authors' modules.
COUNTS = {
  "escaip_oc20_s": (80_146_570, 83_299_466),
  "escaip_oc20_m": (139_118_984, 146_207_624),
  "escaip_oc20_l": (299_245_706, 311_842_954),
  "escaip_mptrj": (49_677_446, 52_830_342),
  "escaip_md22": (14_985_862, 15_775_878),
  "escaip_spice": (5_938_822, 6_137_222),
}
_HEADS = ("energy", "force_scale", "force_vector")
FIELDS = {
  "width": 12,
  "depth": 2,
  "heads": 3,
  "elements": 9,
  "basis_size": 7,
  "degrees": 5,
  "cutoff": 4.0,
  "max_neighbors": 4,
  "told_widths": (6, 3, 4),
}
# A rotation that is not about an axis.
TURN = np.linalg.qr(np.random.default_rng(5).standard_normal((3, 3)))[0]
TURN = (TURN * np.linalg.det(TURN)).astype(np.float32)


def _size(tree):
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


@functools.cache
def _variables(**fields):
  model = EScAIP(**{**FIELDS, **fields})
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), **model.example_inputs())
  )
  return parity_helper.randomise(shapes, seed=0)


def _structures():
  """Two, the second smaller; the first has an atom that is alone."""
  rng = np.random.default_rng(3)
  positions = 1.4 * rng.standard_normal((2, 7, 3)).astype(np.float32)
  positions[0, 6] += 40
  numbers = rng.integers(1, 9, (2, 7)).astype(np.int32)
  numbers[1, 5:] = 0
  return numbers, positions


@functools.cache
def _compiled(forces="direct", **fields):
  model = EScAIP(**{**FIELDS, **fields}, forces=forces)
  return jax.jit(functools.partial(model.apply, _variables(forces=forces)))


def test_counts():
  assert set(COUNTS) == set(escaip.VARIANTS)
  for name, (trunk, whole) in COUNTS.items():
    # Blocks are alike but for the readouts that the end joins.
    model = models.create(name)
    found = []
    for depth in (1, 2):
      small = model.clone(depth=depth)
      shapes = jax.eval_shape(
        lambda m=small: m.init(jax.random.key(0), **m.example_inputs())
      )["params"]
      found.append(
        np.array([_size(shapes), _size([shapes[head] for head in _HEADS])])
      )
    total, heads = found[0] + (model.depth - 1) * (found[1] - found[0])
    assert (total - heads, total) == (trunk, whole), name


@pytest.mark.parity
def test_parity_with_a_second_statement():
  from tests.models import escaip_torch

  torch = escaip_torch.torch
  model = EScAIP(**FIELDS)
  numbers, positions = _structures()
  params = _variables(forces="direct")["params"]
  rng = np.random.default_rng(4)
  weights = rng.standard_normal((2, 7, 3)).astype(np.float32)
  weights[1, 5:] = 0

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
  def ours(params, positions):
    made = model.apply({"params": params}, numbers, positions)
    return made.energy.sum() + (made.forces * weights).sum(), made

  (_, made), gradients = ours(params, positions)
  theirs = jax.tree.map(
    lambda x: torch.from_numpy(np.asarray(x, np.float64)).requires_grad_(),
    params,
  )
  moved = torch.from_numpy(positions.astype(np.float64)).requires_grad_()
  loss = 0.0
  for b, count in enumerate((7, 5)):
    energy, forces = escaip_torch.predict(
      theirs, numbers[b, :count], moved[b, :count], model
    )
    np.testing.assert_allclose(made.energy[b], energy.item(), rtol=2e-5)
    np.testing.assert_allclose(
      made.forces[b, :count], forces.detach().numpy(), atol=3e-5, rtol=1e-4
    )
    np.testing.assert_array_equal(made.forces[b, count:], 0)
    loss = loss + energy + (forces * torch.from_numpy(weights[b, :count])).sum()
  loss.backward()
  expected = jax.tree.map(lambda x: x.grad.numpy(), theirs)
  flat = traverse_util.flatten_dict(gradients[0], sep="/")
  for path, value in traverse_util.flatten_dict(expected, sep="/").items():
    scale = max(np.abs(value).max(), 1e-2)
    np.testing.assert_allclose(
      flat[path] / scale, value / scale, atol=2e-3, err_msg=path
    )
  scale = np.abs(moved.grad.numpy()).max()
  np.testing.assert_allclose(
    gradients[1] / scale, moved.grad.numpy() / scale, atol=1e-3
  )


@pytest.mark.parametrize("forces", ["direct", "gradient"])
def test_symmetries(forces):
  numbers, positions = _structures()
  predict = _compiled(forces)
  made = predict(numbers, positions)
  moved = predict(numbers, positions @ TURN + np.float32(0.7))
  np.testing.assert_allclose(moved.energy, made.energy, rtol=1e-5)
  turned = np.abs(moved.forces - made.forces @ TURN).max()
  scale = float(jnp.abs(made.forces).max())
  if forces == "gradient":
    assert turned < 2e-4 * scale
  else:
    # By design: a vector of an edge scales coordinates one by one.
    assert turned > 1e-2 * scale
  order = np.random.default_rng(6).permutation(5)
  order = np.concatenate([order, [6, 5]])
  moved = predict(numbers[:, order], positions[:, order])
  np.testing.assert_allclose(moved.energy, made.energy, rtol=1e-5)
  np.testing.assert_allclose(
    moved.forces, made.forces[:, order], atol=2e-4 * scale
  )


def test_forces_are_the_slope_of_the_energy():
  numbers, positions = _structures()
  predict = _compiled("gradient")
  # The longest that no atom crosses the cutoff or the rank of another for.
  step = 2e-2
  rng = np.random.default_rng(7)
  forces = predict(numbers, positions).forces
  for _ in range(3):
    way = rng.standard_normal(positions.shape).astype(np.float32)
    way /= np.linalg.norm(way)
    energies = {
      n: predict(numbers, positions + np.float32(n * step) * way).energy
      for n in (-2, -1, 1, 2)
    }
    # Of fourth order.
    slope = 8 * (energies[1] - energies[-1]) - (energies[2] - energies[-2])
    slope /= 12 * step
    expected = -(forces * way).sum((1, 2))
    np.testing.assert_allclose(slope, expected, rtol=2e-3, atol=1e-3)


def test_padding_and_what_it_holds_change_nothing():
  numbers, positions = _structures()
  predict = _compiled("gradient")
  expected = predict(numbers, positions)
  positions[1, 5:] = np.nan
  made = predict(numbers, positions)
  np.testing.assert_array_equal(made.energy, expected.energy)
  np.testing.assert_array_equal(made.forces, expected.forces)
  # A structure of nothing.
  made = predict(np.zeros_like(numbers), positions)
  np.testing.assert_array_equal(made.energy, 0)
  np.testing.assert_array_equal(made.forces, 0)


def test_symmetric_atoms_have_slopes():
  # The middle of an octahedron has no order of odd degrees.
  axes = np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)])
  positions = np.stack([axes, 0 * axes + [[np.nan]]]).astype(np.float32)
  numbers = np.stack([np.full(7, 3), np.zeros(7)]).astype(np.int32)
  made = _compiled("gradient")(numbers, positions)
  assert np.isfinite(made.energy).all()
  assert np.isfinite(made.forces).all()


def test_half_precision():
  numbers, positions = _structures()
  made = _compiled(dtype="bfloat16")(numbers, positions)
  expected = _compiled()(numbers, positions)
  assert made.energy.dtype == made.forces.dtype == jnp.float32
  np.testing.assert_allclose(made.energy, expected.energy, rtol=0.1, atol=0.1)
  scale = float(jnp.abs(expected.forces).max())
  np.testing.assert_allclose(made.forces, expected.forces, atol=0.1 * scale)
  assert np.abs(made.forces - expected.forces).max() > 0


def test_the_gate_of_angles_is_a_sum_of_legendre_polynomials():
  rng = np.random.default_rng(8)
  channels, (count, places, heads) = (3, 1, 2), (2, 5, 2)
  q, k = rng.standard_normal((2, count, places, heads, 6)).astype(np.float32)
  v = rng.standard_normal((count, places, 3))
  v /= np.linalg.norm(v, axis=-1, keepdims=True)
  v[:, 4] = 0
  harmonics = spherical_harmonics(v.astype(np.float32), 3)
  made_q, made_k = (escaip_layers.gated(x, harmonics, channels) for x in (q, k))
  assert made_q.shape[-1] == 3 + 3 * 1 + 5 * 2
  scores = np.einsum("nqhd,nkhd->nhqk", made_q, made_k)
  cosines = np.einsum("nqx,nkx->nqk", v, v)
  expected, start = 0.0, 0
  for degree, size in enumerate(channels):
    polynomial = special.eval_legendre(degree, cosines)
    if degree:
      polynomial[:, 4] = polynomial[:, :, 4] = 0
    part = slice(start, start + size)
    products = np.einsum("nqhd,nkhd->nhqk", q[..., part], k[..., part])
    expected, start = expected + polynomial[:, None] * products, start + size
  np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize(
  "fields",
  [
    {"angles": "frequency", "frequency_channels": (2, 1, 1)},
    {"angles": "none"},
    {"mixing": "none"},
  ],
)
def test_other_forms_see_angles_or_not(fields):
  """With orders of degree 0 alone, only attention can tell an angle."""
  numbers = _structures()[0][:1, :3]
  small = {"degrees": 1, "depth": 1, "cutoff": 3.5}
  model = EScAIP(**{**FIELDS, **small, **fields}, forces="none")
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), **model.example_inputs())
  )
  variables = parity_helper.randomise(shapes, seed=0)
  if "attention" in variables["params"]["block_0"]:
    # So that weights are not all alike.
    variables["params"]["block_0"]["attention"]["qkv"]["kernel"] *= 4
  edges = "block_0/edges"
  read = jax.jit(functools.partial(taps.read, model, names=[edges]))
  # A chain, whose ends do not see each other, and the same but bent.
  straight = np.array([[[0, 0, 0], [3, 0, 0], [-1.5, 0, 0]]], np.float32)
  bent = np.array([[[0, 0, 0], [3, 0, 0], [-0.9, 1.2, 0]]], np.float32)
  made, other = (read(variables, numbers, x)[1] for x in (straight, bent))
  change = np.abs(made[edges] - other[edges]).max()
  told = fields.get("angles") == "frequency"
  assert change > 1e-3 if told else change < 1e-5


def test_taps():
  numbers, positions = _structures()
  model = EScAIP(**{**FIELDS, "depth": 1}, forces="none")
  variables = _variables(forces="none", depth=1)
  name = "block_0/attention/attention_weights"
  read = functools.partial(taps.read, model, names=[name])
  made, values = jax.jit(read)(variables, numbers, positions)
  weights = values[name].reshape(2, 7, 3, 4, 4)
  # Empty places, as queries, see the same keys; atoms that are not there none.
  np.testing.assert_allclose(weights[0].sum(-1), 1, rtol=1e-5)
  np.testing.assert_array_equal(weights[1, 5:], 0)
  np.testing.assert_array_equal(weights[0, 6, :, :, 1:], 0)
  assert made.forces is None

  closed = jax.jit(model.apply)(variables, numbers, positions)
  np.testing.assert_allclose(made.energy, closed.energy, rtol=1e-5)


def test_dropout():
  fields = escaip_layers.Fields(
    **{name: None for name in escaip_layers.Fields._fields}
  )._replace(dropout_rate=0.5, dtype="float32", param_dtype="float32")
  layer = escaip_layers.FeedForward(2, fields)
  x = np.ones((1, 50, 8), np.float32)
  key = jax.random.key(0)
  still, variables = layer.init_with_output(key, x, False)
  dropped = layer.apply(variables, x, True, rngs={"dropout": key})
  assert (still != 0).all()
  assert 0.3 < (dropped == 0).mean() < 0.7


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"forces": "direkt"}, "there is no forces 'direkt'"),
    ({"energy_reduce": "max"}, "there is no energy_reduce 'max'"),
    ({"angles": "cos"}, "there is no angles 'cos'"),
    ({"mixing": "mean"}, "there is no mixing 'mean'"),
    ({"cutoff": 0.0}, "cutoff is 0.0; it must be above 0"),
    ({"max_neighbors": 0}, "max_neighbors is 0; it must be 1"),
    ({"heads": 5}, "heads is 5, which does not divide width 12"),
    ({"basis_size": 1}, "basis_size is 1; it must be 2"),
    ({"depth": 0}, "depth is 0; it must be 1"),
    ({"told_widths": (4, 0, 2)}, r"told_widths is \(4, 0, 2\); each must"),
    ({"angles": "frequency"}, r"in all 64; they must be the 4 channels"),
  ],
)
def test_fields_that_do_not_fit(fields, message):
  model = EScAIP(**{**FIELDS, **fields})
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(model.init, jax.random.key(0), *_structures())


def test_inputs_that_do_not_fit():
  model, variables = EScAIP(**FIELDS), {}
  numbers, positions = _structures()
  with pytest.raises(ValueError, match="numbers has 9; atoms are 1 to 8"):
    model.apply(variables, numbers * 0 + 9, positions)
  with pytest.raises(ValueError, match=r"positions has shape \(2, 6, 3\)"):
    model.apply(variables, numbers, positions[:, 1:])
  with pytest.raises(ValueError, match="numbers is float32; it must be int"):
    model.apply(variables, numbers.astype(np.float32), positions)
