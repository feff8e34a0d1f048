"""Linear attention's weighted sums and their gradients, for TPU and GPU.

The sums and their three gradients are of one form,

  out_i = f(a_i) . sum_j g(b_j) h(c_j)^T   over all j, j <= i or j >= i,

so that a kernel that *reads* such a memory is its own backward pass.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from attention import features


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def weighted_sums(
  read: Callable,
  options: tuple[tuple[str, object], ...],
  phi: Callable,
  causal: bool,
  q: Array,
  k: Array,
  terms: Array,
) -> Array:
  """Returns sum_j phi(q_i) . phi(k_j) terms_j in float32.

  Args:
    read: `read(a, b, c, maps, order, dtype, pull=None, **options)` returns the
      form above, in `dtype`: `maps` are f, g and h, and `order` is "all",
      "before" or "after". With `pull`, a map and a point, it returns the
      vector-Jacobian product of the map at the point with it instead.
    options: names and values of more of its arguments.
    phi: the feature map.
    causal: whether only j <= i count.
    q: queries, in the layout of `read` like all arrays.
    k: keys.
    terms: what is summed.
  """
  order = "before" if causal else "all"
  maps = (phi, phi, features.identity)
  return read(q, k, terms, maps, order, jnp.float32, **dict(options))


def _forward(read, options, phi, causal, q, k, terms):
  return weighted_sums(read, options, phi, causal, q, k, terms), (q, k, terms)


def _backward(read, options, phi, causal, residuals, bar):
  q, k, terms = residuals
  same = features.identity
  # A key's gradient comes from the queries that see it, which are after it.
  before, after = ("before", "after") if causal else ("all", "all")
  call = functools.partial(read, **dict(options))
  return (
    call(bar, terms, k, (same, same, phi), before, q.dtype, pull=(phi, q)),
    call(terms, bar, q, (same, same, phi), after, k.dtype, pull=(phi, k)),
    call(k, q, bar, (phi, phi, same), after, terms.dtype),
  )


weighted_sums.defvjp(_forward, _backward)
