"""DiMR: totals, a second statement in PyTorch, targets, bad input."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from models import dimr, pretrained, taps
from tests import parity_helper
from tests.models import dimr_torch

# The authors' code makes as many: of each stage, and of all.
TOTALS = {
  "dimr_xl_2r": (396_252_484, 108_793_924, 505_046_408),
  "dimr_g_2r": (833_236_996, 223_115_908, 1_056_352_904),
  "toy": (36_964, 19_188, 56_152),
}
TOY = {
  "sample_shape": (8, 8),
  "widths": (32, 16),
  "depths": (3, 3),
  "heads": 2,
  "num_classes": 10,
}
THREE = {
  "sample_shape": (12, 12),
  "channels": 3,
  "widths": (24, 8, 6),
  "depths": (5, 1, 3),
  "heads": 3,
  "mlp_ratio": 3,
  "kernel_size": 5,
  "num_classes": 4,
  "loss_weights": (0.1, 0.3, 1.0),
}
CASES = {"toy": TOY, "three stages": THREE}


def shapes(model):
  init = functools.partial(model.init, **model.example_inputs())
  return jax.eval_shape(init, jax.random.key(0))


def inputs(model, rows=3, sides=None, seed=0):
  rng = np.random.default_rng(seed)
  sides = sides or model.sample_shape
  x = rng.standard_normal((rows, *sides, model.channels), np.float32)
  time = np.float32([0, 399, 999])[:rows]
  return x, time, np.array([0, model.num_classes, 2])[:rows]


def randomised(**fields):
  """A model, and variables with factors of norms about one."""
  model = dimr.DiMR(**{**TOY, **fields})
  variables = parity_helper.randomise(shapes(model), 1)

  def shift(path, x):
    names = {key.key for key in path}
    return x + bool("scale" in names and names & {"noisy", "clean"})

  return model, jax.tree_util.tree_map_with_path(shift, variables)


def run(model, variables, *args, **options):
  call = functools.partial(model.apply, **options)
  return jax.jit(call)(variables, *args)


@pytest.mark.parametrize("name", TOTALS)
def test_totals(name):
  model = dimr.DiMR(**TOY) if name == "toy" else models.create(name)
  params = shapes(model)["params"]
  count = lambda tree: sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
  stages = count(params["stage_0"]), count(params["stage_1"])
  assert (*stages, count(params)) == TOTALS[name]


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_against_a_second_statement(case):
  """Values, and gradients of all parameters and of the image.

  The authors' own code, run once on the toy's tensors, differs by 2.4e-7.
  """
  torch = parity_helper.import_torch()
  model, variables = randomised(**CASES[case])
  x, time, label = inputs(model)
  directions = [
    np.random.default_rng(i).standard_normal(
      (3, *(s // ratio for s in model.sample_shape), model.channels), np.float32
    )
    for i, ratio in enumerate([4, 2, 1][-len(model.widths) :])
  ]

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
  def ours(params, x):
    outs = model.apply({"params": params}, x, time, label, method="predictions")
    pairs = zip(outs, directions, strict=True)
    return sum((out * d).sum() for out, d in pairs), outs

  (_, outs), (grads, x_grad) = ours(variables["params"], x)
  tensors = {
    name: torch.from_numpy(tensor).double().requires_grad_()
    for name, tensor in pretrained.to_tensors(variables, model).items()
  }
  image = torch.from_numpy(x).double().permute(0, 3, 1, 2).requires_grad_()
  expected = dimr_torch.predictions(
    tensors,
    image,
    torch.from_numpy(time).double() + 1,
    torch.from_numpy(label),
    model.heads,
  )
  loss = 0
  for out, theirs, direction in zip(outs, expected, directions, strict=True):
    theirs = theirs.permute(0, 2, 3, 1)
    loss = loss + (theirs * torch.from_numpy(direction)).sum()
    assert_close(out, theirs, 1e-5)
  loss.backward()
  assert_close(x_grad, image.grad.permute(0, 2, 3, 1), 1e-5)
  ours = pretrained.to_tensors({"params": grads}, model)
  assert ours.keys() == tensors.keys()
  for name, tensor in tensors.items():
    assert tensor.grad.any(), name
    assert_close(ours[name], tensor.grad, 1e-4)


def assert_close(ours, theirs, tolerance):
  """The largest difference, by the largest value that was expected."""
  theirs = theirs.detach().numpy()
  error = np.abs(np.asarray(ours, np.float64) - theirs).max()
  assert error <= tolerance * max(np.abs(theirs).max(), 1e-3), error


def test_weights_under_the_authors_names():
  model, variables = randomised()
  tensors = pretrained.to_tensors(variables, model)
  assert "stages.0.blocks.2.block1.norm.scale.nodecay_weight" in tensors
  assert tensors["stages.0.input_layer.3.position_embeddings.weight"].shape == (
    16,
    32,
  )
  again = pretrained.from_tensors(tensors, model)
  jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_half_precision_and_remat():
  model, variables = randomised()
  args = inputs(model)
  exact = run(model, variables, *args)
  again = run(model.clone(remat=True), variables, *args)
  np.testing.assert_allclose(again, exact, atol=1e-6)
  half = run(model.clone(dtype="bfloat16"), variables, *args)
  assert (exact.dtype, half.dtype) == (jnp.float32, jnp.float32)
  scale = np.abs(exact).max()
  assert 1e-5 * scale < np.abs(half - exact).max() < 0.05 * scale


def test_the_time_and_the_class_matter_and_rows_do_not_mix():
  model, variables = randomised()
  x, time, label = inputs(model)
  out = run(model, variables, x, time, label)
  later = run(model, variables, x, time[::-1].copy(), label)
  other = run(model, variables, x, time, label[::-1].copy())
  for changed in (later, other):
    apart = np.abs(changed - out).max((1, 2, 3))
    # The row in the middle has the same time and class.
    np.testing.assert_array_less([1e-3, -1, 1e-3], apart)
    np.testing.assert_allclose(changed[1], out[1], atol=1e-6)
  none = run(model, variables, x, time)
  np.testing.assert_allclose(none[1], out[1], atol=1e-6)


def test_a_smaller_image_lies_in_the_corner():
  model, variables = randomised()
  args = inputs(model, sides=(4, 6))
  out = run(model, variables, *args)
  cut = dimr.DiMR(**{**TOY, "sample_shape": (4, 6)})
  params = jax.tree.map(lambda x: x, variables["params"])
  for i, (rows, columns) in enumerate([(2, 3), (4, 6)]):
    places = params[f"stage_{i}"]["position"]
    params[f"stage_{i}"]["position"] = places[:rows, :columns]
  np.testing.assert_allclose(out, run(cut, {"params": params}, *args))


def test_targets():
  model = dimr.DiMR(**THREE)
  rng = np.random.default_rng(0)
  noise = rng.standard_normal((2, 8, 12, 3)).astype(np.float32)
  targets, weights = zip(*model.loss_targets(noise), strict=True)
  assert weights == model.loss_weights
  np.testing.assert_array_equal(targets[-1], noise)
  for target, ratio in zip(targets, (4, 2), strict=False):
    assert target.shape == (2, 8 // ratio, 12 // ratio, 3)
    cell = noise[1, ratio : 2 * ratio, 2 * ratio : 3 * ratio, 2]
    np.testing.assert_allclose(
      target[1, 1, 2, 2], cell.mean() * ratio, rtol=1e-5
    )


def test_targets_of_noise_keep_its_deviation():
  noise = jax.random.normal(jax.random.key(0), (4, 64, 64, 4))
  (coarse, weight), (fine, one) = dimr.DiMR().loss_targets(noise)
  assert (weight, one) == (0.25, 1.0)
  assert np.std(coarse) == pytest.approx(1, abs=0.03)
  assert np.std(fine) == pytest.approx(1, abs=0.03)


def test_the_map_of_attention_is_in_the_open():
  model, variables = randomised()
  x, time, label = inputs(model)
  name = "stage_0/block_1/attention/attention_weights"
  read = jax.jit(
    functools.partial(taps.read, model, names=[name, "*/hidden_state"])
  )
  out, values = read(variables, x, time, label)
  assert values[name].shape == (3, 2, 17, 17)
  np.testing.assert_allclose(values[name].sum(-1), 1, rtol=1e-5)
  assert len(values) == 7
  expected = run(model, variables, x, time, label)
  np.testing.assert_allclose(out, expected, atol=1e-5)


# Compiles a training step and takes 40 of them.
@pytest.mark.slow
def test_it_learns_eight_images():
  model = dimr.DiMR(**TOY)
  key = jax.random.key(0)
  params = jax.jit(model.init)(key, **model.example_inputs())
  noise, clean = jax.random.normal(key, (2, 8, 8, 8, 4))
  time = jnp.linspace(0, 999, 8)
  share = (time / 999).reshape(8, 1, 1, 1)
  x = share * noise + (1 - share) * clean
  optimizer = optax.adam(3e-3)

  @jax.jit
  def step(params, state):
    def loss(params):
      outs = model.apply(params, x, time, jnp.arange(8), method="predictions")
      terms = zip(outs, model.loss_targets(noise), strict=True)
      return sum(w * jnp.square(out - to).mean() for out, (to, w) in terms)

    value, grads = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(params, updates), state, value

  state, losses = optimizer.init(params), []
  for _ in range(40):
    params, state, value = step(params, state)
    losses.append(float(value))
  assert 1.0 < losses[0] < 2.0
  assert losses[-1] < 0.6 * losses[0]
  # What the time does is learned: both ends of a vector have parted.
  scale = params["params"]["stage_0"]["block_0"]["mlp_norm"]["scale"]
  assert np.abs(scale["noisy"] - scale["clean"]).max() > 1e-4
  assert np.abs(scale["slope"]).max() > 1e-5


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"depths": (3,)}, r"depths is \(3,\); widths \(32, 16\) need one"),
    ({"loss_weights": (1.0,)}, r"loss_weights is \(1.0,\); widths"),
    ({"depths": (3, 2)}, "each must be odd, and 2 is not"),
    ({"heads": 3}, "heads is 3; it must divide the width 32"),
    ({"kernel_size": 4}, "kernel_size is 4; it must be odd"),
    ({"sample_shape": (8, 7)}, "images are 8 x 7; 2 stages need sides that"),
  ],
)
def test_fields_that_do_not_fit(fields, message):
  with pytest.raises(ValueError, match=message):
    shapes(dimr.DiMR(**{**TOY, **fields}))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"x": (2, 8, 8, 3)}, "x has 3 channels; the model has channels=4"),
    ({"x": (2, 8, 7, 4)}, "images are 8 x 7; .* multiples of 2"),
    ({"x": (2, 16, 8, 4)}, r"x has images of 16 x 8; .*sample_shape=\(8, 8\)"),
    ({"time": (1,)}, r"time has shape \(1,\)"),
    ({"label": (2, 1)}, r"label is int32 of shape \(2, 1\); .*integers \(2,\)"),
    ({"text": (2, 3, 4)}, "text and text_length must be None"),
  ],
)
def test_inputs_that_do_not_fit(change, message):
  model = dimr.DiMR(**TOY)
  given = {"x": (2, 8, 8, 4), "time": (2,), "label": (2,), **change}
  dtypes = {"label": jnp.int32}
  given = {
    name: jax.ShapeDtypeStruct(shape, dtypes.get(name, jnp.float32))
    for name, shape in given.items()
  }
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda given: model.apply(shapes(model), **given), given)


def test_targets_that_do_not_fit():
  with pytest.raises(ValueError, match="images are 7 x 8"):
    dimr.DiMR().loss_targets(jnp.zeros((1, 7, 8, 4)))
