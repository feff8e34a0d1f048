"""Strict JAX for every test: several devices, no silent rank promotion."""

import os
import tempfile

from tests import compiler_flags

# Before JAX starts its backend: tests of sharding need more than one device,
# and small models are compiled more often than they are run.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=4",
    compiler_flags.QUICK,
  ]
)

# Each core has a worker: more threads would wait for one another.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

# What one worker of pytest has compiled, the others and the processes that
# tests start read from here.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _compiled = tempfile.TemporaryDirectory(prefix="foveal_tests_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

from jaxtyping import install_import_hook

# Shapes in the signatures of `attention` are checked here and cost nothing
# elsewhere.
install_import_hook("attention", "beartype.beartype")

import jax  # noqa: E402, the hook must come first.
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# JAX reads the flags as it starts its backend. libtpu, which some tests load,
# would read them too, and ends the process at one that it does not know.
jax.devices()
del os.environ["XLA_FLAGS"]

pytest_plugins = ["tests.cpu_seconds", "tests.smoke"]


@pytest.fixture(autouse=True)
def _import_what_is_compared_with(request):
  """So that importing timm is not counted as the first such test's own time."""
  if request.node.get_closest_marker("parity"):
    from tests import parity_helper

    parity_helper.import_timm()
