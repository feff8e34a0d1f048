import importlib.metadata
import os
import subprocess
import sys

import jax
import pytest

from training import compilation_cache

_OPTION = "jax_compilation_cache_dir"


@pytest.fixture
def home(monkeypatch, tmp_path):
  """A home folder, and no cache before; afterwards that of these tests."""
  before = jax.config.jax_compilation_cache_dir
  jax.config.update(_OPTION, None)
  monkeypatch.setenv("HOME", str(tmp_path))
  yield tmp_path
  jax.config.update(_OPTION, before)


def test_it_is_on_by_default(home):
  folder = compilation_cache.enable()
  assert folder == jax.config.jax_compilation_cache_dir
  base, name = os.path.split(folder)
  assert base == str(home / ".cache" / "foveal" / "compiled")
  assert name.startswith(f"jax-{jax.__version__}-")
  assert compilation_cache.describe() == (
    f"compilation cache {folder}: 0 programs, 0 MiB"
  )


def test_what_the_environment_says_stays(home):
  jax.config.update(_OPTION, str(home / "mine"))
  assert compilation_cache.enable() == str(home / "mine")
  chosen = compilation_cache.enable(str(home / "other"))
  assert chosen.startswith(f"{home}/other/jax-")
  assert compilation_cache.enable("none") is None
  assert jax.config.jax_compilation_cache_dir is None
  assert compilation_cache.describe() == "no compilation cache"


def test_a_bucket_is_not_opened_before_it_is_used(home):
  chosen = compilation_cache.enable("gs://bucket/cache")
  assert chosen.startswith("gs://bucket/cache/jax-")


def test_no_home_to_write_to_is_no_error(home):
  (home / ".cache").write_text("a file")
  assert compilation_cache.enable() is None
  with pytest.raises(OSError, match=r"cache"):
    compilation_cache.enable(str(home / ".cache" / "mine"))


def test_versions_never_share(monkeypatch):
  def version(**versions):
    def find(package):
      if package in versions:
        return versions[package]
      raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", find)
    compilation_cache.version.cache_clear()
    return compilation_cache.version()

  names = [
    version(),
    version(jaxlib="0.10.2"),
    version(jaxlib="0.12.0"),
    version(jaxlib="0.12.0", libtpu="0.0.52"),
  ]
  monkeypatch.setattr(compilation_cache, "_cpu_features", lambda: "flags: avx9")
  names.append(version())
  assert len(set(names)) == len(names)
  assert names[0] == names[0].strip("/ ")
  compilation_cache.version.cache_clear()


def test_what_was_not_used_for_the_longest_goes(tmp_path):
  names = ["jax-1/new-cache", "jax-1/middle-cache", "jax-0/old-cache"]
  # What is not of a cache is never touched, nor counted.
  others = ["jax-0/letters-old", "photographs/holiday-cache"]
  for age, name in enumerate(names + others):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(100))
    os.utime(path, (1e9 - age, 1e9 - age))
  compilation_cache.trim(tmp_path, 250)
  left = {str(p.relative_to(tmp_path)) for p in tmp_path.glob("*/*")}
  assert left == {*names[:2], *others}


# A process, so that JAX has not compiled before.
def test_a_second_start_takes_what_the_first_compiled(tmp_path):
  code = f"""
import jax
from training import compilation_cache
compilation_cache.enable({str(tmp_path)!r})
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x * 3)(jax.numpy.ones(5)).block_until_ready()
print(compilation_cache.describe())
"""
  said = [
    subprocess.run(
      [sys.executable, "-c", code],
      check=True,
      capture_output=True,
      text=True,
    ).stdout
    for _ in range(2)
  ]
  assert " 0 programs" not in said[0]
  assert said[0] == said[1]
