"""ELA and ULSAM beside their second statements, and gates in a ResNet."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from models import feature_gates, layers, resnet, strip_gate, taps, weight_maps
from models.strip_gate import StripGate
from models.subspace_gate import SubspaceGate
from tests import parity_helper
from tests.models import feature_gates_torch


def _images(channels, height=5, width=7, batch=3, seed=1):
  rng = np.random.default_rng(seed)
  return rng.standard_normal((batch, height, width, channels), np.float32)


def _variables(module, x, seed=0):
  init = functools.partial(module.init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), x)
  return parity_helper.randomise(shapes, seed)


def _count(module, channels):
  x = jax.ShapeDtypeStruct((1, 4, 4, channels), jnp.float32)
  init = functools.partial(module.init, train=False)
  params = jax.eval_shape(init, jax.random.key(0), x)["params"]
  return sum(leaf.size for leaf in jax.tree.leaves(params))


def _both_ways(run, *arguments):
  """Output and gradients of the sum of its sines, compiled once."""

  @jax.jit
  def compiled(*arguments):
    def loss(*arguments):
      out = run(*arguments)
      return jnp.sin(out).sum(), out

    numbers = tuple(range(len(arguments)))
    return jax.grad(loss, numbers, has_aux=True)(*arguments)

  return jax.device_get(compiled(*arguments))


def _torch_both_ways(module, images):
  torch = parity_helper.import_torch()
  x = torch.from_numpy(images).permute(0, 3, 1, 2).requires_grad_()
  out = module(x)
  out.sin().sum().backward()
  gradients = {k: p.grad.numpy() for k, p in module.named_parameters()}
  to_ours = lambda tensor: tensor.detach().permute(0, 2, 3, 1).numpy()
  return to_ours(out), to_ours(x.grad), gradients


# Channels of ResNet and MobileNet; those that a variant's groups divide.
@pytest.mark.parity
@pytest.mark.parametrize(
  ("variant", "channels"),
  [("tiny", 64), ("base", 144), ("small", 96), ("large", 48)],
)
def test_ela_equals_a_second_statement(variant, channels):
  size, inputs, norm_groups = strip_gate.VARIANTS[variant]
  module = StripGate(variant)
  x = _images(channels)
  params = _variables(module, x)["params"]
  theirs = feature_gates_torch.ela(
    channels, size, channels // inputs, norm_groups
  )
  tensors = {
    "conv.weight": params["kernel"].transpose(2, 1, 0).copy(),
    "norm.weight": params["scale"],
    "norm.bias": params["bias"],
  }
  parity_helper.fill(theirs, tensors)
  expected, x_gradient, gradients = _torch_both_ways(theirs, x)
  run = lambda params, x: module.apply({"params": params}, x)
  (own, by_x), out = _both_ways(run, params, x)
  np.testing.assert_allclose(out, expected, atol=1e-5)
  np.testing.assert_allclose(by_x, x_gradient, atol=2e-5)
  for name, gradient in (
    ("conv.weight", own["kernel"].transpose(2, 1, 0)),
    ("norm.weight", own["scale"]),
    ("norm.bias", own["bias"]),
  ):
    np.testing.assert_allclose(gradient, gradients[name], atol=1e-4)


def test_ela_counts():
  for variant, per_channel in (
    ("tiny", 7),
    ("base", 9),
    ("small", 42),
    ("large", 58),
  ):
    assert _count(StripGate(variant), 64) == 64 * per_channel


def test_a_map_that_is_constant_along_rows():
  """Its columns are one another's equals, so their norm leaves the bias."""
  channels = 16
  x = np.broadcast_to(_images(channels)[:, :, :1], (3, 5, 7, channels))
  kernel = jnp.zeros((7, 1, channels)).at[3].set(1.0)
  scale, bias = jnp.ones(channels), jnp.linspace(-1, 1, channels)
  rows, columns = strip_gate.strip_gates(
    x, kernel, scale, bias, norm_groups=channels
  )
  assert rows.shape == (3, 5, 1, channels)
  expected = np.broadcast_to(jax.nn.sigmoid(bias), columns.shape)
  np.testing.assert_allclose(columns, expected, atol=1e-3)
  assert rows.std(1).min() > 0.01
  # A kernel like its mirror image sees rows in any order alike.
  turned, _ = strip_gate.strip_gates(
    x[:, ::-1], kernel, scale, bias, norm_groups=channels
  )
  np.testing.assert_allclose(turned, rows[:, ::-1], atol=1e-6)


def test_ela_of_zeros_has_a_gradient_and_is_residual_if_asked():
  module, zeros = StripGate("base"), np.zeros((1, 3, 3, 16), np.float32)
  params = _variables(module, zeros)["params"]
  run = lambda params, x: module.apply({"params": params}, x)
  gradients, _ = _both_ways(run, params, zeros)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
  x = _images(16)
  plain = module.apply({"params": params}, x)
  twice = StripGate("base", residual=True).apply({"params": params}, x)
  np.testing.assert_allclose(twice, plain + x, atol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("groups", [1, 4, 8])
@pytest.mark.parametrize("train", [False, True])
def test_ulsam_equals_a_second_statement(groups, train):
  channels = 8
  module, x = SubspaceGate(groups), _images(channels)
  variables = _variables(module, x)
  theirs = feature_gates_torch.ulsam(channels, groups).train(train)
  parity_helper.fill(theirs, _ulsam_tensors(variables, groups))
  expected, x_gradient, gradients = _torch_both_ways(theirs, x)

  @jax.jit
  def compiled(variables, x):
    def loss(params, x):
      out, new = module.apply(
        {**variables, "params": params}, x, train, mutable=["batch_stats"]
      )
      return jnp.sin(out).sum(), (out, new)

    arguments = variables["params"], x
    return jax.grad(loss, (0, 1), has_aux=True)(*arguments)

  (own, by_x), (out, new) = jax.device_get(compiled(variables, x))
  np.testing.assert_allclose(out, expected, atol=1e-5)
  np.testing.assert_allclose(by_x, x_gradient, atol=2e-5)
  for name, value in _ulsam_tensors({"params": own}, groups).items():
    np.testing.assert_allclose(value, gradients[name], atol=2e-4)
  if train:
    buffers = {k: v.numpy() for k, v in theirs.named_buffers()}
    for name, value in _ulsam_tensors(new, groups).items():
      # Theirs is divided by the number of values less one.
      n = x[..., 0].size
      value = value * n / (n - 1) if "var" in name else value
      shares = 0.1 * _ulsam_tensors(variables, groups)[name] / (n - 1)
      value = value - shares if "var" in name else value
      np.testing.assert_allclose(value, buffers[name], atol=1e-5)


def _ulsam_tensors(variables, groups):
  """Ours cut into groups, under the names of the second statement."""
  tensors = {}
  for path, value in traverse_util.flatten_dict(variables).items():
    names = "/".join(path[1:])
    for ours, theirs in (
      ("/kernel", ".weight"),
      ("/scale", ".weight"),
      ("/bias", ".bias"),
      ("/mean", ".running_mean"),
      ("/var", ".running_var"),
    ):
      names = names.replace(ours, theirs)
    for i, part in enumerate(np.split(value.reshape(-1), groups)):
      if names == "depthwise.weight":
        part = part.reshape(-1, 1, 1, 1)
      if names == "point.weight":
        part = part.reshape(1, -1, 1, 1)
      tensors[f"subspaces.{i}.{names}"] = part
  return tensors


def test_ulsam_counts():
  for channels, groups in ((512, 4), (96, 1), (160, 16)):
    own = _count(SubspaceGate(groups), channels)
    assert own == 5 * channels + 3 * groups
    # The paper counts the two products; there are norms beside.
    own = _count(SubspaceGate(groups, use_bias=False), channels)
    assert own == 2 * channels + 2 * (channels + groups)
  assert _count(SubspaceGate(4), 512) == 2572


def test_maps_of_ulsam_sum_to_one_and_change_little():
  module, x = SubspaceGate(2), _images(8, 9, 9)
  variables = _variables(module, x)
  out, state = module.apply(variables, x, mutable=["intermediates"])
  weights = state["intermediates"]["attention_weights"]
  assert weights.shape == (3, 9, 9, 2)
  np.testing.assert_allclose(weights.sum((1, 2)), 1, atol=1e-5)
  factor = np.repeat(1 + weights, 4, axis=-1)
  np.testing.assert_allclose(out, x * factor, rtol=1e-5)


@pytest.mark.parametrize("gate", [StripGate("base"), SubspaceGate(4)])
def test_gates_in_bfloat16(gate):
  x = _images(16)
  variables = _variables(gate, x)
  exact = gate.apply(variables, x)
  half = gate.clone(dtype="bfloat16").apply(variables, x.astype(jnp.bfloat16))
  assert half.dtype == jnp.bfloat16
  error = jnp.abs(half.astype(jnp.float32) - exact).max()
  assert 0 < error < 0.03 * jnp.abs(exact).max()


@pytest.mark.parametrize("shape", [(5, 7), (8, 1)])
def test_max_pooling_of_stride_one(shape):
  x = _images(2, *shape)
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
  windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
  pooled = layers.max_pool(jnp.asarray(x), stride=1)
  np.testing.assert_array_equal(pooled, windows.max((-2, -1)))


RESNET = {
  "stem_widths": (8, 8, 16),
  "widths": (16, 32),
  "depths": (2, 1),
  "num_classes": 5,
}


def _gates_of(**fields):
  """The paths of modules of gates in a ResNet."""
  model = resnet.ResNet(**{**RESNET, **fields})
  image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
  params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
  paths = ["/".join(p[:-1]) for p in traverse_util.flatten_dict(params)]
  return sorted({p for p in paths if "gate" in p or "se" in p.split("/")})


def test_places_of_gates_in_a_resnet():
  blocks = ["stage_0/block_0", "stage_0/block_1", "stage_1/block_0"]
  ela = {"gate": "ela", "gate_options": {"variant": "base"}}
  assert _gates_of(**ela) == [f"{block}/gate" for block in blocks]
  assert _gates_of(gate="none") == _gates_of(squeeze_ratio=0.0) == []
  for places, expected in (
    (("within",), [f"{block}/inner_gate" for block in blocks]),
    (("stem",), ["stem_gate"]),
    (("stages",), [f"{block}/stage_gate" for block in blocks[1:]]),
  ):
    assert _gates_of(gate_places=places, **ela) == expected
  squeezed = _gates_of(squeeze_ratio=0.5)
  assert squeezed == sorted(
    f"{block}/se/{part}" for block in blocks for part in ("expand", "reduce")
  )


@pytest.mark.parametrize("block", ["bottleneck", "basic"])
def test_where_a_gate_within_acts(block):
  """One that is closed leaves of a branch what comes after it."""
  model = resnet.ResNet(
    **{**RESNET, "depths": (2,), "widths": (16,)},
    block=block,
    gate="ela",
    gate_places=("within", "stem", "stages"),
  )
  variables = parity_helper.random_variables(model, 0)

  def close(path, value):
    names = [key.key for key in path]
    if "inner_gate" not in names:
      return value
    return np.zeros_like(value) - 200 * (names[-1] == "bias")

  closed = jax.tree_util.tree_map_with_path(close, variables)
  block_1 = "stage_0/block_1"
  names = (
    "stage_0/block_0/hidden_state",
    f"{block_1}/hidden_state",
    f"{block_1}/stage_gate/row_gate",
    f"{block_1}/stage_gate/column_gate",
    "stem_gate/row_gate",
  )
  images = parity_helper.random_images(2, 16)
  run = jax.jit(lambda v, x: taps.read(model, v, x, names=names)[1])
  values = run(closed, images)
  before, after, rows, columns, of_stem = (values[name] for name in names)
  branch = 0.0
  if block == "bottleneck":
    # Of nothing the last norm makes the same for all pixels.
    norm, statistics = (
      closed[part]["stage_0"]["block_1"]["conv_2"]["norm"]
      for part in ("params", "batch_stats")
    )
    factor = norm["scale"] / np.sqrt(statistics["var"] + 1e-5)
    branch = (norm["bias"] - statistics["mean"] * factor)[None, None, None]
  expected = jax.nn.relu(before + branch) * rows * columns
  np.testing.assert_allclose(after, expected, atol=1e-5)
  # After the pooling.
  assert of_stem.shape == (2, 4, 1, 16)


# Compiles the gradient of a whole network.
@pytest.mark.slow
def test_training_a_resnet_with_gates():
  x = parity_helper.random_images(4, 16)
  model = resnet.ResNet(
    **{**RESNET, "depths": (1, 1)},
    gate="ulsam",
    gate_options={"groups": 2},
    gate_places=("blocks", "stages"),
    remat=True,
  )
  variables = parity_helper.random_variables(model, 0)

  @jax.jit
  def gradient(params):
    def loss(params):
      logits, new = model.apply(
        {**variables, "params": params}, x, train=True, mutable="batch_stats"
      )
      return jnp.sum(jnp.sin(10 * logits)), new

    return jax.grad(loss, has_aux=True)(params)

  gradients, new = gradient(variables["params"])
  flat = traverse_util.flatten_dict(gradients, sep="/")
  of_gates = {k: v for k, v in flat.items() if "gate" in k}
  assert len(of_gates) == 4 * 8
  before_norm = ("depthwise/bias", "point/bias")
  for path, value in of_gates.items():
    assert jnp.isfinite(value).all(), path
    # A norm takes away what a bias before it adds, and of 2 x 2 pixels the
    # pooling makes all alike.
    if path.startswith("stage_0") and not path.endswith(before_norm):
      assert jnp.abs(value).max() > 0, path
  moved = new["batch_stats"]["stage_0"]["block_0"]["gate"]["point_norm"]
  assert jnp.abs(moved["mean"]).max() > 0


def test_errors_say_what_would_fit():
  with pytest.raises(ValueError, match="no gate 'elo'; did you mean ela"):
    _gates_of(gate="elo")
  with pytest.raises(ValueError, match="gate='ela' 'groups'"):
    _gates_of(gate="ela", gate_options={"groups": 2})
  with pytest.raises(ValueError, match=r"gate is 'none', .* \{'groups': 2\}"):
    _gates_of(gate="none", gate_options={"groups": 2})
  with pytest.raises(ValueError, match="place in gate_places 'block'; did"):
    _gates_of(gate="ela", gate_places=("block",))
  with pytest.raises(ValueError, match="variant of ela 'bass'; did you"):
    _gates_of(gate="ela", gate_options={"variant": "bass"})
  # MobileNet-V2's width that the tiny one does not take.
  with pytest.raises(ValueError, match=r"144 channels; .* \['base', 'small', "):
    _count(StripGate("tiny"), 144)
  with pytest.raises(ValueError, match=r"groups is 3, .* 8 channels"):
    _count(SubspaceGate(3), 8)
  x = _images(8)
  one = jnp.ones(8)
  with pytest.raises(ValueError, match="norm_groups is 3, which does not"):
    strip_gate.strip_gates(x, jnp.ones((3, 1, 8)), one, one, norm_groups=3)
  with pytest.raises(ValueError, match="of an odd size"):
    strip_gate.strip_gates(x, jnp.ones((4, 1, 8)), one, one, norm_groups=4)
  with pytest.raises(ValueError, match="gate is 'ela', and weights are"):
    weight_maps.of(resnet.ResNet(gate="ela"))
  assert "none" not in feature_gates.GATES
