"""Probes against formulas, both ways; integers, the class token, errors."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import probes, taps
from tests import parity_helper
from tests.models import probes_restated
from tools import work

BATCH, GRID, WIDTH = 3, (3, 5), 48
TOKENS = GRID[0] * GRID[1]
OPTIONS = {"ep": {"queries": 8, "shrink": 2}}


def _tokens(count=TOKENS, width=WIDTH, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(
    rng.standard_normal((BATCH, count, width)) + 0.3, "float32"
  )


def _random(module, *args):
  shapes = jax.eval_shape(
    lambda key: module.init(key, *args), jax.random.key(0)
  )
  return parity_helper.randomise(shapes, seed=1)


def _apply(module, variables, *args):
  """In evaluation, compiled as one."""
  call = jax.jit(lambda v, x: module.apply(v, x, *args[1:]))
  return call(variables, args[0])


@pytest.mark.parametrize("name", probes.POOLINGS)
def test_a_probe_is_its_formula(name):
  pool = probes.create(name, OPTIONS.get(name, {}))
  x = _tokens()
  variables = _random(pool, x, GRID, False)
  trains = "batch_stats" in variables
  restated = getattr(probes_restated, name)
  direction = np.random.default_rng(2).standard_normal((BATCH, WIDTH))

  def ours(params, x):
    out, _ = pool.apply(
      {**variables, "params": params}, x, GRID, trains, mutable=["batch_stats"]
    )
    return out

  def theirs(params, x):
    return restated(params, variables.get("batch_stats"), x, GRID, trains)

  def both(call):
    def loss(params, x):
      out = call(params, x)
      return (out * direction[:, : out.shape[1]]).sum(), out

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))

  (gradients, out), (wanted, expected) = (
    both(call)(variables["params"], x) for call in (ours, theirs)
  )
  assert expected.std() > 0.01
  np.testing.assert_allclose(out, expected, atol=2e-5 * jnp.abs(expected).max())

  def check(ours, theirs):
    bound = 2e-4 * jnp.abs(theirs).max() + 1e-5
    np.testing.assert_allclose(ours, theirs, atol=bound)

  jax.tree.map(check, gradients, wanted)


@pytest.mark.parametrize("name", ["aim", "cbam", "dolg"])
def test_evaluation_takes_the_statistics(name):
  pool = probes.create(name, {})
  x = _tokens()
  variables = _random(pool, x, GRID, False)
  restated = getattr(probes_restated, name)
  run = lambda v: restated(v["params"], v["batch_stats"], x, GRID, False)
  expected = jax.jit(run)(variables)
  np.testing.assert_allclose(
    _apply(pool, variables, x, GRID, False), expected, atol=2e-5
  )


# Width, queries, shrink: parameters with the classifier of 1000 classes, as
# the authors' logs have them.
INTEGERS = {
  (768, 32, 1): 1_383_400,
  (384, 32, 1): 544_744,
  (1024, 32, 1): 2_106_344,
  (768, 8, 1): 1_364_968,
  (768, 64, 1): 1_407_976,
  (768, 32, 2): 704_488,
  (1152, 128, 1): 2_627_560,
}


@functools.cache
def _shapes(probe, width, **options):
  head = probes.Head(probe, options)
  maps = [
    jax.ShapeDtypeStruct((2, *grid, width), jnp.float32)
    for grid in ((2, 2), (1, 1))
  ]
  init = functools.partial(head.init, train=False)
  return jax.eval_shape(init, jax.random.key(0), maps)


def _size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("width", "queries", "shrink"), INTEGERS)
def test_published_numbers_of_parameters(width, queries, shrink):
  shapes = _shapes("ep", width, queries=queries, shrink=shrink)
  assert _size(shapes["params"]) == INTEGERS[width, queries, shrink]
  assert _size(shapes["batch_stats"]) == 2 * width // shrink


@pytest.mark.parametrize("probe", probes.LINEAR)
def test_linear_probing_has_a_norm_without_factors(probe):
  shapes = _shapes(probe, 768)
  assert _size(shapes["params"]) == 769_000
  assert _size(shapes["batch_stats"]) == 2 * 768


def test_what_lars_scales_are_arrays_of_more_than_one_axis():
  """Biases and norms have one, and all else has more, as the authors' have."""
  for name in probes.POOLINGS:
    flat = jax.tree_util.tree_flatten_with_path(_shapes(name, 96)["params"])
    for path, leaf in flat[0]:
      kind = path[-1].key
      vector = kind in ("bias", "scale") or kind.endswith("layer_scale")
      assert (leaf.ndim == 1) == vector, (name, path)


def test_the_map_of_efficient_probing():
  """It sums to one, is read by name, and pools what it says."""
  pool = probes.create("ep", {"queries": 4})
  x = _tokens(7)
  variables = _random(pool, x, None, False)
  variables["params"]["queries"] *= 5
  out, values = taps.read(
    pool, variables, x, None, False, names=["attention_weights"]
  )
  weights = values["attention_weights"]
  assert weights.shape == (BATCH, 1, 4, 7)
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
  assert weights.max() > 0.5
  np.testing.assert_allclose(
    out, pool.apply(variables, x, None, False), atol=1e-5
  )
  # A query that sees one token gives that token's own values.
  first = jnp.zeros_like(weights).at[..., 2].set(1)
  out, _ = taps.read(
    pool,
    variables,
    x,
    None,
    False,
    edit={"attention_weights": first},
  )
  np.testing.assert_allclose(
    out, x[:, 2] @ variables["params"]["value_kernel"], atol=1e-5
  )


def test_pooling_first_takes_fewer_products():
  """Q N D for scores, as many to pool, and D^2 for values instead of N D^2."""
  pool = probes.create("ep", {"queries": 8})
  x = _tokens(64)
  variables = _random(pool, x, None, False)
  counted = work.count_work(
    lambda v, x: pool.apply(v, x, None, False), variables, x
  )
  expected = BATCH * (2 * 8 * 64 * WIDTH + WIDTH**2)
  assert counted.multiply_adds == expected


@pytest.mark.parametrize("name", ["ep_all", "cls", "gap"])
def test_the_class_token(name):
  rng = np.random.default_rng(0)
  patches = rng.standard_normal((BATCH, *GRID, WIDTH), np.float32)
  token = rng.standard_normal((BATCH, 1, 1, WIDTH), np.float32)
  options = {"queries": 2} if name == "ep_all" else {}
  head = probes.Head(name, options, num_classes=0)
  variables = _random(head, [patches, token], False)
  out = _apply(head, variables, [patches, token], False)
  if name == "ep_all":
    tokens = jnp.concatenate(
      [token[:, 0], patches.reshape(BATCH, -1, WIDTH)], 1
    )
    expected = probes_restated.ep(
      variables["params"]["pool"], None, tokens, None, False
    )
  else:
    expected = token[:, 0, 0] if name == "cls" else patches.mean((1, 2))
  statistics = variables["batch_stats"]["norm"]
  expected = probes_restated.batch_norm(statistics, expected, 1e-6, False)
  np.testing.assert_allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["ep", "clip", "dolg"])
def test_half_precision(name):
  head = probes.Head(name, OPTIONS.get(name, {}), num_classes=5)
  maps = [_tokens().reshape(BATCH, *GRID, WIDTH)]
  variables = _random(head, maps, False)
  exact = _apply(head, variables, maps, False)
  half = _apply(head.clone(dtype="bfloat16"), variables, maps, False)
  assert half.dtype == jnp.float32
  assert 0 < jnp.abs(half - exact).max() < 0.1 * jnp.abs(exact).max()


def test_there_are_seventeen_and_their_variants():
  """LP, GAP, EP, EP on all tokens, and the thirteen others."""
  names = set(probes.names())
  assert {"cls", "gap", "ep", "ep_all"} <= names
  assert len(set(probes.POOLINGS) - {"ep"}) == 13
  assert len(names) == 2 + 14 + 13
  assert all(inspect.getdoc(cls) for cls, _ in probes.POOLINGS.values())


def test_errors_say_what_would_fit():
  def init(name, options=None, maps=((3, 5, WIDTH),)):
    head = probes.Head(name, options or {})
    given = [jax.ShapeDtypeStruct((2, *m), jnp.float32) for m in maps]
    init = functools.partial(head.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), given)

  with pytest.raises(ValueError, match="no probe 'epp'; did you mean ep"):
    init("epp")
  with pytest.raises(ValueError, match="'ep_all' reads the class token"):
    init("ep_all")
  with pytest.raises(ValueError, match="probe 'cbam_all'"):
    init("cbam_all")
  with pytest.raises(ValueError, match=r"field of EfficientProbing 'query'"):
    init("ep", {"query": 3})
  with pytest.raises(ValueError, match=r"queries is 5 .* width of tokens, 48"):
    init("ep", {"queries": 5})
  with pytest.raises(ValueError, match="shrink is 0; it must be at least 1"):
    init("ep", {"shrink": 0})
  with pytest.raises(ValueError, match=r"heads is 7; it must divide .* 48"):
    init("jepa", {"heads": 7})
  with pytest.raises(ValueError, match=r"'gap' has none"):
    init("gap", {"queries": 1})
  with pytest.raises(ValueError, match="self_attention is 'all'"):
    init("abmilp", {"self_attention": "all"})
  pool = probes.create("clip", {})
  variables = _random(pool, _tokens(4), None, False)
  with pytest.raises(ValueError, match=r"tokens are 5 .* positions for 4"):
    pool.apply(variables, _tokens(5), None, False)
