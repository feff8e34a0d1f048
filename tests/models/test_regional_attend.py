"""The gate and the composer of C-Upscale, in cross-attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import attends, grid_mixers

LAYOUT = attends.Layout((2, 3), (2, 3), 4)


def attention(attend="full", **options):
  return grid_mixers.CrossAttention(2, attend, options)


def arrays(tokens=4):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  x, text = draw(2, 6, 8), draw(2, tokens, 8)
  variables = attention().init(jax.random.key(0), x, LAYOUT, text)
  # Biases too.
  leaves, tree = jax.tree.flatten(variables)
  leaves = [draw(*leaf.shape) for leaf in leaves]
  return jax.tree.unflatten(tree, leaves), x, text


def call(variables, x, text, bias=None, lengths=None, **options):
  if bias is not None:
    variables = {**variables, "attention_state": {"bias": bias}}
  return attention("regional", **options).apply(
    variables, x, LAYOUT, text, lengths
  )


def test_no_gate_is_ordinary_attention():
  """Bit for bit, also with a gate of zeros."""
  variables, x, text = arrays()
  plain = attention().apply(variables, x, LAYOUT, text)
  np.testing.assert_array_equal(call(variables, x, text), plain)
  zeros = jnp.zeros((2, 6, 4))
  np.testing.assert_array_equal(call(variables, x, text, zeros), plain)


def test_one_token_is_left():
  """-inf for all but one gives that token's value."""
  variables, x, text = arrays()
  bias = jnp.full((2, 6, 4), -jnp.inf)
  bias = bias.at[0, :, 2].set(0).at[1, :, 0].set(0)
  made = call(variables, x, text, bias)
  params = variables["params"]
  for row, token in ((0, 2), (1, 0)):
    value = text[row, token] @ params["value"]["kernel"].reshape(8, 8)
    value += params["value"]["bias"].reshape(8)
    expected = value @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(
      made[row], np.broadcast_to(expected, (6, 8)), rtol=1e-4, atol=1e-4
    )


def test_gate_multiplies_weights_before_they_are_normalised():
  variables, x, text = arrays()
  gate = jnp.asarray(np.random.default_rng(1).uniform(0.01, 1, (2, 6, 4)))
  read = lambda attend, variables: np.asarray(
    attention(attend).apply(
      variables, x, LAYOUT, text, mutable=["intermediates"]
    )[1]["intermediates"]["attention_weights"]
  )
  plain = read("full", variables)
  state = {"attention_state": {"bias": jnp.log(gate)}}
  gated = read("regional", variables | state)
  expected = plain * np.asarray(gate)[:, None]
  expected /= expected.sum(axis=-1, keepdims=True)
  np.testing.assert_allclose(gated, expected, rtol=1e-5, atol=1e-6)


def test_composer():
  """Linear between attention to one prompt and to the other."""
  variables, x, text = arrays(5)
  bias = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 3)))
  made = {
    mix: np.asarray(call(variables, x, text, bias, mix=mix))
    for mix in (1e-9, 0.3, 1.0)
  }
  first = call(variables, x, text[:, :3], bias)
  own = attention().apply(variables, x, LAYOUT, text[:, [0, 3, 4]])
  np.testing.assert_allclose(made[1e-9], first, atol=1e-5)
  np.testing.assert_allclose(made[1.0], own, atol=1e-5)
  np.testing.assert_allclose(made[0.3], 0.7 * first + 0.3 * own, atol=1e-5)


def test_none_of_either_prompt():
  """A row without a text has the start token alone, in both."""
  variables, x, text = arrays(5)
  lengths = jnp.array([5, 1])
  made = call(variables, x, text, lengths=lengths, mix=0.5)
  whole = call(variables, x, text, mix=0.5)
  np.testing.assert_allclose(made[0], whole[0], atol=1e-6)
  start = attention().apply(variables, x, LAYOUT, text[:, :1])
  np.testing.assert_allclose(made[1], start[1], atol=1e-5)


@pytest.mark.parametrize(
  ("tokens", "mix", "message"),
  [
    (5, 1.5, "mix is 1.5; it must be a share"),
    (4, 0.5, r"two prompts of equal length: there are 3 tokens"),
  ],
)
def test_refuses(tokens, mix, message):
  variables, x, text = arrays(tokens)
  with pytest.raises(ValueError, match=message):
    call(variables, x, text, mix=mix)
