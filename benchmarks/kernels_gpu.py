"""Our kernels on one GPU against the XLA reference, JAX's own and PyTorch's.

  python -m benchmarks.kernels_gpu [--json] [--families=window,flash]

Needs a machine with an NVIDIA GPU and jax[cuda]; PyTorch with CUDA is compared
where it is installed. Prints a row for each kernel, shape and pass: times of a
call, ratios (above one: ours is faster) and the share of the roofline, which is
the larger of the useful operations at the peak of bfloat16 and of the bytes
that must move at the peak of the memory.

`--smoke` runs tiny shapes in Pallas's interpreter, without a GPU, to prove that
the script works; its times mean nothing.
"""

import os

# PyTorch needs memory beside us.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks import flag_checks, gpu_cases, torch_peers
from benchmarks.gpu_cases import Case

FAMILIES = ["window", "flash", "halo", "linear"]
PASSES = ["forward", "forward_backward"]

_FAMILIES = flag_checks.define_names(
  "families", FAMILIES, FAMILIES, "Kernels to time."
)
_KERNELS = flags.DEFINE_list("kernels", [], "Which of them; all if empty.")
_PASSES = flag_checks.define_names("passes", PASSES, PASSES, "What to time.")
_ROUNDS = flags.DEFINE_integer(
  "rounds", 7, "Measurements of each.", lower_bound=1
)
_SECONDS = flags.DEFINE_float("seconds", 0.05, "Least time of a measurement.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object a row.")
_SMOKE = flags.DEFINE_bool("smoke", False, "Tiny shapes, interpreted.")

# Peak of dense bfloat16 in FLOP/s and of memory in bytes/s, from data sheets.
PEAKS = {
  "A100": (312e12, 2.039e12),
  "H100": (989e12, 3.352e12),
  "H200": (989e12, 4.8e12),
  "B200": (2250e12, 7.7e12),
}
# Operations of the backward pass of attention for each of the forward pass.
BACKWARD_FLOPS = 2.5
# Sets of inputs that calls take in turn, so that none is in a cache.
INPUTS = 2


def main(argv: Sequence[str]) -> None:
  """Prints a row for each case and pass."""
  del argv
  if not _SMOKE.value and jax.default_backend() != "gpu":
    raise SystemExit(
      "benchmarks.kernels_gpu needs an NVIDIA GPU and jax[cuda], and JAX runs "
      f"on {jax.default_backend()!r}; --smoke proves the script without one"
    )
  torch = None if _SMOKE.value else torch_peers.import_torch()
  cases = gpu_cases.cases(_SMOKE.value)
  known = list(dict.fromkeys(case.kernel for case in cases))
  for kernel in _KERNELS.value:
    if kernel not in known:
      raise SystemExit(f"kernels={kernel!r} must be of {', '.join(known)}")
  for case in cases:
    wanted = not _KERNELS.value or case.kernel in _KERNELS.value
    if wanted and case.family in _FAMILIES.value:
      for which in _PASSES.value:
        row = measure(case, which, torch)
        print(json.dumps(row) if _JSON.value else describe(row), flush=True)


def measure(case: Case, which: str, torch) -> dict:
  """Times one pass of a case, its reference and its peers."""
  notes = {}
  implementation = "gpu_interpret" if _SMOKE.value else "pallas"
  times = {
    "ours": functools.partial(case.call, implementation),
    "reference": functools.partial(case.call, "xla"),
    **case.peers,
  }
  for name, function in times.items():
    times[name] = _attempt(notes, name, _jax_time, case, which, function)
  if torch is not None:
    for name, (function, tensors) in torch_peers.peers(torch, case).items():
      times[name] = _attempt(
        notes, name, _torch_time, torch, which, function, tensors
      )
  ours, reference = times.pop("ours"), times.pop("reference")
  measured = {name: t for name, t in times.items() if t is not None}
  peer = min(measured, key=measured.get, default=None)
  flops, moved = work(case, which)
  floor = floor_seconds(flops, moved)
  return {
    "kernel": case.kernel,
    "family": case.family,
    "chip": "interpreter"
    if _SMOKE.value
    else jax.devices()[0].device_kind.removeprefix("NVIDIA "),
    "shape": case.shape,
    "pass": which,
    "ours_us": _microseconds(ours),
    "reference_us": _microseconds(reference),
    "floor_us": _microseconds(floor),
    "ratio_reference": _ratio(reference, ours),
    "ratio_floor": _ratio(floor, ours),
    "peer": peer,
    "ratio_peer": _ratio(measured.get(peer), ours),
    "peers_us": {name: _microseconds(t) for name, t in times.items()},
    "tflop_per_s": _ratio(flops / 1e12, ours),
    "gbyte_per_s": _ratio(moved / 1e9, ours),
    "notes": notes,
  }


def describe(row: dict) -> str:
  """One line for people."""
  parts = [
    f"{row['kernel']} {row['pass']}, {row['shape']}, {row['chip']}"
    + (f", floor {row['floor_us'] / 1e3:.3f} ms" if row["floor_us"] else "")
  ]
  if row["ours_us"] is not None:
    parts.append(
      f"{row['ours_us'] / 1e3:.3f} ms, {row['tflop_per_s']:.1f} TFLOP/s, "
      f"{row['gbyte_per_s']:.0f} GB/s"
    )
  if row["ratio_floor"] is not None:
    parts.append(f"{row['ratio_floor']:.0%} of the roofline")
  times = {"the XLA reference": row["reference_us"], **row["peers_us"]}
  for name, peer in times.items():
    if peer is not None:
      ratio = _ratio(peer, row["ours_us"])
      times_ours = "" if ratio is None else f" ({ratio:.2f} of ours)"
      parts.append(f"{name} {peer / 1e3:.3f} ms{times_ours}")
  parts += [f"{name} failed: {error}" for name, error in row["notes"].items()]
  return "; ".join(parts)


def work(case: Case, which: str) -> tuple[float, float]:
  """Returns the operations and bytes that a pass cannot do without."""
  if which == "forward":
    return case.flops, case.forward_bytes()
  return (
    case.flops * (1 + BACKWARD_FLOPS),
    case.forward_bytes() + case.backward_bytes(),
  )


def floor_seconds(flops: float, moved: float) -> float | None:
  """Returns the least time on this GPU, None for one that is not in PEAKS."""
  kind = jax.devices()[0].device_kind
  for name, (peak_flops, peak_bytes) in PEAKS.items():
    if name in kind:
      return max(flops / peak_flops, moved / peak_bytes)
  return None


def _jax_time(case: Case, which: str, function: Callable) -> float:
  def both(out_bar, *arrays):
    out, pull = jax.vjp(function, *arrays)
    return out, pull(out_bar)

  run = jax.jit(both if which == "forward_backward" else function)
  shapes = case.arrays
  if which == "forward_backward":
    shapes = (case.out(), *shapes)
  inputs = [
    [_draw(jax.random.key(seed), i, x) for i, x in enumerate(shapes)]
    for seed in range(INPUTS)
  ]
  return median_time(lambda i: run(*inputs[i]), jax.block_until_ready)


def _draw(key, number: int, x: jax.ShapeDtypeStruct):
  key = jax.random.fold_in(key, number)
  return jax.random.normal(key, x.shape, jnp.float32).astype(x.dtype)


def _torch_time(torch, which, function, tensors) -> float:
  def run(i):
    del i
    if which == "forward":
      with torch.inference_mode():
        return function(*tensors)
    out = function(*tensors)
    return torch.autograd.grad(out, tensors, torch.ones_like(out))

  return median_time(run, lambda _: torch.cuda.synchronize())


def median_time(run: Callable, wait: Callable) -> float:
  """Returns seconds a call: the median of rounds of calls without a pause."""
  for i in range(INPUTS):
    wait(run(i))
  started = time.perf_counter()
  wait(run(0))
  once = time.perf_counter() - started
  calls = max(1, min(1000, round(_SECONDS.value / once)))
  times = []
  for _ in range(_ROUNDS.value):
    started = time.perf_counter()
    for i in range(calls):
      last = run(i % INPUTS)
    wait(last)
    times.append((time.perf_counter() - started) / calls)
  return statistics.median(times)


def _attempt(notes: dict, name: str, function: Callable, *arguments):
  """Returns the time of a peer, or None with a note of why there is none."""
  try:
    return function(*arguments)
  # A peer may refuse shapes or run out of memory in its own way.
  except Exception as error:
    notes[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return None


def _microseconds(seconds: float | None) -> float | None:
  return None if seconds is None else seconds * 1e6


def _ratio(other: float | None, ours: float | None) -> float | None:
  return None if other is None or ours is None else other / ours


if __name__ == "__main__":
  app.run(main)
