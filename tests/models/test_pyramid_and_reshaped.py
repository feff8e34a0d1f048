"""PSA and Re-ttention as attends of a model, and their steps of sampling."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import attention
import generation
from attention import (
  cluster_orders,
  masks,
  permutations,
  pyramid_importance,
  pyramid_levels,
)
from generation import methods, paths
from models import attends, taps
from models.attends import Layout
from models.attends.reshaped_window import window
from models.diffusion_transformer import DiffusionTransformer
from tests.models.bare_attend import Bare

GRID, TEXT = (2, 4, 6), 5
BLOCKS = {"block_q": 8, "block_k": 8}


def arrays(tokens, seed=0):
  rng = np.random.default_rng(seed)
  return tuple(
    jnp.asarray(rng.normal(size=(2, tokens, 2, 8)), jnp.float32)
    for _ in range(3)
  )


def layout_of(text):
  return Layout(GRID, GRID, text), arrays(48 + text)


@pytest.mark.parametrize("text", [0, TEXT])
@pytest.mark.parametrize(
  "order",
  [
    {},
    {"window": (2, 2, 3)},
    {"order": "gilbert"},
  ],
)
def test_pyramid_of_all_levels_one_is_full(text, order):
  """In any order of the tokens."""
  layout, qkv = layout_of(text)
  options = BLOCKS | {"bounds": (1.0,) * 4, **order}
  out = Bare("pyramid", layout, options).apply({}, *qkv)
  full = attention.dot_product_attention(*qkv)
  np.testing.assert_allclose(out, full, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("chosen_by", "order"),
  [("count", {"window": (2, 2, 3)}), ("mass", {"order": "gilbert"})],
)
@pytest.mark.parametrize("importance", ["scores", "antidiagonal"])
def test_pyramid_has_the_levels_of_its_options(chosen_by, order, importance):
  layout, (q, k, v) = layout_of(TEXT)
  bounds, caps = (0.2, 0.4, 0.6, 0.8), (0.1, 0.0, -0.1)
  options = BLOCKS | {
    "bounds": bounds,
    **order,
    "importance": importance,
    "stride": 4,
    "chosen_by": chosen_by,
    "caps": caps,
  }
  model = Bare("pyramid", layout, options)
  out, values = taps.read(model, {}, q, k, v, names=["levels"])
  levels = values["levels"]
  if "window" in order:
    of_grid = permutations.windows(GRID, order["window"])
  else:
    of_grid = permutations.gilbert(GRID)
  order = permutations.joined(of_grid, TEXT)
  q, k, v = (x[:, order] for x in (q, k, v))
  look = pyramid_importance.block_importance(q, k, **BLOCKS)
  if importance == "antidiagonal":
    look = pyramid_importance.antidiagonal_importance(q, k, **BLOCKS, stride=4)
  by = getattr(pyramid_levels, f"levels_by_{chosen_by}")(look, bounds)
  cap = pyramid_importance.similarity_caps(k, 8, caps)
  assert (np.asarray(by) > np.asarray(cap)[:, :, None]).any()
  expected = np.minimum(by, np.asarray(cap)[:, :, None])
  expected[..., -1:] = 1
  np.testing.assert_array_equal(levels, expected)
  direct = attention.pyramid_attention(q, k, v, levels, **BLOCKS)
  np.testing.assert_allclose(out[:, order], direct, rtol=1e-6, atol=1e-6)


def test_clusters_are_an_order_like_others():
  layout, qkv = layout_of(TEXT)
  options = BLOCKS | {"bounds": (1.0,) * 4, "order": "kmeans"}
  options |= {"clusters": (5, 7), "iterations": (2, 1)}
  out = Bare("pyramid", layout, options).apply({}, *qkv)
  full = attention.dot_product_attention(*qkv)
  np.testing.assert_allclose(out, full, rtol=1e-5, atol=1e-6)


def test_clusters_go_on_from_step_to_step():
  """Queries and keys each in their order; the text stays where it is."""
  layout, first = layout_of(TEXT)
  second = arrays(48 + TEXT, seed=1)
  options = BLOCKS | {
    "bounds": (0.2, 0.4, 0.6, 0.8),
    "order": "kmeans",
    "clusters": (4, 6),
    "iterations": (3, 2),
    "text_rows": True,
    "seed": 5,
  }
  model = Bare("pyramid", layout, options)
  outs, state = run_steps(model, (None, None), (first, second), {})
  keys = jax.random.split(jax.random.key(5))
  centroids = [
    cluster_orders.first_centroids(key, x[:, :48], n)
    for key, x, n in zip(keys, first, (4, 6), strict=False)
  ]
  for out, (q, k, v), iterations in zip(
    outs, (first, second), (3, 2), strict=True
  ):
    orders = []
    for i, x in enumerate((q, k)):
      labels, centroids[i] = cluster_orders.kmeans(
        x[:, :48], centroids[i], iterations
      )
      order = np.asarray(cluster_orders.order_of(labels))
      tail = np.broadcast_to(np.arange(48, 48 + TEXT), (2, 2, TEXT))
      orders.append(jnp.asarray(np.concatenate([order, tail], axis=-1)))
    q = permutations.reordered(q, orders[0])
    k, v = (permutations.reordered(x, orders[1]) for x in (k, v))
    look = pyramid_importance.block_importance(
      q, k, **BLOCKS, key=jax.random.key(5)
    )
    levels = np.array(pyramid_levels.levels_by_count(look, options["bounds"]))
    levels[..., -1], levels[..., -1, :] = 1, 1
    direct = attention.pyramid_attention(q, k, v, levels, **BLOCKS)
    np.testing.assert_allclose(
      permutations.reordered(out, orders[0]), direct, rtol=1e-5, atol=1e-5
    )
  for name, want in zip(("query", "key"), centroids, strict=True):
    np.testing.assert_array_equal(state[f"{name}_centroids"], want)


def test_text_in_two_blocks_is_seen_as_it_is():
  """Where the grid ends within a block, and the text too."""
  layout = Layout((5, 9), (5, 9), 5)
  options = BLOCKS | {"bounds": (0.0, 0.0, 0.0, 1.0)}
  model = Bare("pyramid", layout, options)
  _, values = taps.read(model, {}, *arrays(50), names=["levels"])
  expected = np.broadcast_to([8] * 5 + [1] * 2, (2, 2, 7, 7))
  np.testing.assert_array_equal(values["levels"], expected)


def test_random_importance_has_the_same_density():
  layout, qkv = layout_of(0)
  densities = []
  for importance in ("scores", "random"):
    options = BLOCKS | {"bounds": (0.2, 0.4, 0.6, 0.8)}
    options |= {"importance": importance, "seed": 3}
    model = Bare("pyramid", layout, options)
    _, values = taps.read(model, {}, *qkv, names=["levels"])
    densities.append(np.sort(values["levels"], axis=-1))
  np.testing.assert_array_equal(*densities)


def run_steps(model, states, qkv, state):
  outs = []
  for step, (q, k, v) in zip(states, qkv, strict=True):
    options = dict(model.options) | ({"step": step} if step else {})
    out, changed = model.clone(options=options).apply(
      {attends.STATE: state} if state else {},
      q,
      k,
      v,
      mutable=[attends.STATE],
    )
    state = changed[attends.STATE]
    outs.append(out)
  return outs, state


@pytest.mark.parametrize("text", [0, TEXT])
def test_sparse_steps_use_and_move_what_was_stored(text):
  layout, first = layout_of(text)
  second, third = (arrays(48 + text, seed) for seed in (1, 2))
  options = {"keep": 0.3, "ramp": 0.04, "most": 0.5}
  model = Bare("reshaped_window", layout, options)
  outs, state = run_steps(
    model, ("store", "sparse", "sparse"), (first, second, third), {}
  )
  np.testing.assert_allclose(
    outs[0], attention.dot_product_attention(*first), rtol=1e-5, atol=1e-6
  )
  kept = np.asarray(window(layout, 0.3).dense(48 + text, 48 + text))
  seen = masks.frame_window(2, 24, 0.3, text=text).dense(48 + text, 48 + text)
  np.testing.assert_array_equal(kept, seen)
  weights = np.asarray(attention.attention_weights(*first[:2]))
  rho = (weights * kept).sum(axis=-1)
  residual = (weights * ~kept) @ np.asarray(first[2]).swapaxes(1, 2)
  for out, (q, k, v) in zip(outs[1:], (second, third), strict=True):
    alone = attention.dot_product_attention(
      q, k, v, mask=masks.dense(jnp.asarray(kept))
    )
    expected = rho[..., None] * np.asarray(alone).swapaxes(1, 2) + residual
    np.testing.assert_allclose(
      out.swapaxes(1, 2), expected, rtol=1e-4, atol=1e-5
    )
    # After its use, and never above the end.
    rho = np.minimum(rho + 0.04, 0.5)
  np.testing.assert_allclose(
    np.asarray(state["ratio"])[..., 0].swapaxes(1, 2), rho, rtol=1e-5
  )


def test_images_have_the_window_of_their_row():
  layout = Layout((4, 8), (4, 8))
  expected = masks.share_window(32, 0.25).dense(32, 32)
  np.testing.assert_array_equal(window(layout, 0.25).dense(32, 32), expected)


def test_errors():
  layout, (q, k, v) = layout_of(TEXT)
  for name in ("pyramid", "reshaped_window"):
    with pytest.raises(ValueError, match="53 queries and 10 keys"):
      Bare(name, layout, {}).apply({}, q, k[:, :10], v[:, :10])
  with pytest.raises(ValueError, match="no step before has stored"):
    Bare("reshaped_window", layout, {"step": "sparse"}).apply({}, q, k, v)
  for name, option in (
    ("reshaped_window", "step"),
    ("pyramid", "importance"),
    ("pyramid", "chosen_by"),
    ("pyramid", "order"),
  ):
    with pytest.raises(ValueError, match=f"{option} of attend='{name}'"):
      Bare(name, layout, {option: "all"}).apply({}, q, k, v)
  both = {"order": "gilbert", "window": (2, 2, 3)}
  with pytest.raises(ValueError, match=r"order is 'gilbert' and window \(2, 2"):
    Bare("pyramid", layout, both).apply({}, q, k, v)
  for option in ("clusters", "iterations"):
    bad = {"order": "kmeans", "clusters": (4, 4), option: (4,)}
    with pytest.raises(ValueError, match=rf"{option} is \(4,\); it must be"):
      Bare("pyramid", layout, bad).apply({}, q, k, v)
  assert methods.create("psa", Toy(), 4, {"clusters": 8}).models
  bad = {"order": "kmeans", "clusters": 8}
  with pytest.raises(ValueError, match="clusters is 8; it must be one number"):
    Bare("pyramid", layout, bad).apply({}, q, k, v)
  with pytest.raises(ValueError, match="clusters is 200; of 48 tokens"):
    Bare("pyramid", layout, {"order": "kmeans"}).apply({}, q, k, v)
  with pytest.raises(ValueError, match="block_k is 12; means of 8"):
    Bare("pyramid", layout, {"block_k": 12}).apply({}, q, k, v)


class Toy(nn.Module):
  """Two layers whose attention depends on the condition and not on x."""

  num_classes: int = 3
  attend: str = "full"
  attend_options: dict = None

  @nn.compact
  def __call__(self, x, time, label=None, train=False):
    del time, train
    y = 0.0
    for n in range(2):
      table = self.param(f"table_{n}", nn.initializers.normal(), (4, 16, 24))
      q, k, v = jnp.split(table[label].reshape(len(x), 16, 2, 12), 3, axis=-1)
      options = self.attend_options or {}
      layout = Layout((4, 4), (4, 4))
      layer = Bare(self.attend, layout, options, name=f"layer_{n}")
      y += layer(10 * q, k, v).mean(axis=2)
    return x * 0.1 + y


def sample(name, seed=0, **options):
  model = Toy()
  x = jnp.asarray(np.random.default_rng(seed).normal(size=(2, 16, 4)), "f4")
  label = jnp.array([0, 2])
  variables = model.init(jax.random.key(0), x, 0, label)
  method = methods.create(name, model, 9, options)
  denoisers = [
    generation.create_denoiser(m, variables, label=label, guidance=3.0)
    for m in method.models
  ]
  return generation.sample(
    denoisers, x, paths.ddpm(), steps=9, which=method.which
  )


def test_steps_that_find_what_they_stored_sample_as_full_attention():
  """Each layer and both halves of guidance have their own."""
  full = sample("full")
  options = {"full_steps": 2, "period": 3, "keep": 0.25}
  same = sample("re_ttention", **options, ramp=0.0)
  np.testing.assert_allclose(same, full, rtol=1e-4, atol=1e-4)
  for changed in ({"ramp": 0.2}, {"kind": "window"}):
    other = sample("re_ttention", **options, **changed)
    assert jnp.abs(other - full).max() > 1e-3, changed


def test_a_diffusion_transformer_takes_them():
  """Its layers but the dense ones; each has its own state."""
  model = DiffusionTransformer(
    sample_shape=(2, 4, 6),
    patch_size=(1, 1, 1),
    width=16,
    depth=3,
    heads=2,
    num_classes=3,
    conditioning="cross",
    dense_layers=1,
  )
  inputs = model.example_inputs()
  variables = jax.eval_shape(model.init, jax.random.key(0), **inputs)

  def run(model):
    return jax.eval_shape(
      lambda variables: model.apply(
        variables, **inputs, mutable=[attends.STATE]
      ),
      variables,
    )

  out, state = run(methods.create("psa", model, 3, BLOCKS).models[1])
  assert out.shape == (1, 2, 4, 6, 4)
  assert not state
  stores = methods.create("re_ttention", model, 8, {}).models[1]
  out, state = run(stores)
  shapes = {
    path: x.shape
    for path, x in traverse_util.flatten_dict(state, sep="/").items()
  }
  assert shapes == {
    f"{attends.STATE}/block_{n}/{name}": shape
    for n in (1, 2)
    for name, shape in (
      ("attention/ratio", (1, 48, 2, 1)),
      ("attention/residual", (1, 48, 2, 8)),
    )
  }


def test_schedules():
  method = methods.create(
    "re_ttention", Toy(), 20, {"full_steps": 5, "period": 5}
  )
  # PixArt: full below 5, stored at 5, 10 and 15.
  stored = tuple(n for n, which in enumerate(method.which) if which == 1)
  assert stored == (5, 10, 15)
  assert method.which[:5] == (0,) * 5
  method = methods.create("re_ttention", Toy(), 50, {"full_steps": 15})
  assert [n for n in range(50) if method.which[n] == 1] == [*range(15, 50, 5)]
  assert method.models[0].attend == "full"
  assert [m.attend_options["step"] for m in method.models[1:]] == [
    "store",
    "sparse",
  ]
  method = methods.create("psa", Toy(), 4, {"full_steps": 1, "seed": 2})
  assert method.which == (0, 1, 1, 1)
  assert method.models[1].attend == "pyramid"
  assert method.models[1].attend_options["seed"] == 2
  for options in ({"full_steps": 5}, {"period": 0}, {"kind": "all"}):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
      methods.create("re_ttention", Toy(), 4, {"full_steps": 1} | options)
