"""Layers of the transformer that the backward pass computes again."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from attention.kernels.flash_plan import ATTENDED
from tests.models import language


def kept(jaxpr: core.Jaxpr) -> Iterator[str]:
  for equation in jaxpr.eqns:
    if equation.primitive.name == "name":
      yield equation.params["name"]
    for inner in core.jaxprs_in_params(equation.params):
      yield from kept(inner)


def test_kernels_do_not_attend_again():
  plain = language.model(depth=1, implementation="tpu_interpret")
  variables, tokens = language.variables(plain), language.tokens()

  def gradient(model):
    def loss(params):
      return jnp.square(model.apply({"params": params}, tokens)).sum()

    return jax.grad(loss)

  again = gradient(plain.clone(remat=True))
  # The output and its statistics, once: what is computed again has none.
  jaxpr = jax.make_jaxpr(again)(variables["params"]).jaxpr
  assert list(kept(jaxpr)) == [ATTENDED] * 2
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
    jax.jit(again)(variables["params"]),
    jax.jit(gradient(plain))(variables["params"]),
  )
