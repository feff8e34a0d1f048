"""Modules that are put into models: where, what they compute, what they are."""

import functools
import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import models
from models import feed_forward, insertion, layers, registry, taps
from tests import parity_helper
from tests.models import language, lina_small, small

TOKENS = jnp.arange(10).reshape(2, 5)
# What begins by changing nothing.
NEUTRAL = (
  ("mixer/(query|value)", {"name": "lora", "rank": 2}),
  ("mixer/key", {"name": "ia3"}),
  ("mixer/key", {"name": "shift"}),
  ("mixer/out", {"name": "p_adapter", "width": 8}),
  ("mlp", {"name": "adapter", "width": 3}),
)


def flat(tree):
  return traverse_util.flatten_dict(tree, sep="/")


def nested(by_path):
  return traverse_util.unflatten_dict(by_path, sep="/")


def randomised(model, *inputs, seed=0):
  shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
  return parity_helper.randomise(shapes, seed)


@pytest.mark.parametrize(
  "fields", [{}, {"depth": 2, "scan_layers": True, "remat": True}]
)
def test_a_model_stays_what_it_was(fields):
  base = language.model(**fields)
  model = base.clone(inserts=NEUTRAL)

  @jax.jit
  def run():
    key = jax.random.key(0)
    both = base.init(key, TOKENS), model.init(key, TOKENS)
    outs = base.apply(both[0], TOKENS), model.apply(both[1], TOKENS)
    grads = jax.grad(
      lambda variables: (model.apply(variables, TOKENS) ** 2).sum()
    )(both[1])
    return both, outs, grads

  (before, after), outs, grads = run()
  np.testing.assert_allclose(outs[0], outs[1], rtol=1e-5, atol=1e-6)
  old, new, grads = (flat(v["params"]) for v in (before, after, grads))
  assert all((new[name] == x).all() for name, x in old.items())
  added = {name for name in new if name not in old}
  layer = "layers/layer_0" if fields else "layer_0"
  places = {
    "mixer/query/lora": {"down/kernel", "up/kernel"},
    "mixer/key/ia3": {"scale"},
    "mixer/out/p_adapter": {"exponent", "smoothing", "up/bias"},
    "mlp/adapter": {"down/kernel", "up/bias"},
  }
  assert added >= {
    f"{layer}/{place}/{leaf}" for place, own in places.items() for leaf in own
  }
  find = insertion.finder(model)
  assert added == {name for name in new if find(tuple(name.split("/")))}
  # What is behind a matrix of zeros has no gradient yet; the matrix has.
  assert jnp.abs(grads[f"{layer}/mixer/query/lora/up/kernel"]).max() > 0
  assert jnp.abs(grads[f"{layer}/mixer/out/p_adapter/up/kernel"]).max() > 0


class Layered(taps.Tapped):
  """Layers of all kinds that an insert may stand at."""

  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    x = layers.Conv(
      6, (3, 3), strides=2, padding="SAME", dtype=self.dtype, name="conv"
    )(x)
    x = x.reshape(len(x), -1, 6)  # [batch, 6, 6]
    heads = layers.DenseGeneral((2, 5), dtype=self.dtype, name="heads")(x)
    x = layers.DenseGeneral(4, axis=(-2, -1), dtype=self.dtype, name="out")(
      heads
    )
    return layers.Dense(3, use_bias=False, dtype=self.dtype, name="last")(x)


IMAGES = jax.random.normal(jax.random.key(1), (2, 5, 4, 3))


def merged(params, rank, alpha):
  """Kernels with all that LoRA, IA3 and shifts do, and nothing inserted."""
  new = {}
  for name, own in params.items():
    kernel, bias = own["kernel"], own.get("bias", 0.0)
    if "lora" in own:
      down, up = (own["lora"][part]["kernel"] for part in ("down", "up"))
      kernel = kernel + alpha / rank * jnp.tensordot(down, up, 1)
    if "shift" in own:
      bias = bias + own["shift"]["bias"]
    if "ia3" in own:
      factor = own["ia3"]["scale"]
      if name == "out":  # Of the input, [heads, dim].
        kernel = kernel * factor[..., None]
      else:
        kernel, bias = kernel * factor, bias * factor
    new[name] = {"kernel": kernel, "bias": bias}
  return new


def test_lora_ia3_and_shift_are_other_kernels():
  lora = {"name": "lora", "rank": 2, "alpha": 3.0}
  model = Layered(
    inserts=(
      (".*", lora),
      ("last|heads", {"name": "shift"}),
      ("conv|heads|last", {"name": "ia3"}),
      ("out", {"name": "ia3", "side": "input"}),
    )
  )
  variables = randomised(model, IMAGES)
  assert variables["params"]["heads"]["lora"]["up"]["kernel"].shape == (2, 2, 5)
  with jax.numpy_rank_promotion("allow"):
    params = merged(variables["params"], 2, 3.0)
  bias = params["last"].pop("bias")
  wanted = Layered().apply({"params": params}, IMAGES) + bias[None, None]
  ours, grads = jax.jit(
    jax.value_and_grad(
      lambda variables: (lambda y: ((y**2).sum(), y))(
        model.apply(variables, IMAGES)
      ),
      has_aux=True,
    )
  )(variables)
  np.testing.assert_allclose(ours[1], wanted, rtol=1e-4, atol=1e-4)
  assert all(jnp.abs(x).max() > 0 for x in jax.tree.leaves(grads))
  half = model.clone(dtype="bfloat16").apply(variables, IMAGES)
  assert half.dtype == jnp.bfloat16
  scale = jnp.abs(wanted).max()
  np.testing.assert_allclose(half / scale, wanted / scale, atol=0.05)


def test_queries_keys_and_values_of_one_parameter_have_lora():
  place = "stage_0/block_0/block_attention/qkv"
  base = small.model(widths=(16,), depths=(1,))
  names = flat(jax.eval_shape(base.init, jax.random.key(0), small.images()))
  (place,) = {
    "/".join(name.split("/")[1:-1])
    for name in names
    if name.endswith("kernel")
    and len(names[name].shape) == 4
    and "block_att" in name
  }
  model = base.clone(inserts=((place, {"name": "lora", "rank": 3}),))
  variables = randomised(model, small.images())
  params = flat(variables["params"])
  down = params.pop(f"{place}/lora/down/kernel")  # [channels, 3]
  ups = [params.pop(f"{place}/lora/up_{i}/kernel") for i in range(3)]
  up = jnp.stack(ups, 1)  # [rank, 3, heads, dim]
  params[f"{place}/kernel"] += jnp.tensordot(down, up, 1)
  images = small.images()
  wanted = small.apply(base, {**variables, "params": nested(params)}, images)
  ours = small.apply(model, variables, images)
  np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", ["beside", "behind"])
def test_adapters_are_two_layers(place):
  options = {"name": "adapter", "width": 5, "place": place}
  options |= {"activation": "gelu"} if place == "behind" else {}
  model = language.model(inserts=(("mlp", options),))
  variables = randomised(model, TOKENS)
  own = variables["params"]["layer_0"]["mlp"]["adapter"]
  wide = language.model(width=768, mlp_width=8)
  shapes = jax.eval_shape(
    wide.clone(inserts=(("mlp", {"name": "adapter", "width": 96}),)).init,
    jax.random.key(0),
    TOKENS,
  )["params"]["layer_0"]["mlp"]["adapter"]
  # As the sheet of p-adapter counts.
  assert sum(x.size for x in jax.tree.leaves(shapes)) == 148_320

  seen = {}

  def watch(run, args, kwargs, context):
    y = run(*args, **kwargs)
    if context.method_name == "__call__":
      seen[context.module.path] = args, y
    return y

  with nn.intercept_methods(watch):
    model.apply(variables, TOKENS)
  (x,), out = seen["layer_0", "mlp"]
  init = nn.initializers.zeros
  layer = feed_forward.FeedForward("swiglu", 24, False, init, init)
  y = layer.apply({"params": variables["params"]["layer_0"]["mlp"]}, x)
  read = x if place == "beside" else y
  hidden = read @ own["down"]["kernel"] + own["down"]["bias"][None, None]
  act = nn.relu if place == "beside" else nn.gelu
  wanted = y + act(hidden) @ own["up"]["kernel"] + own["up"]["bias"][None, None]
  np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-5)


def test_what_stands_where():
  model = Layered(
    inserts=(
      ("heads", {"name": "lora", "rank": 1}),
      ("heads|out", {"name": "lora", "rank": 2}),
      # The first stands next to the layer: 2 (y + 1), and y + 1 of 2 y.
      ("last", {"name": "ia3"}),
      ("last", {"name": "shift"}),
    )
  )
  variables = model.init(jax.random.key(0), IMAGES)
  params = flat(variables["params"])
  assert params["heads/lora/down/kernel"].shape == (6, 1)
  assert params["out/lora/down/kernel"].shape == (2, 5, 2)
  params["last/ia3/scale"] = jnp.full(3, 2.0)
  params["last/shift/bias"] = jnp.ones(3)
  plain = Layered().apply(variables, IMAGES)
  changed = {"params": nested(params)}
  np.testing.assert_allclose(model.apply(changed, IMAGES), 2 * plain + 1)
  turned = model.clone(inserts=model.inserts[::-1])
  # And the second of two LoRAs is the first now.
  assert insertion.patterns(turned)[2] == "heads|out/lora"
  turned = turned.clone(inserts=turned.inserts[:2])
  np.testing.assert_allclose(turned.apply(changed, IMAGES), 2 * plain + 2)


@pytest.mark.parametrize(
  ("inserts", "message"),
  [
    ((("last", {"name": "lara"}),), "no insert 'lara'; did you mean lora"),
    ((("last", {"name": "lora", "rnk": 2}),), "no field of LoRA 'rnk'"),
    (
      (("last", {"name": "lora", "rank": 2.5}),),
      "rank=2.5 of lora must be int",
    ),
    ((("last", {"name": "lora", "rank": 0}),), "rank is 0"),
    ((("last", {"name": "ia3", "side": "in"}),), "no side of ia3 'in'"),
    ((("last", {"name": "adapter", "width": 0}),), "width is 0"),
    ((("last", {"name": "adapter", "place": "up"}),), "place of adapter 'up'"),
    ((("last", {}),), r"inserts has \('last', {}\); it must have pairs"),
    ((("l(", {"name": "lora"}),), r"pattern 'l\(', of which a component"),
    ((("last/", {"name": "lora"}),), r"the pattern 'last/'; it must be"),
    (("lora",), "inserts has 'lora'; it must have pairs"),
    ((("out", {"name": "tau_gate"}),), "tau_gate at out has no source"),
    (
      (("out", {"name": "tau_gate", "source": "conv"}),),
      r"source='conv' of tau_gate at out gives .* the layer reads",
    ),
    (
      (("out", {"name": "tau_gate", "source": "last"}),),
      r"reads 'last', but no module and no tap of that name ran before",
    ),
    ((("out", {"name": "p_adapter"}),), "reads 'value', but no module"),
  ],
)
def test_what_cannot_be_inserted(inserts, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(Layered(inserts=inserts).init, jax.random.key(0), IMAGES)


def test_a_convolution_of_groups_has_no_lora():
  class Grouped(taps.Tapped):
    @nn.compact
    def __call__(self, x):
      return nn.Conv(6, (3, 3), feature_group_count=3, name="conv")(x)

  model = Grouped(inserts=(("conv", {"name": "lora"}),))
  with pytest.raises(ValueError, match="a convolution of 3 groups"):
    jax.eval_shape(model.init, jax.random.key(0), IMAGES)


# Fields that make a model of a family small, where it is not by itself.
FAMILIES = {
  "models.autoencoder": {"width": 8, "groups": 4, "blocks": 1},
  "models.diffusion_transformer": {"width": 24, "depth": 2, "heads": 2},
  "models.dimr": {"widths": (8, 8), "depths": (1, 1), "heads": 2},
  "models.flowformer": {"depths": (1, 1, 1, 1)},
  "models.lina": lina_small.SMALL,
  "models.maxvit": small.FIELDS,
  "models.hat": {"depths": (2,)},
  "models.mtair": {"depths": (1, 1, 1, 1), "refinement_depth": 1},
  "models.point_detector": {
    "backbone": "resnet18",
    "backbone_options": {"depths": (1,), "widths": (4,)},
  },
  "models.resnet": {"depths": (1,), "widths": (4,)},
  "models.span": {"blocks": 1},
  "models.transformer": {**language.FIELDS, "mixers": ("full",)},
  "models.u_halonet": {"depths": (1, 1, 1, 1)},
}


def _init(model, kind):
  """`model.init` with the arrays of an example."""
  if hasattr(model, "example_inputs"):
    return functools.partial(model.init, **model.example_inputs())
  side = getattr(model, "size_multiple", 32)
  example = TOKENS if kind == "language" else jnp.zeros((1, side, side, 3))
  return lambda key: model.init(key, example)


@pytest.mark.parametrize("family", registry.FAMILIES)
def test_every_family_takes_inserts(family):
  module = importlib.import_module(family)
  name = min(module.VARIANTS, key=lambda n: (len(n), n))
  assert "inserts" in models.fields(name)
  model = models.create(name, **FAMILIES.get(family, {}))
  places = []

  def watch(run, args, kwargs, context):
    y = run(*args, **kwargs)
    given = args and isinstance(args[0], jax.Array) and isinstance(y, jax.Array)
    if given and args[0].shape[:-1] == y.shape[:-1] and context.module.path:
      places.append("/".join(context.module.path))
    return y

  def shapes(model):
    init = _init(model, module.KIND)
    return flat(jax.eval_shape(init, jax.random.key(0))["params"])

  with nn.intercept_methods(watch):
    before = shapes(model)
  chosen = {places[0], places[len(places) // 2], places[-1]}
  inserts = tuple((place, {"name": "lora"}) for place in sorted(chosen))
  after = shapes(model.clone(inserts=inserts))
  assert set(before) <= set(after)
  added = {name for name in after if name not in before}
  assert all("/lora/" in name for name in added)
  assert {name.split("/lora/")[0] for name in added} >= chosen
