"""The residual stream of attention over depth: blocks, layouts, decoding."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import residual_streams, taps
from models.transformer import Transformer, stack_layers, unstack_layers
from tests.attention.test_depth import formula
from tests.models import language
from tests.models.test_transformer import assert_close, loss_and_gradients

SUBLAYERS, WIDTH = 5, 4


class Net(nn.Module):
  """Sublayers tanh(h W), in a loop or a scan."""

  block: int
  scan: bool = False

  @nn.compact
  def __call__(self, x, kernels):
    queries = residual_streams.DepthQueries(
      SUBLAYERS, WIDTH, self.block, self.scan, name="depth"
    )

    def step(stream, kernel):
      h = stream.read(self, "weights")
      return stream.write(jnp.tanh(h @ kernel)), None

    stream = queries.begin(x)
    if self.scan:
      stream, _ = jax.lax.scan(step, stream, kernels)
    else:
      for kernel in kernels:
        stream, _ = step(stream, kernel)
    return queries.end(stream)


def full(x, kernels, queries, scales):
  """Full attention residuals, as the paper writes them."""
  values = [x]
  # The last query and scale are the output's, which has no kernel.
  for kernel, query, scale in zip(
    kernels, queries[:-1], scales[:-1], strict=True
  ):
    values.append(np.tanh(formula(query, np.stack(values), scale) @ kernel))
  return formula(queries[-1], np.stack(values), scales[-1])


def blocked(x, kernels, queries, scales, size):
  """Block attention residuals: b_0, b_1, ..., and what the block has so far."""
  blocks = [x]
  for first in range(0, SUBLAYERS, size):
    partial = None
    for i in range(first, min(first + size, SUBLAYERS)):
      sources = blocks if partial is None else [*blocks, partial]
      h = formula(queries[i], np.stack(sources), scales[i])
      out = np.tanh(h @ kernels[i])
      partial = out if partial is None else partial + out
    blocks.append(partial)
  return formula(queries[-1], np.stack(blocks), scales[-1])


def drawn():
  rng = np.random.default_rng(0)
  table = (SUBLAYERS + 1, WIDTH)
  return {
    "x": rng.standard_normal((2, 3, WIDTH)),
    "kernels": rng.standard_normal((SUBLAYERS, WIDTH, WIDTH)),
    "queries": 2 * rng.standard_normal(table),
    "scales": rng.uniform(0.3, 2, table),
  }


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("block", [1, 2, 3, 5, 8])
def test_a_stream_is_the_paper_s(block, scan):
  arrays = drawn()
  expected = blocked(**arrays, size=block)
  if block == 1:
    np.testing.assert_allclose(expected, full(**arrays), rtol=1e-12)
  seen = np.random.default_rng(1).standard_normal(expected.shape)

  @jax.jit
  def run(x, kernels, queries, scales):
    def loss(x, kernels, queries, scales):
      params = {"depth": {"query": queries, "scale": scales}}
      out = Net(block, scan).apply({"params": params}, x, kernels)
      return (out * seen.astype(np.float32)).sum(), out

    gradients, out = jax.grad(loss, (0, 1, 2, 3), has_aux=True)(
      x, kernels, queries, scales
    )
    return out, gradients

  single = [jnp.asarray(x, jnp.float32) for x in arrays.values()]
  out, gradients = run(*single)
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
  for name, gradient in zip(arrays, gradients, strict=True):
    step = np.random.default_rng(2).standard_normal(gradient.shape)
    up, down = (
      (blocked(**arrays | {name: arrays[name] + e * step}, size=block) * seen)
      for e in (1e-6, -1e-6)
    )
    slope = (np.asarray(gradient, np.float64) * step).sum()
    expected = (up - down).sum() / 2e-6
    assert slope == pytest.approx(expected, rel=1e-4), name


DEEP = {"depth": 3, "residual": "attention"}
CASES = {
  "block": {"residual_block": 4},
  "sandwich": {"norm_placement": "sandwich", "residual_block": 3},
  "mixers": {
    "depth": 4,
    "mixers": ("linear", "sliding"),
    "window": 4,
    "mlp": "none",
    "residual_block": 3,
  },
}


@functools.cache
def looped(case):
  model = language.model(**DEEP | CASES[case])
  variables, tokens = language.variables(model), language.tokens()
  return model, variables, tokens, *loss_and_gradients(model, variables, tokens)


@pytest.mark.parametrize(
  ("case", "remat"), [("block", False), ("mixers", True)]
)
def test_a_scan_is_the_loop(case, remat):
  model, variables, tokens, logits, gradients = looped(case)
  scanned = model.clone(scan_layers=True, remat=remat)
  params = stack_layers(variables["params"], len(model.mixers))
  shapes = jax.eval_shape(scanned.init, jax.random.key(0), tokens)["params"]
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
  actual, stacked = loss_and_gradients(scanned, {"params": params}, tokens)
  assert_close(actual, logits)
  assert_close(unstack_layers(stacked), gradients)


def test_remat_is_the_loop():
  model, variables, tokens, logits, gradients = looped("block")
  again = model.clone(remat=True)
  actual = loss_and_gradients(again, variables, tokens)
  assert_close(actual, (logits, gradients))


@pytest.mark.parametrize("case", ["block", "sandwich"])
def test_bfloat16_is_close_and_gradients_reach_everything(case):
  model, variables, tokens, logits, gradients = looped(case)
  assert jax.tree.all(jax.tree.map(lambda x: np.abs(x).max() > 1e-6, gradients))
  short = model.clone(dtype=jnp.bfloat16)
  out, _ = loss_and_gradients(short, variables, tokens)
  assert out.dtype == jnp.float32
  # Of a token or two the softmax over depth picks another source.
  error = np.abs(out - logits).max(-1) / np.abs(logits).max()
  assert np.quantile(error, 0.9) < 0.04


@pytest.mark.parametrize(("case", "scan"), [("block", False), ("mixers", True)])
def test_decoding_equals_the_parallel_form(case, scan):
  model, variables, *_ = looped(case)
  arrays = language.packed()
  expected = jax.jit(model.apply)(variables, language.alone(arrays[0]))
  if scan:
    model = model.clone(scan_layers=True)
    params = stack_layers(variables["params"], len(model.mixers))
    variables = {"params": params}
  # Nothing is cached that a model with sums would not have.
  plain = model.clone(residual="sum", residual_block=1)
  shapes = [
    jax.tree.map(jnp.shape, m.init_cache(3, 11)) for m in (model, plain)
  ]
  assert shapes[0] == shapes[1]
  out = jax.jit(lambda v, a: language.decode(model, v, a, (2, 5)))(
    variables, arrays
  )
  language.assert_same_tokens(language.unpacked(out), expected)


def test_dropout_is_of_branches():
  model, variables, tokens, logits, _ = looped("block")
  model = model.clone(dropout_rate=0.5)
  run = jax.jit(
    lambda key: model.apply(
      variables, tokens, train=True, rngs={"dropout": key}
    )
  )
  assert not jnp.allclose(run(jax.random.key(0)), run(jax.random.key(1)))
  still = jax.jit(model.apply)(variables, tokens)
  np.testing.assert_allclose(still, logits, atol=1e-5)


@pytest.mark.parametrize("scan", [False, True])
def test_taps_give_weights_and_sums_of_blocks(scan):
  """Of blocks of a layer and a half, the last layer's sum is b_2."""
  model, variables, tokens, *_ = looped("sandwich")
  last, output = "layer_2/hidden_state", "depth_attention/depth_weights"
  if scan:
    model = model.clone(scan_layers=True)
    variables = {"params": stack_layers(variables["params"])}
    last = "layer_2/hidden_state"
  names = [last, "*depth_weights*"]

  @jax.jit
  def run(variables, edit):
    return taps.read(model, variables, tokens, names=names, edit=edit)

  _, values = run(variables, {})
  state = values.pop(last)
  assert len(values) == 7
  for weights in values.values():
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-6)
  weights = values[output]
  assert weights.shape == (3, 3, language.LENGTH)
  picked = {output: jnp.zeros_like(weights).at[2].set(1)}
  some, _ = run(variables, picked)
  # A norm has no size.
  twice, _ = run(variables, picked | {last: 2 * state})
  np.testing.assert_allclose(twice, some, atol=1e-4)
  # A norm of nothing is nothing, and so are its logits.
  none, _ = run(variables, picked | {last: jnp.zeros_like(state)})
  np.testing.assert_allclose(none, 0, atol=1e-6)
  assert jnp.abs(some).max() > 0.1


def test_depth_is_causal_and_the_embedding_is_there_once():
  model = language.model(**DEEP)
  variables, tokens = language.variables(model), language.tokens()
  names = ["layer_0/mixer_depth_weights", "layer_0/mlp_depth_weights"]
  names += ["layer_2/mlp_depth_weights", "depth_attention/depth_weights"]
  read = lambda v: taps.read(model, v, tokens, names=names)[1]
  values = jax.eval_shape(read, variables)
  assert [len(values[name]) for name in names] == [1, 2, 6, 7]


def test_zero_queries_read_the_mean():
  model = language.model(depth=2, residual="attention", residual_block=3)
  tokens = language.tokens()
  variables = jax.jit(model.init)(jax.random.key(0), tokens)
  queries = variables["params"]["depth_attention"]
  assert not queries["query"].any()
  assert (queries["scale"] == 1).all()
  names = ["depth_attention/depth_weights"]
  read = jax.jit(lambda v: taps.read(model, v, tokens, names=names)[1])
  (weights,) = read(variables).values()
  np.testing.assert_allclose(weights, 1 / 3, rtol=1e-6)


def test_parameters_of_the_paper_s_example():
  """2 (56 + 1) 1024 for 28 blocks of width 1024."""

  def count(residual):
    model = Transformer(width=1024, depth=28, heads=8, residual=residual)
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    # Scanned, since it traces faster.
    model = model.clone(scan_layers=True)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    return sum(x.size for x in jax.tree.leaves(shapes))

  assert count("attention") - count("sum") == 116_736


ERRORS = [
  ({"residual": "attentive"}, "residual 'attentive'; did you mean attention"),
  ({"residual": "attention", "residual_block": 0}, "residual_block is 0"),
  ({"residual_block": 2}, "residual_block is 2.*residual is 'sum'"),
  (
    {"residual": "attention", "norm_placement": "post"},
    "norm_placement is 'post'.*'pre' and 'sandwich'",
  ),
  ({"residual": "attention", "residual_clip": 2.0}, "residual_clip is 2.0"),
]


@pytest.mark.parametrize(("fields", "message"), ERRORS)
def test_fields_that_do_not_fit(fields, message):
  model = language.model(**fields)
  tokens = jax.ShapeDtypeStruct((1, 5), jnp.int32)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(model.init, jax.random.key(0), tokens)
