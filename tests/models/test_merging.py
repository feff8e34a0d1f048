"""Gates at their limits, and as they are written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import merging


def made(kind, bias=None):
  """A gate with random parameters, x and f [2, 3, 4]."""
  rng = np.random.default_rng(0)
  x, f = rng.standard_normal((2, 2, 3, 4)).astype(np.float32)
  module = merging.Merge(kind)
  variables = module.init(jax.random.key(0), jnp.asarray(x), jnp.asarray(f))
  params = jax.tree.map(
    lambda a: rng.standard_normal(a.shape).astype(np.float32),
    variables.get("params", {}),
  )
  for gate, value in (bias or {}).items():
    params[gate]["bias"][:] = value
  return np.asarray(module.apply({"params": params}, x, f)), x, f, params


def gate(x, p):
  return 1 / (1 + np.exp(-(x @ p["kernel"] + p["bias"])))


def test_every_kind_is_what_is_written():
  formulas = {
    "none": lambda x, f, p: f,
    "additive": lambda x, f, p: x + f,
    "learned_rate": lambda x, f, p: x + p["rate"] * f,
    "input_dependent": lambda x, f, p: (
      gate(x, p["skip"]) * x + gate(x, p["new"]) * f
    ),
    "coupled": lambda x, f, p: (
      (1 - gate(x, p["transform"])) * x + gate(x, p["transform"]) * f
    ),
  }
  assert set(formulas) == set(merging.KINDS)
  for kind, formula in formulas.items():
    out, x, f, params = made(kind)
    np.testing.assert_allclose(out, formula(x, f, params), atol=1e-5)


@pytest.mark.parametrize(
  ("kind", "bias", "share"),
  [
    ("coupled", {"transform": -60}, (1, 0)),
    ("coupled", {"transform": 60}, (0, 1)),
    ("input_dependent", {"skip": 60, "new": -60}, (1, 0)),
    ("input_dependent", {"skip": -60, "new": 60}, (0, 1)),
  ],
)
def test_gates_at_their_limits(kind, bias, share):
  out, x, f, _ = made(kind, bias)
  np.testing.assert_allclose(out, share[0] * x + share[1] * f, atol=1e-6)


def test_where_gates_begin():
  # Of x = 0 the kernels make nothing, so that only biases speak.
  x, f = jnp.zeros((1, 4)), jnp.ones((1, 4))
  begin = {"learned_rate": 1.0, "coupled": 0.268941, "input_dependent": 0.5}
  for kind, share in begin.items():
    out, _ = merging.Merge(kind).init_with_output(jax.random.key(0), x, f)
    np.testing.assert_allclose(out, np.full((1, 4), share), rtol=1e-5)


def test_a_kind_that_is_not_known():
  with pytest.raises(
    ValueError, match="no gate 'couple'; did you mean coupled"
  ):
    made("couple")
