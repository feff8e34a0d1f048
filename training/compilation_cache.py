"""A folder of compiled programs, so that a restart need not compile again."""

import functools
import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

import jax

import storage

OFF = "none"
_DEFAULT = "~/.cache/foveal/compiled"
# Of all versions together. A training step of MaxViT-B takes 20 MB or so.
_MOST_BYTES = 10 * 2**30
# What makes programs, and so decides what they are.
_COMPILERS = ("jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")


def enable(folder: str = "") -> str | None:
  """Turns on JAX's cache of compiled programs; before anything is compiled.

  JAX's keys hold the program, the flags and the chip, but not everything that a
  compiler is: each version of jax and of what compiles, and each kind of CPU,
  has a folder of its own. What was not used for the longest goes once all take
  more than 10 GiB.

  Args:
    folder: local or a URL; empty for `JAX_COMPILATION_CACHE_DIR` as it stands,
      or else `~/.cache/foveal/compiled`; "none" for no cache.

  Returns:
    Where programs are kept now, or None.
  """
  if folder == OFF:
    jax.config.update("jax_compilation_cache_dir", None)
    return None
  if not folder and jax.config.jax_compilation_cache_dir:
    return jax.config.jax_compilation_cache_dir
  base = storage.path(folder or _DEFAULT)
  chosen = str(storage.absolute(base) / version())
  if not storage.is_remote(base):
    try:
      Path(chosen).mkdir(parents=True, exist_ok=True)
      trim(Path(chosen).parent, _MOST_BYTES)
    except OSError:
      if folder:
        raise
      # A home folder that cannot be written is no reason not to train.
      return None
  jax.config.update("jax_compilation_cache_dir", chosen)
  return chosen


@functools.cache
def version() -> str:
  """A name for whatever compiles here, as "jax-0.10.2-3f9a1c04"."""
  facts = [platform.machine(), _cpu_features()]
  for package in _COMPILERS:
    try:
      facts.append(f"{package} {importlib.metadata.version(package)}")
    except importlib.metadata.PackageNotFoundError:
      continue
  digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()
  return f"jax-{jax.__version__}-{digest[:8]}"


def _cpu_features() -> str:
  """What programs for this CPU may use, which another one may not have."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return platform.processor()
  kinds = ("flags", "Features", "model name")
  return "\n".join(sorted({x for x in lines if x.startswith(kinds)}))


def trim(folder: Path, most_bytes: int) -> None:
  """Removes the programs that were not used for the longest.

  Args:
    folder: with a folder for each version.
    most_bytes: that may be left.
  """
  files = []
  for path in folder.glob("jax-*/*-*"):
    # Nothing else that somebody may have put there.
    if not path.name.endswith(("-cache", "-atime")):
      continue
    try:
      status = path.stat()
    except OSError:
      # Another process trims as well.
      continue
    files.append((max(status.st_atime, status.st_mtime), status.st_size, path))
  left = sum(size for _, size, _ in files)
  for _, size, path in sorted(files):
    if left <= most_bytes:
      return
    path.unlink(missing_ok=True)
    left -= size


def describe() -> str:
  """Where the cache is and how large, for people."""
  folder = jax.config.jax_compilation_cache_dir
  if not folder:
    return "no compilation cache"
  if storage.is_remote(storage.path(folder)):
    return f"compilation cache {folder}"
  sizes = [int(os.path.getsize(path)) for path in Path(folder).glob("*-cache")]
  return (
    f"compilation cache {folder}: {len(sizes)} programs, "
    f"{sum(sizes) / 2**20:.0f} MiB"
  )
