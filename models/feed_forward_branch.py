"""Which implementation a normalised feed-forward branch of images runs in.

Layers are called one by one, or the branch with its residual is one kernel
(`models.feed_forward_tpu`), to which nothing can be put between.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from attention.kernels import dispatch
from models import dense, feed_forward_tpu
from models.feed_forward_tpu import Parameters

# Fewer tokens for each channel take less time than their parameters and the
# gradients of these, which the kernel moves before and after everything else.
_TOKENS_OF_A_CHANNEL = 4
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


def kernel(
  x: jax.Array,
  variables: Mapping[str, Any],
  dtype: Any,
  epsilon: float,
  implementation: str,
) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
  """Returns the branch as a kernel, or None if layers run one by one.

  "auto" takes the kernel on a TPU v5e or v6e where a device has at least four
  tokens for each channel, the batch does not fill lanes, and hidden channels
  are not split over devices. Its GELU is the one by tanh.

  Args:
    x: images [batch, height, width, channels] that it will be given.
    variables: parameters "ffn_norm", "ffn/expand" and "ffn/shrink" of layers.
    dtype: that the layers compute in.
    epsilon: of the norm.
    implementation: see `attention.kernels.dispatch`; there is a kernel for
      TPUs.

  Returns:
    function(x, factor) of images and of a factor of the branch for each image,
    [batch, 1, 1, 1], which gets no gradient; it returns what `x` becomes.

  Raises:
    ValueError: if there is no such implementation, or a kernel was asked for
      and cannot take the arguments.
  """
  norm, ffn = variables["ffn_norm"], variables["ffn"]
  parameters = Parameters(
    norm["scale"],
    norm["bias"],
    ffn["expand"]["kernel"],
    ffn["expand"]["bias"],
    ffn["shrink"]["kernel"],
    ffn["shrink"]["bias"],
  )

  def reason():
    if _here.one_by_one:
      return "something is put at the layers of the branch"
    if implementation == "auto" and (why := _slower(x)):
      return why
    return feed_forward_tpu.unsupported(x, parameters.w1, dtype)

  target = dispatch.choose(implementation, {"tpu": reason})
  if target is None:
    return None
  run = functools.partial(_images, epsilon=epsilon, interpret=target.interpret)

  def call(x, factor):
    given = parameters
    if jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) > 1:
      # They are gathered, which in 16 bits is half as much.
      given = given._replace(
        w1=given.w1.astype(x.dtype), w2=given.w2.astype(x.dtype)
      )
    return dispatch.per_device(
      run,
      (x, factor, *given),
      ("byxc", "biii", "c", "c", "cf", "f", "fc", "c"),
      "byxc",
      whole="the kernel of feed-forward layers splits batches only",
    )

  return call


def _slower(x: jax.Array) -> str | None:
  """Says why layers one by one are faster, or returns None."""
  _, kind = dispatch.chip()
  if kind not in _CHIPS:
    return f"a {kind} is none of {', '.join(_CHIPS)}"
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.shape.get("model", 1) > 1:
    return "the axis model of the mesh splits hidden channels"
  shape = dense.share(x)
  tokens = shape[0] * shape[1] * shape[2]
  if tokens < _TOKENS_OF_A_CHANNEL * shape[3]:
    return f"a device has {tokens} tokens of {shape[3]} channels"
  if shape[0] % 128 == 0:
    return f"the batch of a device, {shape[0]}, lies along lanes"
  return None


def _images(x, factor, *parameters, epsilon, interpret):
  """The kernel, with tokens in the order that the compiler keeps them in."""
  inward = dense.batch_goes_inward(x.shape)

  def tokens(x):
    x = x.transpose(1, 2, 0, 3) if inward else x
    return x.reshape(-1, x.shape[-1])

  factor = jnp.broadcast_to(factor, (*x.shape[:-1], 1))
  out = feed_forward_tpu.branch(
    tokens(x),
    tokens(factor)[:, 0],
    Parameters(*parameters),
    epsilon=epsilon,
    interpret=interpret,
  )
  batch, height, width, channels = x.shape
  if not inward:
    return out.reshape(x.shape)
  return out.reshape(height, width, batch, channels).transpose(2, 0, 1, 3)
