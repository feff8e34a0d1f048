"""The seam: any mixer by name, each taking the options it knows."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import token_mixers
from tests.models import small


class Doubling(nn.Module):
  """A mixer that knows none of the options of attention."""

  @nn.compact
  def __call__(self, x):
    return 2 * x


def test_a_new_mixer_enters_a_model_by_its_name(monkeypatch):
  monkeypatch.setitem(token_mixers.TOKEN_MIXERS, "doubling", Doubling)
  model = small.model(layout=("mbconv", "doubling"))
  variables = small.variables(model)
  assert "doubling" in variables["params"]["stage_0"]["block_0"]
  assert small.apply(model, variables, small.images()).shape == (2, 5)


@pytest.mark.parametrize("kind", ["block_attention", "grid_attention"])
def test_heads_are_independent(kind):
  offered = {"head_dim": 4, "window_size": 2, "something_else": 1}
  mixer = token_mixers.create(kind, offered)
  x = small.images(channels=8, size=4)
  params = mixer.init(jax.random.key(0), x)["params"]
  assert params["relative_bias_table"].shape == (2, 3, 3)
  assert params["qkv"]["kernel"].shape == (8, 3, 2, 4)
  # Without its rows of the output kernel the second head has no say.
  cut = params["out"]["kernel"].at[1].set(0)
  params["out"]["kernel"] = cut
  changed = params["qkv"]["kernel"].at[:, :, 1].multiply(3)
  out = mixer.apply({"params": params}, x)
  params["qkv"]["kernel"] = changed
  assert jnp.array_equal(out, mixer.apply({"params": params}, x))


@pytest.mark.parametrize("kind", ["block_attention", "grid_attention"])
def test_entropy_scales_windows_of_another_size_than_in_training(kind):
  """sqrt(ln N / ln T), N the tokens of a window; the table says T."""
  x = small.images(channels=8, size=4)

  def output(scale=1.0, **options):
    offered = {"head_dim": 4, "window_size": 4, **options}
    mixer = token_mixers.create(kind, offered)
    params = mixer.init(jax.random.key(0), x)["params"]
    # Queries are the first of three.
    params["qkv"]["kernel"] = params["qkv"]["kernel"].at[:, 0].multiply(scale)
    return mixer.apply({"params": params}, x)

  by_hand = (np.log(16) / np.log(4)) ** 0.5
  options = {"bias_table_window": 2, "kernel_init": nn.initializers.normal(1)}
  np.testing.assert_allclose(
    output(scale_by="entropy", **options),
    output(by_hand, **options),
    rtol=1e-4,
    atol=1e-4,
  )
  # As in training, no bit.
  np.testing.assert_array_equal(output(scale_by="entropy"), output())


@pytest.mark.parametrize("shift", [None, 1, 0])
def test_shifted_windows_end_at_the_edge(shift):
  """As among all pixels, of which those of a window see each other."""
  offered = {"head_dim": 4, "window_size": 4, "shift": shift}
  offered["kernel_init"] = nn.initializers.normal(0.5)
  mixer = token_mixers.create("shifted_attention", offered)
  x = small.images(batch=2, channels=8, size=8)[:, :, :4].repeat(3, 2)
  x += small.images(batch=2, channels=8, size=12, seed=2)[:, :8]
  params = mixer.init(jax.random.key(0), x)["params"]
  out = jax.jit(mixer.apply)({"params": params}, x)

  y, x_places = (place.reshape(-1) for place in np.indices((8, 12)))
  shift = 2 if shift is None else shift
  window = np.stack([(y - shift) // 4, (x_places - shift) // 4])
  same = (window[:, :, None] == window[:, None]).all(0)
  offsets = [np.clip(p[None] - p[:, None] + 3, 0, 6) for p in (y, x_places)]
  bias = params["relative_bias_table"][:, *offsets]
  q, k, v = jnp.einsum(
    "bnc,cphd->pbnhd", x.reshape(2, 96, 8), params["qkv"]["kernel"]
  )
  scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2 + bias[None]
  weights = jax.nn.softmax(jnp.where(same[None, None], scores, -jnp.inf))
  expected = jnp.einsum(
    "bhqk,bkhd,hdc->bqc", weights, v, params["out"]["kernel"]
  )
  np.testing.assert_allclose(out.reshape(2, 96, 8), expected, atol=1e-4)


def test_windows_are_shifted_by_less_than_one():
  offered = {"head_dim": 4, "window_size": 4, "shift": 4}
  mixer = token_mixers.create("shifted_attention", offered)
  with pytest.raises(ValueError, match="shift is 4; it must be at least 0 and"):
    mixer.init(jax.random.key(0), small.images(channels=8, size=8))


def test_unknown_mixer():
  with pytest.raises(ValueError, match=r"token mixer 'block'.*block_attention"):
    token_mixers.create("block", {})
