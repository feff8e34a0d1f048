"""Losses at several lengths, against the sum of log probabilities."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import language
from interpret import length_extrapolation
from tests.models import language as small

TEXT = "".join(chr(97 + (i * i) % 23) for i in range(400))


@pytest.fixture
def data(tmp_path):
  path = tmp_path / "text.txt"
  path.write_text(TEXT)
  config = language.get_config("test").data
  config.update(files=str(path), eval_files=str(path), length=4)
  return config


class Position(nn.Module):
  """Gives the token 97 a logit of its position by 10."""

  @nn.compact
  def __call__(self, tokens, *, train):
    places = jnp.arange(tokens.shape[1], dtype=jnp.float32)[None, :, None]
    mine = jnp.arange(257)[None, None] == 97
    return (
      jnp.where(mine, places / 10, 0.0) + jnp.zeros(tokens.shape)[..., None]
    )


def test_targets_are_the_same_at_each_length(data):
  found = length_extrapolation.losses(
    Position(), {}, data, factors=(1, 2, 8), windows=3
  )
  whole = length_extrapolation.evaluation_windows(data, 32, 3)
  ids = [256, *TEXT.encode(), 256]
  for tokens, targets in zip(*whole, strict=True):
    # Each is a run of the text, one token apart.
    start = next(
      i for i in range(len(ids)) if ids[i : i + 32] == tokens.tolist()
    )
    assert targets.tolist() == ids[start + 1 : start + 33]
  for factor, loss in found.items():
    place = np.arange(32) % (4 * factor) / 10
    nats = np.log(256 + np.exp(place)) - np.where(whole.targets == 97, place, 0)
    np.testing.assert_allclose(loss, nats.mean(), rtol=1e-6)


def test_a_window_sees_no_further_than_its_length():
  model = small.model()
  variables = small.variables(model)
  tokens = small.tokens((2, 13))
  windows = length_extrapolation.Windows(tokens[:, :-1], tokens[:, 1:])
  got = length_extrapolation.loss(model, variables, windows, 4)
  parts = windows.tokens.reshape(6, 4)
  log_p = jax.nn.log_softmax(jax.jit(model.apply)(variables, parts))
  targets = windows.targets.reshape(6, 4)
  nats = -np.take_along_axis(np.asarray(log_p), targets[..., None], -1)
  np.testing.assert_allclose(got, nats.mean(), rtol=1e-5)


def test_what_does_not_fit_is_an_error(data):
  model = types.SimpleNamespace()
  for factors, message in (
    ((2, 3), "each must be at least 1 and divide the largest, 3"),
    ((1, 128), "No document to evaluate on has 512 tokens"),
  ):
    with pytest.raises(ValueError, match=message):
      length_extrapolation.losses(model, {}, data, factors=factors)
