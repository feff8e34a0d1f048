"""Fewer projections against NumPy: equalities, parameters, symmetry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import sequence_mixers, taps
from models.transformer import Transformer
from tests import parity_helper
from tests.models import language
from tests.models.test_transformer import assert_close, loss_and_gradients

WIDTH, LENGTH = 6, 5
ONE_HEAD = ("merged", "mirror", "cholesky", "none")


def mixer(projections, heads=1, **options):
  offered = {"heads": heads, "head_dim": WIDTH // heads, "causal": False}
  return sequence_mixers.create(
    "full", offered, {"projections": projections, **options}
  )


def params(module, seed=0):
  x = jnp.zeros((1, LENGTH, WIDTH))
  shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
  return parity_helper.randomise(shapes, seed)


def inputs():
  x = np.random.default_rng(5).standard_normal((2, LENGTH, WIDTH))
  return 2 * x.astype(np.float32)


def attend(x, w_qk, w_vo, scale):
  """Softmax(scale x W_QK x^T) x W_VO in float64, a matrix for each head."""
  out = 0
  for qk, vo in zip(w_qk, w_vo, strict=True):
    scores = scale * np.einsum("bid,de,bje->bij", x, qk, x)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    out = out + weights @ (x @ vo)
  return out


def matrices(tree, projections):
  """W_QK and W_VO of each head, in float64."""
  wide = jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
  eye = np.eye(WIDTH)[None]
  if projections in ("mirror", "cholesky"):
    triangle = np.zeros((WIDTH, WIDTH))
    triangle[np.tril_indices(WIDTH)] = wide["query_triangle"]
    if projections == "mirror":
      qk = (triangle + triangle.T - np.diag(np.diag(triangle)))[None]
    else:
      qk = (triangle @ triangle.T)[None]
  else:
    # [width, heads, channels] -> [heads, width, channels]
    query = wide["query"]["kernel"].swapaxes(0, 1)
    key = {
      "separate": lambda: wide["key"]["kernel"].swapaxes(0, 1),
      "symmetric": lambda: query,
    }.get(projections, lambda: eye)()
    qk = query @ key.swapaxes(1, 2)
  if projections == "none":
    return qk, eye
  value = wide["value"]["kernel"].swapaxes(0, 1)
  return qk, value @ wide["out"]["kernel"]


@pytest.mark.parametrize(
  ("projections", "heads"),
  [("separate", 2), ("symmetric", 2), *((name, 1) for name in ONE_HEAD)],
)
def test_a_mixer_is_its_formula(projections, heads):
  module = mixer(projections, heads)
  tree, x = params(module), inputs()
  out, _ = jax.jit(module.apply)({"params": tree}, x)
  scale = (WIDTH // heads) ** -0.5
  expected = attend(np.float64(x), *matrices(tree, projections), scale)
  np.testing.assert_allclose(out, expected, rtol=0, atol=2e-5)
  # Attention is neither on one token nor on all alike.
  weights = taps.read(module, {"params": tree}, x, names=["attention_weights"])
  largest = weights[1]["attention_weights"].max(-1)
  assert 0.3 < float(largest.mean()) < 0.95


def test_one_matrix_is_the_product_of_two():
  """To 1e-12 in float64, and of values and output that are the identity."""
  with jax.enable_x64(True):
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    x = jnp.asarray(inputs(), jnp.float64)
    full = mixer("separate", **wide)
    tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params(full))
    eye = jnp.eye(WIDTH)
    product = tree["query"]["kernel"][:, 0] @ tree["key"]["kernel"][:, 0].T
    merged = {**tree, "query": {"kernel": product[:, None]}}
    del merged["key"]
    alone = {**tree, "value": {"kernel": eye[:, None]}}
    alone["out"] = {"kernel": eye[None]}
    for less, parameters, same in (
      ("merged", merged, tree),
      ("none", {"query": merged["query"]}, alone),
    ):
      module = mixer(less, **wide)
      shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
      assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(
        jnp.shape, parameters
      )
      out, _ = module.apply({"params": parameters}, x)
      expected, _ = full.apply({"params": same}, x)
      assert out.dtype == jnp.float64
      np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)


def test_layers_without_anything_else_collapse_to_one_matrix():
  """(S + 1) N^2 parameters for the 4 S N^2 of S layers."""
  layers = 3
  module, minimal = mixer("separate"), mixer("none")
  trees = [params(module, seed) for seed in range(layers)]
  x = inputs() / 2
  expected, collapsed, product = x, x, np.eye(WIDTH)
  for tree in trees:
    tree["out"]["kernel"] = 0.7 * tree["out"]["kernel"]
    expected, _ = module.apply({"params": tree}, expected)
    ((qk,), (vo,)) = matrices(tree, "separate")
    kernel = (product @ qk @ product.T).astype(np.float32)
    variables = {"params": {"query": {"kernel": kernel[:, None]}}}
    collapsed, _ = minimal.apply(variables, collapsed)
    product = product @ vo
  scale = np.abs(expected).max()
  np.testing.assert_allclose(
    collapsed @ product, expected, rtol=0, atol=1e-4 * scale
  )


@pytest.mark.parametrize(
  ("projections", "heads"),
  [("symmetric", 2), ("mirror", 1), ("cholesky", 1)],
)
def test_scores_are_symmetric(projections, heads):
  module = mixer(projections, heads, normalizer="sigmoid")
  tree, x = params(module), inputs()
  _, values = taps.read(
    module, {"params": tree}, x, names=["attention_weights"]
  )
  weights = np.asarray(values["attention_weights"])
  np.testing.assert_allclose(weights, weights.swapaxes(2, 3), atol=1e-6)
  own = np.diagonal(weights, axis1=2, axis2=3)
  # The scores of cholesky are a Gram matrix; those of mirror need not be.
  smallest = np.linalg.eigvalsh(matrices(tree, projections)[0]).min()
  assert (smallest > -1e-6) == (projections != "mirror")
  assert own.shape == (2, heads, LENGTH)
  # And the map is not.
  module = mixer(projections, heads)
  _, values = taps.read(
    module, {"params": tree}, x, names=["attention_weights"]
  )
  weights = np.asarray(values["attention_weights"])
  assert np.abs(weights - weights.swapaxes(2, 3)).max() > 0.1


N = 32
COUNTS = {
  "separate": 4 * N**2,
  "symmetric": 3 * N**2,
  "merged": 3 * N**2,
  "mirror": 2 * N**2 + N * (N + 1) // 2,
  "cholesky": 2 * N**2 + N * (N + 1) // 2,
  "none": N**2,
}


def count(**fields):
  model = Transformer(vocabulary_size=7, width=N, norm_bias=False, **fields)
  tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
  return sum(x.size for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize("projections", COUNTS)
def test_parameters_of_a_layer(projections):
  fields = {
    "heads": 1,
    "mlp": "none",
    "mixer_options": {"full": {"projections": projections}},
  }
  layer = count(depth=2, **fields) - count(depth=1, **fields)
  assert layer == COUNTS[projections] + N
  # With a norm and an MLP of expansion h: 2 h N^2 + h N + N.
  h = 4
  fields |= {"mlp": "gelu", "mlp_width": h * N, "mlp_bias": True}
  layer = count(depth=2, **fields) - count(depth=1, **fields)
  mlp = 2 * h * N**2 + h * N + N
  assert layer == COUNTS[projections] + mlp + 2 * N


CASES = {
  "symmetric": {"heads": 4, "kv_heads": 4},
  **{name: {"heads": 1, "kv_heads": 1, "head_dim": 16} for name in ONE_HEAD},
}


@pytest.mark.parametrize("projections", CASES)
def test_bfloat16_is_close_and_gradients_reach_everything(projections):
  options = {"projections": projections, **CASES[projections]}
  model = language.model(mixer_options={"full": options}, mlp="none", depth=2)
  variables, tokens = language.variables(model), language.tokens()
  logits, gradients = loss_and_gradients(model, variables, tokens)
  jax.tree.map(lambda x: np.testing.assert_array_less(1e-6, x.max()), gradients)
  short = model.clone(dtype=jnp.bfloat16)
  out, rough = loss_and_gradients(short, variables, tokens)
  np.testing.assert_allclose(out, logits, atol=0.06 * np.abs(logits).max())
  assert_close(rough, gradients, 0.3)


ERRORS = [
  ({"projections": "symetric"}, 2, "did you mean symmetric"),
  ({"projections": "symmetric", "kv_heads": 1}, 2, "1 heads of keys"),
  ({"projections": "symmetric", "query_hidden": 3}, 2, "query_hidden=3"),
  ({"projections": "symmetric", "key_dim": 2}, 2, "key_dim=2"),
  (
    {"projections": "none", "value_dim": 2},
    1,
    r"values \[6, 2\].*the model, 6",
  ),
  ({"projections": "merged", "head_dim": 4}, 1, r"\[4, 4\].*the model, 6"),
  *(
    ({"projections": name}, 2, f"'{name}', with heads=2.*needs heads=1")
    for name in ONE_HEAD
  ),
]


@pytest.mark.parametrize(("options", "heads", "message"), ERRORS)
def test_options_that_do_not_fit(options, heads, message):
  offered = {"heads": heads, "head_dim": WIDTH // heads}
  module = sequence_mixers.create("full", offered, options)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(
      module.init, jax.random.key(0), jnp.zeros((1, LENGTH, WIDTH))
    )
