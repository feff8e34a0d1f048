"""XLA's flags for tests, which compile small models and run them a few times.

Measured on the gradients of a MaxViT and a ResNet of the tests: without the
fusion emitters and with one part for LLVM, compiling takes 35 % and 23 % of the
CPU seconds, running as long as before; with LLVM's optimisation besides it
takes several times as many.
"""

QUICK = " ".join(
  [
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
  ]
)
