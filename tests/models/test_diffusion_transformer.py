"""The diffusion transformer: DiT's totals, its outputs, other sizes, errors."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import attends, grid_mixers, pretrained, taps, weight_maps
from models.diffusion_transformer import SHARDING_RULES, DiffusionTransformer
from tests import parity_helper
from tests.models import diffusion_torch
from training import placement, sharding

# With the frozen table of 256 positions for patches of two, as DiT counts.
COUNTS = {
  "dit_s_2": 32_963_360,
  "dit_b_2": 130_512_416,
  "dit_l_2": 458_102_816,
  "dit_xl_2": 675_129_632,
}
SMALL = {
  "sample_shape": (6, 8),
  "channels": 3,
  "width": 24,
  "depth": 2,
  "heads": 2,
  "num_classes": 5,
  "implementation": "xla",
}
CROSS = {**SMALL, "conditioning": "cross", "label_tokens": 2}
VIDEO = {
  **CROSS,
  "sample_shape": (3, 4, 6),
  "patch_size": (1, 2, 2),
  "position_encoding": "rotary",
}


def randomised(model, seed=0):
  """Parameters without the zeros that hide what is behind them."""
  shapes = jax.eval_shape(
    functools.partial(model.init, **model.example_inputs()), jax.random.key(0)
  )
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    scale = leaf.shape[0] ** -0.5 if path[-1].key == "kernel" else 0.3
    values = scale * rng.standard_normal(leaf.shape)
    return jnp.asarray(values, leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def inputs_of(model, batch=2, shape=None, seed=1):
  rng = np.random.default_rng(seed)
  shape = batch, *(shape or model.sample_shape), model.channels
  x = jnp.asarray(rng.standard_normal(shape), jnp.float32)
  time = jnp.asarray(rng.uniform(0, 1000, batch), jnp.float32)
  label = rng.integers(0, model.num_classes + 1, (batch, model.label_tokens))
  return x, time, jnp.asarray(label, jnp.int32)


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


def cross_reference(model, params, x, time, label):
  """The model with cross-attention and rotary positions, in NumPy, float64."""
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  dim, (frames, rows, columns) = model.width // model.heads, (3, 2, 3)
  dense = lambda q, x: x @ q["kernel"] + q["bias"]
  silu = lambda x: x / (1 + np.exp(-x))
  gelu = lambda x: (
    x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  )

  def norm(x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)

  def heads(q, x):
    flat = x @ q["kernel"].reshape(model.width, -1) + q["bias"].reshape(-1)
    return flat.reshape(*x.shape[:2], model.heads, dim)

  def turn(x):
    z = x[..., : dim // 2] + 1j * x[..., dim // 2 :]
    n = 0
    for f in range(frames):
      for r in range(rows):
        for c in range(columns):
          angles = [
            place * 10000.0 ** -np.array([0, 0.5]) for place in (f, r, c)
          ]
          z[:, n] *= np.exp(1j * np.concatenate(angles))
          n += 1
    return np.concatenate([z.real, z.imag], -1)

  def attend(q, k, v):
    weights = np.exp(np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(dim))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*q.shape[:2], -1)

  angles = time[:, None] * 10000 ** (-np.arange(128) / 128)
  features = np.concatenate([np.cos(angles), np.sin(angles)], -1)
  t = p["time_embed"]
  c = silu(dense(t["shrink"], silu(dense(t["expand"], features))))
  tokens = p["label_embed"]["embedding"][label]
  start = np.broadcast_to(p["condition"]["start"], (len(x), 1, model.width))
  tokens = np.concatenate([start, tokens], 1)
  patches = [
    x[:, f, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].reshape(len(x), -1)
    for f in range(frames)
    for r in range(rows)
    for c in range(columns)
  ]
  h = dense(p["patch_embed"], np.stack(patches, 1))
  for i in range(model.depth):
    b = p[f"block_{i}"]
    m = np.split(dense(b["modulation"], c)[:, None], 6, -1)
    y = norm(h) * (1 + m[1]) + m[0]
    a = b["attention"]
    q, k, v = (heads(a[name], y) for name in ("query", "key", "value"))
    h = h + m[2] * dense(a["out"], attend(turn(q), turn(k), v))
    a = b["cross_attention"]
    y = norm(h) * b["cross_norm"]["scale"] + b["cross_norm"]["bias"]
    k, v = heads(a["key"], tokens), heads(a["value"], tokens)
    h = h + dense(a["out"], attend(heads(a["query"], y), k, v))
    y = norm(h) * (1 + m[4]) + m[3]
    h = h + m[5] * dense(b["mlp"]["shrink"], gelu(dense(b["mlp"]["expand"], y)))
  m = np.split(dense(p["final"]["modulation"], c)[:, None], 2, -1)
  h = dense(p["final"]["out"], norm(h) * (1 + m[1]) + m[0])
  h = h.reshape(len(x), frames, rows, columns, 2, 2, -1)
  return h.transpose(0, 1, 2, 4, 3, 5, 6).reshape(x.shape)


def test_cross_attention_and_rotary_positions():
  model = DiffusionTransformer(**VIDEO)
  variables = randomised(model)
  x, time, label = inputs_of(model)
  out = jax.jit(model.apply)(variables, x, time, label)
  wanted = cross_reference(
    model, variables["params"], *(np.asarray(a) for a in (x, time, label))
  )
  assert np.abs(wanted).max() > 1
  np.testing.assert_allclose(out, wanted, atol=1e-4, rtol=1e-4)


def test_no_label_is_the_class_for_none():
  model = DiffusionTransformer(**CROSS)
  variables = randomised(model)
  x, time, _ = inputs_of(model)
  none = jnp.full((2, 2), model.num_classes)
  run = jax.jit(model.apply)
  out = run(variables, x, time)
  np.testing.assert_array_equal(out, run(variables, x, time, none))
  other = run(variables, x, time, none - 1)
  assert np.abs(out - other).max() > 1e-3


@pytest.mark.parametrize("conditioning", ["cross", "joint"])
def test_padded_texts(conditioning):
  fields = {**SMALL, "num_classes": 0, "text_width": 5}
  model = DiffusionTransformer(**fields, conditioning=conditioning)
  variables = randomised(model)
  x, time, _ = inputs_of(model)
  text = jax.random.normal(jax.random.key(3), (2, 4, 5))
  lengths = jnp.array([4, 1])
  padded = text.at[1, 1:].set(jnp.nan)

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 3), has_aux=True)
  def run(variables, x, time, text, lengths=None):
    out = model.apply(variables, x, time, None, text, lengths)
    return (out**2).sum(), out

  (_, out), (_, grad) = run(variables, x, time, padded, lengths)
  assert (grad[1, 1:] == 0).all()
  assert np.isfinite(grad).all()
  (_, alone), (_, own) = run(variables, x[1:], time[1:], text[1:, :1])
  np.testing.assert_allclose(out[1:], alone, atol=2e-5)
  np.testing.assert_allclose(grad[1:, :1], own, atol=1e-4)
  # No text is a text without tokens.
  forward = jax.jit(model.apply)
  nothing = forward(variables, x, time, None, text, jnp.array([0, 0]))
  np.testing.assert_allclose(nothing, forward(variables, x, time), atol=2e-5)


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


def counting(module, q, k, v, layout, *, step=1):
  """An attend with a state: it weighs values by how often it was called."""
  count = module.variable(attends.STATE, "count", lambda: jnp.zeros(()))
  if module.is_mutable_collection(attends.STATE):
    count.value += step
  return v * count.value.astype(v.dtype)


def test_an_attend_has_a_state_options_and_layers(monkeypatch):
  monkeypatch.setitem(attends.ATTENDS, "counting", counting)
  model = DiffusionTransformer(
    **SMALL,
    attend="counting",
    attend_options={"step": 2},
    dense_layers=1,
    remat=True,
  )
  x, time, label = inputs_of(model)
  variables = model.init(jax.random.key(0), x, time, label)
  state = {attends.STATE: variables.pop(attends.STATE)}
  # The first layer stays dense.
  assert list(state[attends.STATE]) == ["block_1"]
  step = jax.jit(functools.partial(model.apply, mutable=[attends.STATE]))
  for n in (1, 2):
    _, state = step({**variables, **state}, x, time, label)
    count = state[attends.STATE]["block_1"]["attention"]["count"]
    # The first call was that of `init`.
    assert count == 2 * n + 2
  names = taps.list_names(model, {**variables, **state}, x, time, label)
  assert "block_0/attention/attention_weights" in names
  assert "block_1/attention/attention_weights" not in names


def test_a_mixer_by_name(monkeypatch):
  class Mean(nn.Module):
    heads: int
    power: int = 1

    @nn.compact
    def __call__(self, x, layout):
      assert layout == attends.Layout((3, 4), (3, 4))
      return jnp.broadcast_to((x**self.power).mean(1, keepdims=True), x.shape)

  monkeypatch.setitem(grid_mixers.GRID_MIXERS, "mean", Mean)
  model = DiffusionTransformer(
    **SMALL, mixer="mean", mixer_options={"power": 2}
  )
  out = jax.eval_shape(
    functools.partial(model.init_with_output, **model.example_inputs()),
    jax.random.key(0),
  )[0]
  assert out.shape == (1, 6, 8, 3)
  with pytest.raises(ValueError, match="no option of mixer='mean' 'powr'; did"):
    grid_mixers.check("mean", {"powr": 2})
  with pytest.raises(ValueError, match="mixer is 'mean', which takes no cond"):
    grid_mixers.check("mean", {}, joint=True)


def test_the_entropy_scale():
  model = DiffusionTransformer(**CROSS)
  variables = randomised(model)
  options = {"attend_options": {"scale_by": "entropy"}}
  scaled = model.clone(**options, cross_attend_options={"scale_by": "entropy"})
  inputs = inputs_of(model)
  same = model.apply(variables, *inputs)
  np.testing.assert_array_equal(same, scaled.apply(variables, *inputs))
  # 12 x 8 is 24 tokens, where training had 12.
  inputs = inputs_of(model, shape=(12, 8))
  name = "block_0/attention/attention_weights"
  name_of_cross = "block_0/cross_attention/attention_weights"
  first, second = (
    taps.read(m, variables, *inputs, names=["block_0/*attention*"])[1]
    for m in (model, scaled)
  )
  factor = math.sqrt(math.log(24) / math.log(12))
  spread = lambda x: np.log(x) - np.log(x).mean(-1, keepdims=True)
  np.testing.assert_allclose(
    spread(second[name]), factor * spread(first[name]), atol=1e-4
  )
  log = spread(second[name_of_cross])
  assert log.shape == (2, 2, 24, 3)


WRONG = {
  "width is 25": {"width": 25},
  r"sample_shape has sides \(6, 7\).* 8 in place of 7 along axis 1": {
    "sample_shape": (6, 7)
  },
  r"patch_size is \(2,\)": {"patch_size": (2,)},
  "no conditioning 'adaptiv'; did you mean adaptive": {
    "conditioning": "adaptiv"
  },
  "no position_encoding 'sin'": {"position_encoding": "sin"},
  "no mixer 'atention'; did you mean attention": {"mixer": "atention"},
  "no attend 'ful'; did you mean full": {"attend": "ful"},
  "no option of cross_attend='full' 'scales'; did you mean scale": {
    "cross_attend_options": {"scales": 1}
  },
  "no scale_by 'log'": {"attend_options": {"scale_by": "log"}},
  "dense_layers is 3; the model has 0 to 2": {"dense_layers": 3},
  "guided_channels is 4": {"guided_channels": 4},
  "text_width is 5, and conditioning='adaptive' reads no text": {
    "text_width": 5
  },
  "text_width is 5 and num_classes 5": {
    "conditioning": "cross",
    "text_width": 5,
  },
  "rotary' of 2 axes needs width / heads": {
    "position_encoding": "rotary",
    "heads": 12,
  },
}


@pytest.mark.parametrize("message", WRONG)
def test_fields_that_do_not_fit(message):
  model = DiffusionTransformer(**{**SMALL, **WRONG[message]})
  shape = 2, *model.sample_shape, 3
  args = jnp.zeros(shape), jnp.zeros((2,))
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(model.init, jax.random.key(0), *args)


WRONG_INPUTS = {
  r"x has shape \(2, 6, 8, 4\)": {"x": jnp.zeros((2, 6, 8, 4))},
  r"x has sides \(5, 8\); .* as 4 in place of 5 along axis 0": {
    "x": jnp.zeros((2, 5, 8, 3))
  },
  "time is int32": {"time": jnp.zeros((2,), jnp.int32)},
  r"label has shape \(2,\); the model needs \[2, 2\]": {
    "label": jnp.zeros((2,), jnp.int32)
  },
  "label has 6; they are 0 to 4, and 5 for no class": {
    "label": jnp.full((2, 2), 6)
  },
  "text is given, and text_width is 0": {"text": jnp.zeros((2, 1, 4))},
  "text_length is given without": {"text_length": jnp.zeros((2,), jnp.int32)},
}


@pytest.mark.parametrize("message", WRONG_INPUTS)
def test_inputs_that_do_not_fit(message):
  model = DiffusionTransformer(**CROSS)
  x, time, label = inputs_of(model)
  given = {"x": x, "time": time, "label": label, **WRONG_INPUTS[message]}
  with pytest.raises(ValueError, match=message):
    model.apply({"params": {}}, **given)


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


def test_joint_attention_reads_the_label():
  model = DiffusionTransformer(**{**CROSS, "conditioning": "joint"})
  variables = randomised(model)
  x, time, label = inputs_of(model)
  last = set(variables["params"]["block_1"])
  assert "text_mlp" not in last
  assert "text_mlp" in variables["params"]["block_0"]
  out, values = taps.read(
    model, variables, x, time, label, names=["block_1/*weights"]
  )
  (weights,) = values.values()
  # 12 places, the start token and two labels.
  assert weights.shape == (2, 2, 15, 15)
  swapped = model.apply(variables, x, time, label[:, ::-1])
  np.testing.assert_allclose(out, swapped, atol=1e-4)
  other = model.apply(variables, x, time, (label + 1) % 5)
  assert np.abs(out - other).max() > 1e-2


def test_padding_needs_an_attend_that_takes_it(monkeypatch):
  monkeypatch.setitem(attends.ATTENDS, "counting", counting)
  fields = {**CROSS, "num_classes": 0, "text_width": 5}
  model = DiffusionTransformer(**fields, cross_attend="counting")
  x, time, _ = inputs_of(model)
  with pytest.raises(ValueError, match="cross_attend is 'counting', which"):
    model.apply(
      {"params": {}},
      x,
      time,
      text=jnp.zeros((2, 3, 5)),
      text_length=jnp.ones((2,), jnp.int32),
    )
