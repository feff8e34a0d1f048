"""Which implementation is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attention.kernels import dispatch
from attention.kernels.dispatch import Target, choose


@pytest.fixture(autouse=True)
def _on_a_tpu(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")


def can():
  return None


def cannot():
  return "q has an odd smell"


def test_auto_takes_the_kernel_of_the_platform():
  assert choose("auto", {"tpu": can, "gpu": cannot}) == Target("tpu")


def test_auto_falls_back_and_pallas_says_why():
  assert choose("auto", {"tpu": cannot}) is None
  with pytest.raises(ValueError, match="q has an odd smell"):
    choose("pallas", {"tpu": cannot})
  with pytest.raises(ValueError, match="no kernel for the platform 'tpu'"):
    choose("pallas", {"gpu": can})


def test_a_named_kernel_needs_no_such_platform():
  assert choose("gpu", {"gpu": can}) == Target("gpu")
  interpreted = choose("gpu_interpret", {"gpu": can})
  assert interpreted == Target("gpu", interpret=True)
  assert choose("xla", {"tpu": can}) is None


def test_an_unknown_implementation_is_an_error():
  with pytest.raises(ValueError, match=r"'cuda'.*'auto', 'xla', 'pallas'"):
    choose("cuda", {"tpu": can})


def test_what_cannot_be_split_is_said_once(monkeypatch):
  said = []
  monkeypatch.setattr(
    dispatch.logging, "warning", lambda text, *args: said.append(text % args)
  )
  dispatch._say_repeated.cache_clear()
  mesh = jax.make_mesh(
    (2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )

  def run(batch, heads):
    x = jnp.arange(float(batch * heads)).reshape(batch, heads)
    out = dispatch.per_device(lambda x, y: x + y, (x, x), ("bh", "bh"), "bh")
    np.testing.assert_array_equal(out, 2 * x)

  with jax.set_mesh(mesh):
    run(4, 6)
    assert said == []
    run(3, 6)
    run(3, 6)
    run(4, 5)
  assert len(said) == 2
  assert "batch of 3 cannot be split over the mesh axes data=2" in said[0]
  assert "heads of 5 cannot be split over the mesh axes model=2" in said[1]
