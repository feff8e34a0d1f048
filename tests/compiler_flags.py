"""XLA's flags for tests: they compile small models and run them a few times."""

from importlib import metadata


def _quick():
  """Returns flags with which compiling takes the least CPU seconds.

  Measured on the gradients of a MaxViT and a ResNet of the tests: without the
  fusion emitters compiling takes 43 % and 33 % of what it does with them, with
  one part for LLVM 35 % and 25 %. Running takes as long.
  """
  flags = [
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
  ]
  # Later versions have no other emitters, and end the process at a flag that
  # they do not know.
  if metadata.version("jax").startswith("0.10."):
    flags.append("--xla_cpu_use_fusion_emitters=false")
    # After 40 seconds that a device waits for others XLA ends the process,
    # which a machine with much else to do needs for a test of four devices.
    flags.append("--xla_cpu_collective_call_terminate_timeout_seconds=600")
  return " ".join(flags)


QUICK = _quick()
