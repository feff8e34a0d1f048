"""Which implementation a feed-forward branch with its norms runs in.

Layers are called one by one, or the branch with its residual is one kernel
(`models.feed_forward_tpu`), to which nothing can be put between.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from attention.kernels import dispatch
from models import dense, feed_forward_tpu
from models.feed_forward_tpu import Form, Parameters

# Chips of 128 MiB of VMEM; of v4 and before 16 MiB would not hold parameters.
_CHIPS = ("TPU v5 lite", "TPU v6 lite")


class _Here(threading.local):
  one_by_one = False


# Models are traced in several threads, each with its own.
_here = _Here()


@contextlib.contextmanager
def one_by_one() -> Iterator[None]:
  """Has layers called one by one, for what intercepts their calls."""
  before, _here.one_by_one = _here.one_by_one, True
  try:
    yield
  finally:
    _here.one_by_one = before


def parameters(
  norm: Mapping[str, Any] | None,
  expand: Mapping[str, Any],
  shrink: Mapping[str, Any],
  out_norm: Mapping[str, Any] | None = None,
  modulation_bias: Any = None,
) -> Parameters:
  """Returns the parameters of a branch, from those of its layers."""
  both = lambda norm: (norm["scale"], norm["bias"]) if norm else (None, None)
  return Parameters(
    *both(norm),
    expand["kernel"],
    expand["bias"],
    shrink["kernel"],
    shrink["bias"],
    *both(out_norm),
    modulation_bias,
  )


def kernel(
  x: jax.Array,
  given: Parameters,
  form: Form,
  dtype: Any,
  implementation: str,
  *,
  modulation: jax.Array | None = None,
  least: float = 0.0,
) -> Callable[[jax.Array, jax.Array | None], jax.Array] | None:
  """Returns the branch as a kernel, or None if layers run one by one.

  "auto" takes the kernel on a TPU v5e or v6e where a device has enough tokens
  for each channel, images do not fill lanes with their batch, and neither
  hidden channels nor tokens are split over devices.

  Args:
    x: images [batch, height, width, channels] or rows of tokens [batch, tokens,
      channels] that it will be given.
    given: parameters of its layers.
    form: what it computes.
    dtype: that the layers compute in.
    implementation: see `attention.kernels.dispatch`; there is a kernel for
      TPUs.
    modulation: see `feed_forward_tpu.branch`, with the leading axes of `x`.
    least: how many tokens a device needs for each channel; with fewer,
      parameters and their gradients, which the kernel moves before and after
      everything else, take more time than it saves.

  Returns:
    function(x, factor) of such an array and of a factor of the branch for each
    of the batch, [batch, 1, ..., 1], which gets no gradient, or None for ones;
    it returns what `x` becomes.

  Raises:
    ValueError: if there is no such implementation, or a kernel was asked for
      and cannot take the arguments.
  """

  def reason():
    if _here.one_by_one:
      return "something is put at the layers of the branch"
    if modulation is not None and modulation.shape[:-1] != x.shape[:-1]:
      return (
        f"x has shape {x.shape} and its modulation {modulation.shape}; the "
        "kernel needs one for each token"
      )
    if implementation == "auto" and (why := _slower(x, least)):
      return why
    plan = feed_forward_tpu.make_plan(
      x, given, form, modulated=modulation is not None
    )
    return feed_forward_tpu.unsupported(plan, x, dtype)

  target = dispatch.choose(implementation, {"tpu": reason})
  if target is None:
    return None

  def call(x, factor):
    ours = given
    if jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) > 1:
      # They are gathered, which in 16 bits is half as much.
      ours = ours._replace(
        w1=ours.w1.astype(x.dtype), w2=ours.w2.astype(x.dtype)
      )
    arrays = {"x": x, "factor": factor, "modulation": modulation}
    present = {k: v for k, v in arrays.items() if v is not None}
    leaves, tree = jax.tree.flatten((present, ours))

    def run(*leaves):
      arrays, ours = jax.tree.unflatten(tree, leaves)
      return _branch(arrays, ours, form, target.interpret)

    tokens = {3: "bnc", 4: "byxc"}[x.ndim]
    letters = {
      "x": tokens,
      "factor": "b" + "i" * (x.ndim - 1),
      "modulation": tokens,
    }
    layouts = [letters[name] for name in sorted(present)]
    layouts += ["cf"[: leaf.ndim] for leaf in leaves[len(present) :]]
    return dispatch.per_device(
      run,
      leaves,
      layouts,
      tokens,
      whole="the kernel of feed-forward layers splits batches only",
    )

  return call


def _slower(x: jax.Array, least: float) -> str | None:
  """Says why layers one by one are faster, or returns None."""
  _, kind = dispatch.chip()
  if kind not in _CHIPS:
    return f"a {kind} is none of {', '.join(_CHIPS)}"
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.shape.get("model", 1) > 1:
    return "the axis model of the mesh splits hidden channels"
  if x.ndim == 3 and dispatch.sequence_parts() > 1:
    return f"the axis {dispatch.SEQUENCE_AXIS} of the mesh splits tokens"
  *lead, channels = dense.share(x)
  tokens = math.prod(lead)
  if tokens < least * channels:
    return f"a device has {tokens} tokens of {channels} channels"
  if x.ndim == 4 and lead[0] % 128 == 0:
    return f"the batch of a device, {lead[0]}, lies along lanes"
  return None


def _branch(arrays, given, form, interpret):
  """The kernel, with tokens in the order that the compiler keeps them in."""
  x, factor = arrays["x"], arrays.get("factor")
  modulation = arrays.get("modulation")
  inward = x.ndim == 4 and dense.batch_goes_inward(x.shape)

  def tokens(x):
    x = x.transpose(1, 2, 0, 3) if inward else x
    return x.reshape(-1, x.shape[-1])

  if factor is not None:
    factor = tokens(jnp.broadcast_to(factor, (*x.shape[:-1], 1)))[:, 0]
  if modulation is not None:
    modulation = tokens(modulation)
  out = feed_forward_tpu.branch(
    tokens(x), factor, given, form, modulation, interpret=interpret
  )
  if not inward:
    return out.reshape(x.shape)
  batch, height, width, channels = x.shape
  return out.reshape(height, width, batch, channels).transpose(2, 0, 1, 3)
