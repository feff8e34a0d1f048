"""The router of "Flux Attention" (arXiv 2604.07394): one choice a row."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp

# The logit that stands for full attention; the other one is for streaming.
FULL = 1
# PyTorch's default, Kaiming's uniform with a = sqrt(5).
_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def begin_full(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
  """The bias of the logits, [0, 4.5]: every row begins with full attention."""
  del key
  return jnp.zeros(shape, dtype).at[FULL].set(4.5)


class Router(nn.Module):
  """From a vector of a row to its two logits, in float32.

  Attributes:
    param_dtype: dtype of the parameters.
  """

  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [batch, head_dim] to [batch, 2]."""
    dim = x.shape[-1]

    def dense(features, name, **options):
      options = {"kernel_init": _UNIFORM, **options}
      return nn.Dense(
        features,
        dtype=jnp.float32,
        param_dtype=self.param_dtype,
        name=name,
        **options,
      )

    x = nn.silu(dense(8 * dim, "expand")(x.astype(jnp.float32)))
    x = dense(2 * dim, "feature")(x)
    x = nn.silu(dense(4 * dim, "hidden")(x))
    x = nn.silu(dense(dim, "shrink")(x))
    zeros = nn.initializers.zeros
    last = dense(2, "logits", kernel_init=zeros, bias_init=begin_full)
    return last(x)


def pooled(q: jax.Array, kept: jax.Array | None, count: int) -> jax.Array:
  """Mean of the first and the last queries of each row, and of their heads.

  Those that are among both count twice.

  Args:
    q: [batch, length, heads, head_dim], before they are turned by position.
    kept: bool [batch, length], the tokens that are asked; None for all.
    count: how many are first, and how many last.

  Returns:
    float32 [batch, head_dim]; zeros for a row where no token is asked.
  """
  if kept is None:
    kept = jnp.ones(q.shape[:2], bool)
  rank = jnp.cumsum(kept, axis=1)
  first = rank <= count
  last = rank > rank[:, -1:] - count
  weights = kept * (first.astype(jnp.float32) + last)
  total = jnp.maximum(weights.sum(axis=1), 1.0)
  heads = q.astype(jnp.float32).mean(axis=2)
  return jnp.einsum("bl,bld->bd", weights, heads) / total[:, None]


def straight_through(
  logits: jax.Array, key: jax.Array, temperature: jax.Array | float
) -> jax.Array:
  """Draws 1 for full attention or 0, with the gradient of a soft choice.

  Args:
    logits: [batch, 2].
    key: of the Gumbel noise.
    temperature: of the soft choice, above 0.

  Returns:
    float32 [batch].
  """
  uniform = jax.random.uniform(key, logits.shape)
  noise = -jnp.log(-jnp.log(uniform + 1e-8) + 1e-8)
  soft = nn.softmax((logits + noise) / temperature)
  hard = jax.nn.one_hot(soft.argmax(-1), 2)
  # The difference is 0 to the bit, so that the value is.
  return (hard + (soft - jax.lax.stop_gradient(soft)))[:, FULL]


def routing(
  *,
  prompt: jax.Array | None = None,
  temperature: jax.Array | float | None = None,
) -> contextlib.AbstractContextManager[None]:
  """A context in which the routed mixers of any model are told these.

  Args:
    prompt: bool [batch, length], the tokens whose queries decide; None for all
      that are no padding.
    temperature: makes routers draw, with bits from the stream "routing"; with
      None they take what is likelier.
  """

  def tell(call, args, kwargs, context):
    # As `normalization.masked_statistics`: nothing between has to know.
    called = context.method_name == "__call__"
    if called and getattr(context.module, "routed", False):
      kwargs = {**kwargs, "prompt": prompt, "temperature": temperature}
    return call(*args, **kwargs)

  return nn.intercept_methods(tell)
