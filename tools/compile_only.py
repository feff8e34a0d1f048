"""Compiles for chips that are not here: TPUs and NVIDIA GPUs.

  python -m tools.compile_only --config=configs/maxvit.py:base_224 \\
    --topology=v5e:16x16 [--step=train|eval|decode] [--json] [--config.x=y ...]

says what a step of a config needs on a pod, and if it does not fit what would
make it fit, see docs/pods.md. The rest of this is a library for functions.

Needs the extra `compile` and no accelerator: libtpu holds the whole compiler of
every TPU generation, and the CUDA plugin that of every NVIDIA GPU. What comes
back is a compiled program to be read (`memory_analysis()`, `as_text()`), not to
be run. Import this module before JAX starts a backend, with JAX_PLATFORMS=cpu.

A kernel that is wrong for its GPU may end the process: compile for GPUs in a
process of its own for each.
"""

import os

# Read by libtpu and the CUDA plugin when they are loaded: there is no chip, no
# metadata server and no driver to ask.
for _name, _value in {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  # No process uses a chip, so that none need wait for another.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TF_CPP_MIN_LOG_LEVEL": "2",
  "CUDA_VISIBLE_DEVICES": "-1",
  "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
}.items():
  os.environ.setdefault(_name, _value)
if __name__ == "__main__":
  # The chips that may be here are somebody else's.
  os.environ["JAX_PLATFORMS"] = "cpu"

import functools  # noqa: E402
from collections.abc import Callable  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402

TPUS = {
  "v4": "v4:2x2x1",
  "v5e": "v5e:1x1",
  "v5p": "v5p:2x2x1",
  "v6e": "v6e:1x1",
  "tpu7x": "tpu7x:1x1x1",
}

# Name for XLA, compute capability, and what its compiler asks about the chip;
# the figures are those of XLA's own target specifications.
GPUS = {
  "a100": {
    "name": "NVIDIA A100-SXM4-80GB",
    "capability": (8, 0, "NONE"),
    "cores": 108,
    "shared_memory": 167936,
    "shared_memory_block": 166912,
    "bandwidth": 2039040000000,
    "l2": 41943040,
    "clock": 1.41,
    "memory": 85100068864,
    "fpus": 64,
  },
  "h100": {
    "name": "NVIDIA H100 80GB HBM3",
    "capability": (9, 0, "ACCELERATED_FEATURES"),
    "cores": 132,
    "shared_memory": 233472,
    "shared_memory_block": 232448,
    "bandwidth": 3352320000000,
    "l2": 52428800,
    "clock": 1.98,
    "memory": 84942979072,
    "fpus": 128,
  },
}
CHIPS = (*TPUS, *GPUS)


@functools.cache
def device_sharding(chip: str) -> NamedSharding:
  """Returns the sharding that puts an array on one chip of that kind.

  Args:
    chip: one of CHIPS.

  Raises:
    ValueError: if there is no such chip.
  """
  if chip in TPUS:
    bounds = {"chips_per_host_bounds": (1, 1, 1)}
    topology = topologies.get_topology_desc(
      platform="tpu",
      topology_name=TPUS[chip],
      **(bounds if TPUS[chip].endswith(":1x1") else {}),
    )
  elif chip in GPUS:
    topology = topologies.get_topology_desc(
      platform="cuda",
      topology_name="",
      topology="1x1x1",
      target_config=_gpu_target(**GPUS[chip]),
    )
  else:
    raise ValueError(f"chip is {chip!r}; it must be one of {', '.join(CHIPS)}")
  return NamedSharding(
    Mesh(np.array(topology.devices[:1]), ("chip",)), PartitionSpec()
  )


def compile_for(
  chip: str, function: Callable, *arguments
) -> jax.stages.Compiled:
  """Compiles `function(*arguments)` for a chip.

  Args:
    chip: one of CHIPS.
    function: what to compile; it is jitted here.
    *arguments: trees of `jax.ShapeDtypeStruct` or arrays; only their shapes
      and dtypes are used.
  """
  sharding = device_sharding(chip)
  arguments = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    arguments,
  )
  # From jax 0.11.2 on, Triton kernels look for the device they are lowered for.
  with jax.sharding.use_abstract_mesh(sharding.mesh.abstract_mesh):
    return jax.jit(function).lower(*arguments).compile()


def _gpu_target(
  name,
  capability,
  cores,
  shared_memory,
  shared_memory_block,
  bandwidth,
  l2,
  clock,
  memory,
  fpus,
) -> str:
  """Returns a `stream_executor.GpuTargetConfigProto` in text form."""
  major, minor, extension = capability
  return f"""
gpu_device_info {{
  name: "{name}"
  cuda_compute_capability {{
    major: {major} minor: {minor} feature_extension: {extension}
  }}
  core_count: {cores}
  fpus_per_core: {fpus}
  clock_rate_ghz: {clock}
  memory_bandwidth: {bandwidth}
  device_memory_size: {memory}
  l2_cache_size: {l2}
  shared_memory_per_core: {shared_memory}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {shared_memory_block}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  runtime_version: "13.0.0"
  driver_version: "13.0.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 patch: 0 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{name}"
"""


if __name__ == "__main__":
  # What it imports needs the settings above.
  from tools import compile_report

  compile_report.run()
