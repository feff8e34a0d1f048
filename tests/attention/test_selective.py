"""The selective scan against a loop over positions; the four ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import attention
from attention import recurrence

BATCH, LENGTH, HEADS, DIM, STATES = 2, 13, 3, 2, 4
RNG = np.random.default_rng(0)


def _arguments():
  shape = (BATCH, LENGTH, HEADS)
  # Steps from almost none to those that empty the memory.
  dt = np.exp(RNG.uniform(-6, 3, (*shape, DIM)))
  arrays = {
    "x": RNG.standard_normal((*shape, DIM)),
    "dt": dt,
    "a": -np.exp(RNG.standard_normal((HEADS, DIM, STATES))),
    "b": RNG.standard_normal((*shape, STATES)),
    "c": RNG.standard_normal((*shape, STATES)),
    "d": RNG.standard_normal((HEADS, DIM)),
    "memory": RNG.standard_normal((BATCH, HEADS, DIM, STATES)),
  }
  return {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}


ARGUMENTS = _arguments()


def by_hand(x, dt, a, b, c, d, memory, np=np):
  """Place by place, in the precision of the arguments."""
  h, out = memory, []
  for t in range(x.shape[1]):
    step = dt[:, t, :, :, None]
    term = step * x[:, t, :, :, None] * b[:, t, :, None]
    h = np.exp(step * a[None]) * h + term
    out.append((h * c[:, t, :, None]).sum(-1) + d[None] * x[:, t])
  return np.stack(out, 1), h


@pytest.mark.parametrize("chunk_size", [1, 5, 13, 64])
def test_values(chunk_size):
  out, memory = attention.selective_scan(
    **ARGUMENTS, return_memory=True, chunk_size=chunk_size
  )
  exact = {name: np.asarray(x, np.float64) for name, x in ARGUMENTS.items()}
  wanted, last = by_hand(**exact)
  np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(memory, last, rtol=1e-5, atol=1e-5)


def test_gradients():
  names = list(ARGUMENTS)
  direction = RNG.standard_normal((BATCH, LENGTH, HEADS, DIM))
  direction = direction.astype(np.float32)

  def gradients(call):
    def loss(*args):
      out, memory = call(**dict(zip(names, args, strict=True)))
      return (out * direction).sum() + (memory * memory).sum()

    return jax.jit(jax.grad(loss, argnums=range(len(names))))(
      *ARGUMENTS.values()
    )

  def chunks(**args):
    return attention.selective_scan(**args, return_memory=True, chunk_size=5)

  ours = gradients(chunks)
  loop = gradients(lambda **args: by_hand(**args, np=jnp))
  for name, mine, wanted in zip(names, ours, loop, strict=True):
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(
      mine, wanted, atol=1e-5 * scale, rtol=1e-4, err_msg=name
    )


def test_it_is_linear_attention_with_a_decay_for_each_feature():
  x, dt, a, b, c, d, _ = ARGUMENTS.values()
  heads = lambda y: jnp.repeat(y, DIM, axis=2)
  phi_k, phi_q = heads(b), heads(c)
  terms, steps = (y.reshape(BATCH, LENGTH, -1, 1) for y in (dt * x, dt))
  decay = steps * a.reshape(1, 1, -1, STATES)
  memory = jnp.zeros((BATCH, HEADS * DIM, STATES, 1))
  wanted, _ = recurrence.run(phi_q, phi_k, terms, decay, memory, 4)
  out = attention.selective_scan(x, dt, a, b, c, chunk_size=4)
  np.testing.assert_allclose(
    out.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-4
  )
  with_input = attention.selective_scan(x, dt, a, b, c, d, chunk_size=4)
  np.testing.assert_allclose(with_input - out, d[None, None] * x, atol=1e-5)


def test_bfloat16_is_computed_in_float32():
  args = {k: jnp.asarray(x, jnp.bfloat16) for k, x in ARGUMENTS.items()}
  out = attention.selective_scan(**args, chunk_size=5)
  assert out.dtype == jnp.bfloat16
  exact = {k: np.asarray(x.astype(jnp.float32)) for k, x in args.items()}
  wanted = jnp.asarray(by_hand(**exact)[0], jnp.bfloat16)
  # One rounding of what was summed in float32.
  np.testing.assert_allclose(
    out.astype(jnp.float32), wanted.astype(jnp.float32), rtol=0.01, atol=1e-3
  )


IMAGE = np.arange(6.0).reshape(1, 2, 3, 1, 1)
WAYS = [
  [0, 1, 2, 3, 4, 5],
  [0, 3, 1, 4, 2, 5],
  [5, 4, 3, 2, 1, 0],
  [5, 2, 4, 1, 3, 0],
]


def test_the_four_ways():
  # Each way has an image of its own: hundreds tell which.
  images = IMAGE + 100 * np.arange(4).reshape(1, 1, 1, 4, 1)
  found = attention.four_ways(jnp.asarray(images))[0, :, :, 0].T
  wanted = np.array(WAYS) + 100 * np.arange(4)[:, None]
  np.testing.assert_array_equal(found, wanted)
  back = attention.from_four_ways(found.T[None, ..., None], 2, 3)
  np.testing.assert_array_equal(back, images.sum(3))


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("dt", np.ones((2, 12, 3, 2), np.float32), r"dt has shape \(2, 12, 3, 2\)"),
    ("a", np.ones((3, 3, 4), np.float32), r"a has shape .* \(3, 2, 4\)"),
    ("b", np.ones((2, 13, 1, 4), np.float32), r"b has .* \(2, 13, 3, 4\)"),
    ("c", np.ones((2, 13, 3, 4), np.int32), "c is an array of int32"),
    ("d", np.ones((2, 3), np.float32), r"d has shape \(2, 3\).*\(3, 2\)"),
    ("memory", np.ones((3, 2, 4), np.float32), r"memory has shape \(3, 2, 4\)"),
    ("x", np.ones((2, 13, 6), np.float32), r"x has shape \(2, 13, 6\) and a"),
    ("chunk_size", 0, "chunk_size is 0; it must be at least 1"),
    ("return_memory", "no", "return_memory is 'no'"),
  ],
)
def test_what_does_not_fit(unchecked, name, value, message):
  with pytest.raises(ValueError, match=message):
    attention.selective_scan(**{**ARGUMENTS, name: value})


def test_images_that_do_not_fit(unchecked):
  with pytest.raises(ValueError, match=r"x has shape \(1, 2, 3, 2, 1\)"):
    attention.four_ways(jnp.zeros((1, 2, 3, 2, 1)))
  with pytest.raises(ValueError, match=r"y has .* image of 2 x 2 needs"):
    attention.from_four_ways(jnp.zeros((1, 6, 4, 1)), 2, 2)
