"""Guidance, and what a model is given, against plain sums."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import generation


class Toy(nn.Module):
  """Its output tells what it was given; it counts its calls."""

  num_classes: int = 5
  guided_channels: int | None = None
  options: dict = None

  @nn.compact
  def __call__(self, x, time, label=None, text=None, text_length=None, train=0):
    weight = self.param("weight", nn.initializers.normal(), (x.shape[-1],))
    calls = self.variable(
      "attention_state", "calls", lambda: jnp.zeros(len(x), jnp.int32)
    )
    calls.value += 1
    one = lambda rows: rows.astype(jnp.float32)[:, None]
    given = 0.01 * one(time) + one(calls.value)
    if label is not None:
      given += jnp.sin(one(label))
    if text is not None:
      seen = jnp.arange(text.shape[1])[None] < text_length[:, None]
      given += jnp.where(seen[..., None], text, 0).sum((1, 2))[:, None]
    y = x * weight.reshape(1, -1) + given
    # As with a learned variance: channels twice.
    return jnp.concatenate([y, 100 * y], axis=-1)


def start(**fields):
  model = Toy(options={"a": 1}, **fields)
  variables = model.init(jax.random.key(0), jnp.ones((1, 4)), jnp.ones(1))
  x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
  return model, {"params": variables["params"]}, jnp.asarray(x)


def plain(variables, x, given):
  return np.asarray(x * variables["params"]["weight"][None]) + given


@pytest.mark.parametrize("channels", [None, 3])
def test_guidance(channels):
  model, variables, x = start(guided_channels=channels)
  label = np.array([1, 4, 0])
  denoise = generation.create_denoiser(
    model, variables, label=label, guidance=4.0
  )
  prediction, state = jax.jit(lambda d, *args: d(*args))(denoise, x, 250.0, {})
  given = plain(variables, x, 2.5 + 1 + np.sin(label)[:, None])
  none = plain(variables, x, 2.5 + 1 + np.sin(5.0))
  expected = none + 4 * (given - none)
  if channels:
    expected[:, channels:] = given[:, channels:]
  np.testing.assert_allclose(prediction, expected, atol=1e-4)
  np.testing.assert_array_equal(state["calls"], np.ones(6))
  _, state = denoise(x, jnp.float32(250.0), state)
  np.testing.assert_array_equal(state["calls"], np.full(6, 2))


def test_without_guidance():
  model, variables, x = start()
  label = np.array([1, 4, 0])
  denoise = generation.create_denoiser(model, variables, label=label)
  # The time of the data themselves is the first that there is noise at.
  prediction, state = denoise(x, jnp.float32(-1), {})
  given = plain(variables, x, 1 + np.sin(label)[:, None])
  np.testing.assert_allclose(prediction, given, atol=1e-5)
  assert state["calls"].shape == (3,)
  prediction, _ = generation.create_denoiser(model, variables)(x, 0.0, {})
  np.testing.assert_allclose(prediction, plain(variables, x, 1), atol=1e-5)


def test_texts():
  """Those without a condition have no tokens."""
  model, variables, x = start()
  text = np.random.default_rng(1).normal(size=(3, 2, 6)).astype(np.float32)
  length = np.array([1, 2, 2])
  denoise = generation.create_denoiser(
    model, variables, text=text, text_length=length, guidance=3.0
  )
  prediction, _ = denoise(x, 0.0, {})
  sums = [text[0, 0].sum(), text[1].sum(), text[2].sum()]
  given = plain(variables, x, 1 + np.array(sums)[:, None])
  none = plain(variables, x, 1)
  np.testing.assert_allclose(prediction, none + 3 * (given - none), atol=1e-4)
  all_tokens = generation.create_denoiser(
    model, variables, text=text[1:], guidance=3.0
  )
  np.testing.assert_allclose(
    all_tokens(x[1:], 0.0, {})[0], prediction[1:], atol=1e-5
  )


def test_sampling_with_a_model():
  """States pass from step to step, and nothing is compiled per guidance."""
  model, variables, x = start()
  path = generation.flow()
  made = [
    generation.sample(
      generation.create_denoiser(
        model, variables, label=np.array([0, 1, 2]), guidance=guidance
      ),
      x,
      path,
      steps=3,
    )
    for guidance in (2.0, 3.0)
  ]
  expected = []
  for guidance in (2.0, 3.0):
    y = np.asarray(x)
    for n, time in enumerate((1000, 2000 / 3, 1000 / 3)):
      label = np.array([0, 1, 2])[:, None]
      given = plain(variables, y, time / 100 + n + 1 + np.sin(label))
      none = plain(variables, y, time / 100 + n + 1 + np.sin(5.0))
      y = y - (none + guidance * (given - none)) / 3
    expected.append(y)
  np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"guidance": 2.0}, "guidance needs a condition"),
    ({"guidance": np.inf}, "guidance is inf; it must be a number, finite"),
  ],
)
def test_refuses(options, message):
  model, variables, _ = start()
  with pytest.raises(ValueError, match=message):
    generation.create_denoiser(model, variables, **options)
