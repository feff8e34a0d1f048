"""The mixer "hierarchical": in the place of softmax, sentences, training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import pretrained, sequence_mixers, taps
from tests import parity_helper
from tests.attention import tree_oracle as oracle
from tests.models import hub_folders, language

BERT = {
  **hub_folders.CONFIGS["bert"],
  "num_hidden_layers": 2,
  "max_position_embeddings": 11,
}
MAPS = "*/attention_weights"


def read(model, variables, tokens, **options):
  run = functools.partial(taps.read, model, names=[MAPS])
  logits, maps = jax.jit(run)(variables, tokens, **options)
  return logits, [maps[f"layer_{i}/mixer/attention_weights"] for i in (0, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """An encoder as the hub has them."""
  _, _, tensors = hub_folders.model_and_tensors(BERT)
  return hub_folders.write(tmp_path_factory.mktemp("bert"), BERT, tensors)


def test_layers_of_a_trained_encoder_are_replaced_by_its_config(folder):
  model, variables = pretrained.from_huggingface(folder)
  tokens = language.tokens()
  logits, maps = read(model, variables, tokens)

  def replaced(branchings):
    options = {"hierarchical": {"branchings": branchings}}
    other, same = pretrained.from_huggingface(
      folder, mixers=("full", "hierarchical"), mixer_options=options
    )
    assert other.mixers == ("full", "hierarchical")
    jax.tree.map(np.testing.assert_array_equal, same, variables)
    return read(other, variables, tokens)

  # A tree of one level is softmax.
  same, same_maps = replaced(())
  np.testing.assert_allclose(same, logits, atol=1e-4)
  np.testing.assert_allclose(same_maps[1], maps[1], atol=1e-5)
  other, other_maps = replaced((4,))
  np.testing.assert_allclose(other_maps[0], maps[0], atol=1e-5)
  # Of all maps that are constant on blocks this is the nearest to the softmax.
  assert np.abs(other - logits).max() > 0.05
  tree = oracle.nested(oracle.windows((4,), language.LENGTH))
  for row in range(3):
    for head in range(2):
      theta = np.asarray(other_maps[1][row, head], np.float64)
      np.testing.assert_allclose(theta.sum(1), 1, atol=1e-5)
      softmax = np.asarray(maps[1][row, head], np.float64)
      for i, family in enumerate(tree):
        for j, windows in enumerate(tree):
          if i != j:
            assert np.ptp(theta[np.ix_(family, windows)]) < 1e-6
      assert _divergence(theta, softmax) < _divergence(
        _pooled(softmax, tree), softmax
      )


def _divergence(theta, softmax):
  return (theta * (np.log(theta) - np.log(softmax))).sum()


def _pooled(softmax, tree):
  """Means over blocks: rows of sum one that are constant on blocks too."""
  pooled = softmax.copy()
  for i, rows in enumerate(tree):
    for j, columns in enumerate(tree):
      if i != j:
        block = np.ix_(rows, columns)
        pooled[block] = softmax[block].mean()
    within = np.ix_(rows, rows)
    total = softmax[within].sum(axis=1, keepdims=True)
    others = np.delete(pooled[rows[0]], rows).sum()
    pooled[within] *= (1 - others) / total
  return pooled


def mix(x, options=None, **arrays):
  """Returns the mixer, its variables, its output and its map."""
  offered = {"heads": 2, "head_dim": 4, "causal": False}
  module = sequence_mixers.create("hierarchical", offered, options or {})
  shapes = jax.eval_shape(module.init, jax.random.key(0), x)
  variables = parity_helper.randomise(shapes, 0)
  run = functools.partial(taps.read, module, names=["attention_weights"])
  (out, cache), values = jax.jit(run)(variables, x, **arrays)
  assert cache is None
  return variables, out, values["attention_weights"]


def head_scores(variables, x, row, head):
  parts = variables["params"]
  q, k = (
    np.einsum("lw,wd->ld", x[row], parts[name]["kernel"][:, head])
    for name in ("query", "key")
  )
  return q.astype(np.float64) @ k.T / 2


def test_segments_are_sentences():
  """With windows of 2 in sentences of any length, and padding."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 13, 8)).astype(np.float32)
  segments = np.array(
    [[0] * 4 + [1] * 1 + [2] * 8, [7] * 5 + [8] * 6 + [9] * 2]
  )
  positions = np.concatenate(
    [
      [*range(4), *range(1), *range(8)],
      [*range(5), *range(6), -1, -1],
    ]
  ).reshape(2, 13)
  options = {
    "branchings": (2,),
    "segments_are": "level",
    "max_segments": 4,
  }
  arrays = {"positions": positions, "segments": segments}
  variables, _, theta = mix(x, options, **arrays)
  for row, n in enumerate((13, 11)):
    ids = np.stack([positions[row] // 2, segments[row]])
    tree = oracle.nested(np.where(positions[row] < 0, -1, ids))
    assert len(oracle.leaves(tree)) == n
    for head in range(2):
      s = head_scores(variables, x, row, head)
      expected = oracle.weights(tree, s, True)
      np.testing.assert_allclose(theta[row, head], expected, atol=1e-5)
  # Places are counted in segments where no positions are given.
  _, _, other = mix(x[:1], options, segments=segments[:1])
  np.testing.assert_allclose(other, theta[:1], atol=1e-6)


def test_a_row_of_more_sentences_than_was_said_is_nan():
  x = np.ones((2, 9, 8), np.float32)
  segments = np.stack([np.arange(9) // 3, np.arange(9) // 2])
  options = {"segments_are": "level", "max_segments": 3, "branchings": ()}
  _, out, _ = mix(x, options, segments=segments)
  assert np.isfinite(out[0]).all()
  assert np.isnan(out[1]).all()


def test_an_encoder_of_both_is_trained():
  """Gradients reach all parameters, in a scan with remat."""
  model = language.model(
    causal=False,
    depth=4,
    mixers=("full", "hierarchical"),
    mixer_options={"hierarchical": {"branchings": (3,), "self_term": False}},
    scan_layers=True,
    remat=True,
    dtype=jnp.bfloat16,
  )
  variables = language.variables(model)
  tokens, positions, segments = language.packed()

  def loss(variables):
    logits = model.apply(
      variables, tokens, positions=positions, segments=segments
    )
    return jnp.where((positions >= 0)[..., None], logits**2, 0.0).mean()

  gradients = jax.jit(jax.grad(loss))(variables)
  for gradient in jax.tree.leaves(gradients):
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def test_it_does_not_decode():
  model = language.model(causal=False, mixers=("hierarchical",))
  with pytest.raises(ValueError, match="does not decode"):
    model.init_cache(2, 5)
