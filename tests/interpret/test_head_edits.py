"""Ablations of heads against the definitions, by hand and in a model."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
import interpret
from attention import masks
from interpret import head_edits
from tests.models import language

BATCH, HEADS, LENGTH, DIM = 2, 3, 7, 5
rng = np.random.default_rng(0)
CAUSAL = np.tri(LENGTH, dtype=bool)
CHOSEN = np.array([False, True, False])


def _maps(dtype=np.float32):
  weights = rng.dirichlet(np.ones(LENGTH), (BATCH, HEADS, LENGTH)) * CAUSAL
  return jnp.asarray(weights / weights.sum(-1, keepdims=True), dtype)


def test_the_head_of_the_sheet():
  """One head of three tokens, by hand; its weights and outputs."""
  q, k, v = (
    jnp.array(rows, jnp.float32)[None, :, None]
    for rows in (
      [[1, 0], [0, 2], [3, 1]],
      [[1, 0], [0, 1], [1, -1]],
      [[1, 0], [0, 1], [2, 2]],
    )
  )
  causal = masks.causal()
  weights = attention.attention_weights(q, k, mask=causal, scale=2**-0.5)
  np.testing.assert_allclose(
    weights[0, 0],
    [[1, 0, 0], [0.195570, 0.804430, 0], [0.575975, 0.140029, 0.283995]],
    atol=1e-6,
  )
  seen = np.tri(3, dtype=bool)
  edited = head_edits.uniform_heads(weights, np.array([True]), seen)
  for maps, out in (
    (weights, [[1, 0], [0.195570, 0.804430], [1.143966, 0.708020]]),
    (edited, [[1, 0], [0.5, 0.5], [1, 1]]),
  ):
    np.testing.assert_allclose(
      attention.apply_attention_weights(maps, v)[0, :, 0], out, atol=1e-6
    )


def test_three_readings_of_uniform():
  """Values 1 to 4: of visible keys, of the length, and what would leak."""
  values = np.array([1.0, 2, 3, 4])
  seen = np.tri(4, dtype=bool)
  np.testing.assert_allclose(
    head_edits.uniform_weights(seen) @ values, [1, 1.5, 2, 2.5], rtol=1e-6
  )
  of_length = head_edits.uniform_weights(seen, of_length=True)
  np.testing.assert_allclose(of_length @ values, [0.25, 0.75, 1.5, 2.5])
  leak = head_edits.uniform_weights(np.ones((4, 4), bool), of_length=True)
  np.testing.assert_allclose(leak @ values, 2.5)
  # Padding has no weight, and a query that sees nothing none at all.
  seen = seen & np.array([False, True, True, True])
  np.testing.assert_allclose(
    head_edits.uniform_weights(seen) @ values, [0, 2, 2.5, 3], rtol=1e-6
  )


def test_queries_times_epsilon_come_to_uniform_weights():
  """What the paper does to weights, for queries and for keys."""
  shape = (2, BATCH, LENGTH, HEADS, DIM)
  q, k = jnp.asarray(rng.standard_normal(shape), jnp.float32)
  causal = masks.causal()
  weigh = lambda q, k: attention.attention_weights(q, k, mask=causal)
  edited = head_edits.uniform_heads(weigh(q, k), CHOSEN, CAUSAL)
  factor = lambda epsilon: jnp.where(CHOSEN, epsilon, 1.0)[None, None, :, None]
  far = np.abs(weigh(q * factor(1e-2), k) - edited).max()
  for scaled in ((q * factor(1e-5), k), (q, k * factor(1e-5))):
    near = np.abs(weigh(*scaled) - edited).max()
    assert near < 2e-5 < 1e-4 < far
  np.testing.assert_array_equal(weigh(q * factor(1), k), weigh(q, k))
  # Numbers of the sheet, without a mask.
  scores = np.array([2, -1, 0.5])
  for epsilon, expected in (
    (0.5, [0.589798, 0.131602, 0.278601]),
    (1e-3, [0.333833, 0.332833, 0.333333]),
  ):
    np.testing.assert_allclose(
      jax.nn.softmax(epsilon * scores), expected, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_other_heads_keep_their_bits_and_gradients(dtype):
  weights = _maps(dtype)
  edits = {
    "uniform": lambda w: head_edits.uniform_heads(w, CHOSEN, CAUSAL),
    "scale": lambda w: head_edits.scale_heads(w, CHOSEN, 0.25),
    "mean": lambda w: head_edits.mean_heads(w, CHOSEN),
  }
  ramp = jnp.asarray(rng.standard_normal(weights.shape), dtype)
  exact = np.asarray(weights, np.float64)
  seen = CAUSAL / CAUSAL.sum(-1, keepdims=True)
  by_hand = {
    "uniform": np.broadcast_to(seen, exact[:, 1].shape),
    "scale": 0.25 * exact[:, 1],
    "mean": exact.mean(1),
  }
  own = {"uniform": 0.0, "scale": 0.25, "mean": 1 / HEADS}
  tolerance = 1e-6 if dtype == np.float32 else 1e-2
  for name, edit in edits.items():
    edited = edit(weights)
    assert edited.dtype == weights.dtype
    np.testing.assert_array_equal(edited[:, 0], weights[:, 0])
    np.testing.assert_allclose(
      np.asarray(edited[:, 1], np.float64), by_hand[name], atol=tolerance
    )
    gradient = jax.grad(lambda w, edit=edit: (edit(w) * ramp).sum())(weights)
    shared = ramp[:, 1] / HEADS if name == "mean" else 0 * ramp[:, 1]
    for head, expected in (
      (1, own[name] * ramp[:, 1]),
      (2, ramp[:, 2] + shared),
    ):
      np.testing.assert_allclose(
        np.asarray(gradient[:, head], np.float64),
        np.asarray(expected, np.float64),
        atol=3 * tolerance,
      )


def test_rows_may_have_heads_of_their_own():
  weights = _maps()
  chosen = np.array([[True, False, False], [False, False, True]])
  edited = head_edits.scale_heads(weights, chosen, 0.0)
  changed = np.asarray((edited != weights).any((2, 3)))
  np.testing.assert_array_equal(changed, chosen)


def _site(**fields):
  known = {"name": "layer_1/mixer/attention_weights", "layer": 1}
  return types.SimpleNamespace(**{**known, "facts": {}, "given": {}, **fields})


def test_masks_of_heads():
  mask = head_edits.mask_of([(1, 2), (0, 0)], 2, 3)
  np.testing.assert_array_equal(mask, [[1, 0, 0], [0, 0, 1]])
  assert head_edits.pairs_of(mask) == ((0, 0), (1, 2))
  alone = head_edits.single_heads(2, 3)
  assert [head_edits.pairs_of(m)[0] for m in alone] == [
    (layer, head) for layer in range(2) for head in range(3)
  ]
  drawn = [
    head_edits.random_heads(np.random.default_rng(i), 3, (2, 3), mask)
    for i in range(40)
  ]
  assert all(m.sum() == 3 and not (m & mask).any() for m in drawn)
  # Chance takes each of the four others three times in four.
  np.testing.assert_allclose(np.mean(drawn, 0)[~mask], 0.75, atol=0.25)


def test_what_is_wrong_is_named():
  weights = _maps()
  with pytest.raises(ValueError, match=r"pairs has \(0, 3\).*0 to 2"):
    head_edits.mask_of([(0, 3)], 2, 3)
  mask = head_edits.mask_of([(0, 0), (0, 1)], 2, 3)
  with pytest.raises(ValueError, match="count is 5; there are 4 heads"):
    head_edits.random_heads(rng, 5, (2, 3), mask)
  with pytest.raises(ValueError, match=r"chosen has shape \(2,\).*\[3\]"):
    head_edits.mean_heads(weights, np.ones(2, bool))
  with pytest.raises(ValueError, match=r"weights have shape .*\[batch, heads"):
    head_edits.mean_heads(weights[0], CHOSEN)
  with pytest.raises(ValueError, match=r"visible has shape \(1, 1, 7, 6\)"):
    head_edits.uniform_heads(weights, CHOSEN, CAUSAL[:, 1:])
  with pytest.raises(ValueError, match=r"kind is 'unifrom'.*uniform"):
    head_edits.Ablation("unifrom")
  with pytest.raises(ValueError, match=r"heads is \(3,\).*layer_1.* 0 to 2"):
    head_edits.Ablation(heads=(3,))(weights, _site())
  with pytest.raises(ValueError, match=r"layer_1.* has no heads; give"):
    head_edits.Ablation()(weights, _site())
  given = {head_edits.CHOSEN: np.zeros((1, 3), bool)}
  with pytest.raises(ValueError, match=r"has shape \(1, 3\); at layer_1"):
    head_edits.Ablation()(weights, _site(given=given))
  with pytest.raises(ValueError, match="of no layer"):
    head_edits.Ablation()(weights, _site(given=given, layer=None))


@pytest.mark.parametrize("scan", [False, True])
def test_given_heads_are_those_that_the_edit_names(scan):
  """In layers apart and in scanned ones, with padding and documents."""
  model = language.model(depth=2, scan_layers=scan)
  variables = language.variables(model)
  tokens, positions, segments = language.packed()
  places = {"positions": positions, "segments": segments}
  traces = []

  @jax.jit
  def run(mask):
    traces.append(mask)
    return interpret.run(
      model,
      variables,
      tokens,
      read=["*/mixer/attention_weights"],
      edit={head_edits.MAPS: head_edits.Ablation()},
      given={head_edits.CHOSEN: mask},
      **places,
    )

  for layer, head in ((0, 3), (1, 0)):
    output, maps = run(head_edits.mask_of([(layer, head)], 2, 4))
    name = f"layer_{layer}/mixer/attention_weights"
    expected, _ = interpret.run(
      model,
      variables,
      tokens,
      edit={name: head_edits.Ablation(heads=(head,))},
      **places,
    )
    np.testing.assert_allclose(output, expected, atol=1e-5)
    for row, documents in enumerate(language.PACKED):
      for start, end in documents:
        size = end - start
        by_hand = np.tri(size) / np.arange(1, size + 1)[:, None]
        np.testing.assert_allclose(
          maps[name][row, head, start:end, start:end], by_hand, atol=1e-6
        )
  assert len(traces) == 1


def test_no_head_is_no_change_and_all_are_a_model_without_queries():
  model = language.model(depth=2)
  variables = language.variables(model)
  tokens = language.tokens()

  def run(variables, mask):
    return interpret.run(
      model,
      variables,
      tokens,
      edit={head_edits.MAPS: head_edits.Ablation()},
      given={head_edits.CHOSEN: mask},
    )[0]

  none = np.zeros((2, 4), bool)
  intact = model.apply(variables, tokens)
  np.testing.assert_array_equal(run(variables, none), intact)
  blind = jax.tree_util.tree_map_with_path(
    lambda path, x: 0 * x if "query" in str(path) else x, variables
  )
  expected = model.apply(blind, tokens)
  everywhere = run(variables, ~none)
  np.testing.assert_allclose(everywhere, expected, atol=1e-5)
  assert np.abs(everywhere - intact).max() > 0.1


def test_zero_ablation_is_that_of_the_output_projection():
  """Also with keys and values that two heads share; under `jax.grad`."""
  model = language.model()
  variables = language.variables(model)
  tokens = language.tokens()
  edit = {
    "layer_0/mixer/attention_weights": head_edits.Ablation("scale", 0.0, (1,))
  }

  def loss(variables):
    out, _ = interpret.run(model, variables, tokens, edit=edit)
    return jnp.square(out).mean(), out

  (_, out), gradient = jax.value_and_grad(loss, has_aux=True)(variables)
  path = ("params", "layer_0", "mixer", "out", "kernel")
  cut = jax.tree_util.tree_map_with_path(
    lambda p, x: (
      jnp.asarray(x).at[1].set(0.0)
      if tuple(key.key for key in p) == path
      else x
    ),
    variables,
  )
  np.testing.assert_allclose(out, model.apply(cut, tokens), atol=1e-5)
  mixer = gradient["params"]["layer_0"]["mixer"]
  assert not np.asarray(mixer["query"]["kernel"][:, 1]).any()
  assert np.asarray(mixer["query"]["kernel"][:, 0]).any()
  assert np.asarray(mixer["value"]["kernel"]).any()
