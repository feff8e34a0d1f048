"""Which implementation is taken."""

import jax
import pytest

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


def test_auto_leaves_a_slower_kernel_that_pallas_takes():
  assert choose("auto", {"tpu": can}, slower=("tpu",)) is None
  assert choose("pallas", {"tpu": can}, slower=("tpu",)) == Target("tpu")


def test_a_named_kernel_needs_no_such_platform():
  assert choose("gpu", {"gpu": can}) == Target("gpu")
  interpreted = choose("gpu_interpret", {"gpu": can})
  assert interpreted == Target("gpu", interpret=True)
  assert choose("xla", {"tpu": can}) is None


def test_an_unknown_implementation_is_an_error():
  with pytest.raises(ValueError, match=r"'cuda'.*'auto', 'xla', 'pallas'"):
    choose("cuda", {"tpu": can})
