"""In a process of its own, since the setting cannot be taken back."""

import platform
import subprocess
import sys

import pytest

from training import host_memory

SCRIPT = """
import resource
import numpy as np
from training import host_memory
kept = host_memory.keep_freed_memory()
def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  np.ones(2**26, np.uint8).sum()
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, faults())
"""


@pytest.mark.skipif(
  platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt"
)
def test_memory_used_once_is_not_faulted_in_again():
  result = subprocess.run(
    [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
  )
  kept, faults = result.stdout.split()
  if kept == "False":
    pytest.skip("an accelerator is here")
  # 64 MiB are 16,384 pages.
  assert int(faults) < 1000


def test_an_accelerator_leaves_the_allocator_alone(monkeypatch, tmp_path):
  monkeypatch.setattr(host_memory, "_ACCELERATORS", (f"{tmp_path}*",))
  assert not host_memory.keep_freed_memory()
