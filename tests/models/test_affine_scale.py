"""Affine-scaled attention against its formula, and what moves its average."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from models import sequence_mixers
from models.transformer import Transformer, stack_layers
from tests import parity_helper
from tests.models import language

OFFERED = {"heads": 4, "head_dim": 6, "kv_heads": 2, "dtype": jnp.float32}


def mixer(name="full", offered=None, **options):
  fields = {"normalizer": "affine", "normalizer_options": options}
  return sequence_mixers.create(name, {**OFFERED, **(offered or {})}, fields)


def variables(module, x, seed=0):
  shapes = jax.eval_shape(module.init, jax.random.key(0), x)
  return parity_helper.randomise(shapes, seed)


def inputs(shape=(2, 7, 10)):
  return jax.random.normal(jax.random.key(0), shape)


def fused_form(variables, x, length, phi):
  """The paper's other form: alpha softmax(s) v + beta (v_1 + ... + v_i)."""
  params = variables["params"]
  q, k, v = (
    jnp.einsum("btw,whd->bthd", x, params[name]["kernel"])
    for name in ("query", "key", "value")
  )
  k, v = (jnp.repeat(y, 2, axis=2) for y in (k, v))
  s = jnp.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(6)
  s = jnp.where(np.tri(x.shape[1], dtype=bool)[None, None], s, -jnp.inf)
  plain = jnp.einsum("bhij,bjhd->bihd", jax.nn.softmax(s), v)
  alpha = phi(jnp.einsum("btw,wh->bth", x, params["affine"]["alpha"]["kernel"]))
  mean = variables["moving_averages"]["affine"]["alpha_mean"]
  n = length or np.arange(1, x.shape[1] + 1)[None, :, None]
  beta = (mean[None, None] - alpha) / n
  out = alpha[..., None] * plain + beta[..., None] * jnp.cumsum(v, axis=1)
  return jnp.einsum("bihd,hdw->biw", out, params["out"]["kernel"])


def clipped(x):
  return jnp.minimum(jnp.maximum(x / 10 + 0.5, 0), 1)


@pytest.mark.parametrize(
  ("length", "activation", "phi"),
  [(0, "linear", clipped), (9, "sigmoid", jax.nn.sigmoid)],
)
def test_values_and_gradients_are_those_of_the_fused_form(
  length, activation, phi
):
  x = inputs()
  module = mixer(length=length, activation=activation)
  given = variables(module, x)

  @functools.partial(jax.jit, static_argnums=0)
  def run(function, given, x):
    loss = lambda given, x: jnp.sum(jnp.sin(3 * function(given, x)))
    return function(given, x), jax.grad(loss, (0, 1))(given, x)

  out, gradients = run(lambda given, x: module.apply(given, x)[0], given, x)
  expected, wanted = run(
    lambda given, x: fused_form(given, x, length, phi), given, x
  )
  np.testing.assert_allclose(out, expected, atol=1e-5)
  # The average is a number of the past: no gradient goes there.
  average = gradients[0].pop("moving_averages")
  assert not np.any(average["affine"]["alpha_mean"])
  assert np.abs(wanted[0].pop("moving_averages")["affine"]["alpha_mean"]).all()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), gradients, wanted
  )
  assert np.all(gradients[0]["params"]["affine"]["alpha"]["kernel"] != 0)


def test_bfloat16_is_near():
  x = inputs()
  given = variables(mixer(), x)
  narrow = mixer(offered={"dtype": jnp.bfloat16})
  out, near = (jax.jit(m.apply)(given, x)[0] for m in (mixer(), narrow))
  assert near.dtype == jnp.bfloat16
  scale = np.abs(out).max()
  np.testing.assert_allclose(near.astype(out.dtype), out, atol=0.03 * scale)


def test_alpha_of_one_is_softmax():
  x = jnp.abs(inputs()) + 1
  given = variables(mixer(), x)
  affine = {"alpha": {"kernel": jnp.full((10, 4), 5.0)}}
  given["params"] |= {"affine": affine}
  given["moving_averages"] = {"affine": {"alpha_mean": jnp.ones(4)}}
  softmax = sequence_mixers.create("full", OFFERED)
  kept = {n: p for n, p in given["params"].items() if n != "affine"}
  expected, _ = softmax.apply({"params": kept}, x)
  np.testing.assert_array_equal(mixer().apply(given, x)[0], expected)


def test_the_average_is_the_papers_recursion_and_moves_in_training_only():
  x = inputs()
  module = mixer(momentum=0.9)
  given = variables(module, x)
  zeros = {"kernel": jnp.zeros((10, 4))}
  given["params"] |= {"affine": {"alpha": zeros}}
  given["moving_averages"] = {"affine": {"alpha_mean": jnp.zeros(4)}}
  apply = functools.partial(module.apply, mutable=["moving_averages"])
  for t in range(1, 4):
    _, moved = apply(given, x, train=True)
    given |= moved
    average = given["moving_averages"]["affine"]["alpha_mean"]
    # Zeros make an alpha of a half.
    np.testing.assert_allclose(average, 0.5 * (1 - 0.9**t), rtol=1e-6)
  _, same = apply(given, x, train=False)
  np.testing.assert_array_equal(
    same["moving_averages"]["affine"]["alpha_mean"], average
  )
  # Padding alone moves nothing.
  _, same = apply(given, x, jnp.full((2, 7), -1), train=True)
  np.testing.assert_allclose(
    same["moving_averages"]["affine"]["alpha_mean"], average, rtol=1e-6
  )


def test_a_scan_over_layers_with_remat_moves_the_same_averages():
  options = {"full": {"normalizer": "affine"}}
  model = language.model(depth=2, mixer_options=options)
  scanned = language.model(
    depth=2, mixer_options=options, scan_layers=True, remat=True
  )
  given = language.variables(model)
  tokens, positions, segments = language.packed()

  def run(model, given):
    apply = functools.partial(
      model.apply, train=True, mutable=["moving_averages"]
    )
    return jax.jit(apply)(given, tokens, positions=positions, segments=segments)

  out, moved = run(model, given)
  stacked = {name: stack_layers(tree) for name, tree in given.items()}
  out_scanned, moved_scanned = run(scanned, stacked)
  np.testing.assert_allclose(out, out_scanned, atol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
    stack_layers(moved["moving_averages"]),
    moved_scanned["moving_averages"],
  )


# The papers' students: depth, width, heads.
@pytest.mark.parametrize(
  ("depth", "width", "heads", "added"),
  [
    (24, 1024, 16, 393_216),
    (16, 2048, 32, 1_048_576),
    (28, 3072, 24, 2_064_384),
  ],
)
def test_parameters_are_those_of_the_paper(depth, width, heads, added):
  def count(**options):
    model = Transformer(
      width=width,
      depth=depth,
      heads=heads,
      mixer_options={"full": options},
      scan_layers=True,
      attention_bias=True,
    )
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    return sum(x.size for x in traverse_util.flatten_dict(shapes).values())

  assert count(normalizer="affine") - count() == added


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"lenght": 8}, r"normalizer 'affine' 'lenght'; did you mean length"),
    ({"length": -1}, "length is -1; N must be at least 1"),
    ({"activation": "relu"}, r"activation 'relu'.*'linear', 'sigmoid'"),
    ({"momentum": 1.0}, "momentum is 1.0; .* below 1"),
  ],
)
def test_errors_name_what_would_fit(options, message):
  init = lambda x: mixer(**options).init(jax.random.key(0), x)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(init, inputs())
