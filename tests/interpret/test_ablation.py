"""Ablated heads against other weights, means and maps made by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interpret
from interpret import ablation, metrics
from models import decoding, transformer
from tests.models import language, test_taps

METRIC = functools.partial(metrics.log_probability, tokens=3)


def _made(**fields):
  model = language.model(depth=2, out_bias=True, **fields)
  return model, language.variables(model)


def _without(variables, layer, head):
  """With zeros in a head's slice of the output projection."""
  params = variables["params"]
  mixer = params[f"layer_{layer}"]["mixer"]
  kernel = mixer["out"]["kernel"].at[head].set(0)
  mixer = {**mixer, "out": {**mixer["out"], "kernel": kernel}}
  own = {**params[f"layer_{layer}"], "mixer": mixer}
  return {"params": {**params, f"layer_{layer}": own}}


def test_a_head_that_is_zero_is_its_slice_of_the_output_projection():
  model, variables = _made()
  variables = jax.tree.map(jnp.asarray, variables)
  tokens, positions, segments = language.packed()
  places = {"positions": positions, "segments": segments}
  found = ablation.sweep(model, variables, tokens, METRIC, **places)
  assert found.grid.shape == (2, 4, 3)
  apply = jax.jit(model.apply)
  for layer in range(2):
    for head in range(4):
      out = apply(_without(variables, layer, head), tokens, **places)
      np.testing.assert_allclose(
        found.grid[layer, head], METRIC(out), atol=1e-5
      )
  out = apply(variables, tokens, **places)
  np.testing.assert_allclose(found.baseline, METRIC(out), atol=1e-5)
  assert (jnp.abs(found.changes()).max(-1) > 1e-3).all()


def test_decoding_without_heads():
  model, variables = _made(scan_layers=True)
  plain = model.clone(scan_layers=False)
  heads = [(1, 2), (0, 0), (1, 3)]
  edit = ablation.edit(heads)
  assert edit == ablation.edit(reversed(heads))
  lacking = interpret.edited(model, edit)
  assert hash(lacking) == hash(interpret.edited(model, ablation.edit(heads)))
  unstacked = {"params": transformer.unstack_layers(variables["params"])}
  unstacked = jax.tree.map(jnp.asarray, unstacked)
  for layer, head in heads:
    unstacked = _without(unstacked, layer, head)
  prompts = [[1, 2, 3, 4], [5, 6]]
  rows = decoding.generate(lacking, variables, prompts, max_tokens=6)
  expected = decoding.generate(plain, unstacked, prompts, max_tokens=6)
  assert rows == expected
  whole = decoding.generate(model, variables, prompts, max_tokens=6)
  assert rows != whole


def test_means_of_tokens_that_are_real():
  model, variables = _made(scan_layers=True)
  # Or heads give padding, which sees nothing, zeros that no sum notices.
  lift = {"layer_*/mixer/head_outputs": lambda value, site: value + 1}
  model = interpret.edited(model, lift)
  tokens, positions, segments = language.packed()
  places = {"positions": positions, "segments": segments}
  names = [f"layer_{i}/mixer/head_outputs" for i in range(2)]
  # By names, where the sweep below has them as options.
  named = {"tokens": tokens, **places}
  means = jax.jit(functools.partial(ablation.mean_outputs, model))(
    variables, named
  )
  run = functools.partial(interpret.run, model, read=names, **places)
  _, values = jax.jit(run)(variables, tokens)
  for name in names:
    expected = np.asarray(values[name])[positions >= 0].mean(0)
    np.testing.assert_allclose(means[name], expected, atol=1e-6)
  found = ablation.sweep(
    model, variables, tokens, METRIC, kind="mean", **places
  )
  one = functools.partial(run, edit=ablation.edit([(1, 2)], "mean"))
  given = {ablation.MEANS: means}
  out, edited = jax.jit(one)(variables, tokens, given=given)
  np.testing.assert_allclose(found.grid[1, 2], METRIC(out), atol=1e-5)
  mixed = values[names[1]].at[:, :, 2].set(means[names[1]][2])
  np.testing.assert_allclose(edited[names[1]], mixed, atol=1e-6)
  np.testing.assert_allclose(edited[names[0]], values[names[0]], atol=1e-6)
  # Means of other data.
  other = {name: mean + 1 for name, mean in means.items()}
  moved = ablation.sweep(
    model, variables, tokens, METRIC, kind="mean", means=other, **places
  )
  assert jnp.abs(moved.grid - found.grid).min() > 1e-4


def test_heads_of_windows_of_images():
  """Head outputs are [batch, height, width, heads, dim] there."""
  model, variables, images = test_taps.init(depth=2)
  variables = jax.tree.map(jnp.asarray, variables)
  found = ablation.sweep(model, variables, images, lambda x: x.sum((1, 2, 3)))
  assert found.grid.shape == (2, 2, 2)
  apply = jax.jit(model.apply)
  for layer, head in np.ndindex(2, 2):
    out = apply(_without(variables, layer, head), images)
    np.testing.assert_allclose(
      found.grid[layer, head], out.sum((1, 2, 3)), rtol=1e-4
    )
  means = ablation.mean_outputs(model, variables, images)
  assert {mean.shape for mean in means.values()} == {(2, 4)}


def test_a_uniform_head_sees_what_it_may_see():
  model, variables = _made(mixers=("sliding", "full"), window=3)
  tokens, positions, segments = language.packed()
  places = {"positions": positions, "segments": segments}
  names = [f"layer_{i}/mixer/attention_weights" for i in range(2)]
  edit = ablation.edit([(0, 1), (1, 3)], "uniform")
  out, values = interpret.run(
    model, variables, tokens, read=names, edit=edit, **places
  )
  even = np.zeros((2, *language.tokens().shape, language.LENGTH))
  for row, documents in enumerate(language.PACKED):
    for start, end in documents:
      for query in range(start, end):
        for layer, first in enumerate((max(start, query - 2), start)):
          seen = slice(first, query + 1)
          even[layer, row, query, seen] = 1 / (query + 1 - first)
  real = positions >= 0
  for layer, head in ((0, 1), (1, 3)):
    weights = np.asarray(values[names[layer]])
    np.testing.assert_allclose(
      weights[:, head][real], even[layer][real], atol=1e-6
    )
    assert np.abs(weights[:, 0][real] - even[layer][real]).max() > 0.1
  found = ablation.sweep(
    model, variables, tokens, METRIC, kind="uniform", **places
  )
  one = ablation.edit([(1, 3)], "uniform")
  out, _ = interpret.run(model, variables, tokens, edit=one, **places)
  np.testing.assert_allclose(found.grid[1, 3], METRIC(out), atol=1e-5)


def test_the_formulas_have_gradients():
  rng = np.random.default_rng(0)
  outputs = jnp.asarray(rng.normal(size=(2, 3, 2, 5)), jnp.bfloat16)
  heads = jnp.array([False, True])
  means = jnp.asarray(rng.normal(size=(2, 5)), jnp.float32)
  zeroed = ablation.zeroed(outputs, heads)
  assert zeroed.dtype == jnp.bfloat16
  np.testing.assert_array_equal(zeroed[:, :, 1], jnp.zeros((2, 3, 5)))
  np.testing.assert_array_equal(zeroed[:, :, 0], outputs[:, :, 0])
  averaged = functools.partial(ablation.averaged, heads=heads)
  gradient = jax.grad(
    lambda x, m: averaged(x, means=m).astype(jnp.float32).sum(), (0, 1)
  )(outputs, means)
  np.testing.assert_array_equal(gradient[0][:, :, 1], jnp.zeros((2, 3, 5)))
  np.testing.assert_array_equal(gradient[0][:, :, 0], jnp.ones((2, 3, 5)))
  np.testing.assert_allclose(gradient[1][1], 6 * jnp.ones(5), rtol=1e-2)


def test_errors():
  model, variables = _made()
  tokens = language.tokens((2, 5))
  with pytest.raises(ValueError, match="did you mean uniform"):
    ablation.edit([(0, 0)], "unifrom")
  with pytest.raises(ValueError, match="did you mean zero"):
    ablation.sweep(model, variables, tokens, METRIC, kind="zeros")
  run = functools.partial(interpret.run, model, variables, tokens)
  with pytest.raises(ValueError, match=r"heads from 0 to 3; there is no 4"):
    run(edit=ablation.edit([(0, 4)]))
  with pytest.raises(ValueError, match="layer_2/mixer/head_outputs"):
    run(edit=ablation.edit([(2, 0)]))
  with pytest.raises(ValueError, match="given has no 'ablation_means'"):
    run(edit=ablation.edit([(0, 0)], "mean"))
  with pytest.raises(ValueError, match="but not 'layer_0/mixer/head_outputs'"):
    ablation.sweep(
      model, variables, tokens, METRIC, kind="mean", means={"x": 1}
    )
