"""Lets a process on the CPU keep the memory that it has once used."""

import ctypes
import glob
import platform

# Constants of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
# What the drivers of NVIDIA's and AMD's GPUs and of TPUs put there.
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/*")


def keep_freed_memory() -> bool:
  """Stops the allocator from returning large blocks to the system.

  XLA's CPU client allocates the temporary memory of a step anew for each step.
  glibc maps blocks of this size from the kernel and unmaps them afterwards, so
  that every page is faulted in and zeroed once a step: a million faults and a
  quarter of the time of a training step of MaxViT-T on two cores.

  To be called before JAX starts its backend, since threads that have allocated
  already keep the habit. Therefore it looks for accelerators by their device
  files, and does nothing where there is one: there, many threads feed it, and
  one arena for all would make them wait for each other.

  Returns:
    Whether anything was changed; False with an accelerator or another libc.
  """
  if any(glob.glob(pattern) for pattern in _ACCELERATORS):
    return False
  if platform.libc_ver()[0] != "glibc":
    return False
  libc = ctypes.CDLL(None)
  settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
  return all([libc.mallopt(name, value) for name, value in settings])
