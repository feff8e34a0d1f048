"""What is read of programs that are compiled for chips that are not here."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tools import (
  collectives,
  hlo_text,
  operation_costs,
  program_report,
  topologies,
)

TEXT = """HloModule made_up, is_scheduled=true

%body (p: (s32[], f32[10,300])) -> (s32[], f32[10,300]) {
  %p = (COUNT, ARRAY) parameter(0)
  %i = COUNT get-tuple-element(%p), index=0
  %x = ARRAY get-tuple-element(%p), index=1
  %y = f32[10,300]{1,0:T(8,128)S(1)} negate(%x), CYCLES 700
  %sum = ARRAY all-reduce(%y), channel_id=1, GROUPS
  ROOT %next = (COUNT, ARRAY) tuple(%i, %sum)
}

%ends (p.1: (s32[], f32[10,300])) -> pred[] {
  %p.1 = (COUNT, ARRAY) parameter(0)
  %n = COUNT constant(LIMIT)
  %i.1 = COUNT get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %n), direction=LT
}

%cheap (p.2: f32[10,300]) -> f32[10,300] {
  %p.2 = ARRAY parameter(0)
  ROOT %c = ARRAY negate(%p.2), CYCLES 10
}

%dear (p.3: f32[10,300]) -> f32[10,300] {
  %p.3 = ARRAY parameter(0)
  %s = ARRAY sort(%p.3), dimensions={0}
  ROOT %d = ARRAY negate(%s), CYCLES 20
}

ENTRY %main (a: f32[10,300], which: pred[]) -> f32[10,300] {
  %a = ARRAY parameter(0)
  %which = pred[]{:T(512)} parameter(1)
  %zero = COUNT constant(0)
  %start = COUNT copy(%zero)
  %given = (COUNT, ARRAY) tuple(%start, %a)
  %loop = (COUNT, ARRAY) while(%given), condition=%ends, body=%body
  %b = ARRAY get-tuple-element(%loop), index=1
  %endless = ARRAY negate(%b), CYCLES 9223372036854775807
  ROOT %r = ARRAY conditional(%which, %b, %endless), BRANCHES
}
"""
SHORT = {
  "ARRAY": "f32[10,300]{1,0:T(8,128)}",
  "COUNT": "s32[]{:T(128)}",
  "GROUPS": "replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add",
  "BRANCHES": "branch_computations={%cheap, %dear}",
}
for short, long in SHORT.items():
  TEXT = TEXT.replace(short, long)
TEXT = re.sub(r"CYCLES (\d+)", r'"estimated_cycles":"\1"', TEXT)
V5E = topologies.CHIPS["TPU v5 lite"]


def report(text, **options):
  options = {"counted": {}, "memory": None, "axes": {}, "chip": V5E, **options}
  return program_report.of_text(text, **options)


def test_loops_are_multiplied_and_of_a_condition_the_dearest_counts():
  found = report(TEXT.replace("LIMIT", "6"), axes={"data": 4, "model": 2})
  # 10 rows of 300 fill 2 x 3 tiles of 8 x 128.
  size = 16 * 384 * 4
  assert found.cycles == 6 * 700 + 20
  assert found.seconds == found.cycles / 1.5e9
  # Five turns more than XLA counts, each of two operations and a comparison.
  assert found.bytes == 5 * (2 * 2 * size + 3 * 512)
  assert found.collectives == [
    program_report.Collective("all-reduce", "data", 6, 6 * size, False)
  ]
  assert found.unknown == [
    "6 x collective, 0.1 MB",
    "1 x negate, 0.0 MB",
    "1 x sort, 0.0 MB",
  ]
  assert found.kernel_share == 0


def test_unknown_turns_and_chips_are_said():
  text = TEXT.replace("constant(LIMIT)", "multiply(%i.1, %i.1)")
  found = report(text)
  assert found.cycles == 720
  assert found.unknown[-1].startswith("1 x loop of unknown turns")
  assert report(text, chip=topologies.CHIPS["TPU v6 lite"]).seconds is None
  bare = report(text.replace("estimated_cycles", "other"))
  assert bare.cycles is bare.seconds is None


def test_arrays_have_the_size_of_their_tiles():
  found = hlo_text.arrays(
    "(bf16[16,56,64]{0,2,1:T(8,128)(2,1)S(1)}, pred[5], s4[64]{0:T(128)})"
  )
  assert [array.bytes for array in found] == [56 * 64 * 128 * 2, 5, 64]
  assert [array.in_hbm for array in found] == [False, True, True]


# Of an image of 10: sizes, padding, strides and zeros between numbers.
@pytest.mark.parametrize(
  "window",
  [
    {"size": 3, "pad": (1, 1)},
    {"size": 10, "pad": (9, 9), "image": 1},
    {"size": 3, "stride": 2, "pad": (0, 1)},
    {"size": 4, "pad": (2, 3), "lhs_dilate": 2},
    {"size": 3, "pad": (-1, 4), "rhs_dilate": 3},
  ],
  ids=str,
)
def test_products_with_padding_are_not_counted(window):
  size, image = window.get("size"), window.get("image", 10)
  low, high = window["pad"]
  stride, spread, step = (
    window.get(name, 1) for name in ("stride", "lhs_dilate", "rhs_dilate")
  )
  padded = np.zeros((image - 1) * spread + 1)
  padded[::spread] = 1
  padded = np.pad(padded, (max(low, 0), high))[max(-low, 0) :]
  starts = range(0, len(padded) - (size - 1) * step, stride)
  wanted = sum(padded[i + step * j] for i in starts for j in range(size))
  text = (
    f"window={{size=1x{size} stride=1x{stride} pad=0_0x{low}_{high} "
    f"lhs_dilate=1x{spread} rhs_dilate=1x{step}}}, dim_labels=b01f_01io->b01f"
  )

  def array(name, shape, opcode="parameter", operands=(), rest=""):
    result = f"f32[{','.join(map(str, shape))}]"
    return hlo_text.Instruction(name, result, opcode, operands, rest)

  out = array("o", (2, 7, len(starts), 5), "convolution", ("x", "k"), text)
  given = {
    "x": array("x", (2, 7, image, 3)),
    "k": array("k", (1, size, 3, 5)),
  }
  found = operation_costs.flops(
    out, hlo_text.Computation("c", given, "o"), None
  )
  assert found == 2 * 2 * 7 * 3 * 5 * wanted


@pytest.mark.parametrize(
  ("groups", "axis"),
  [
    ("replica_groups=[4,2]<=[8]", "model"),
    ("replica_groups=[2,4]<=[2,2,2]T(1,0,2)", "data+model"),
    ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", "data"),
    ("replica_groups={}", "data+fsdp+model"),
    ("replica_groups=mesh['a'=4,'b'=2] {'b'}", "model"),
    ("replica_groups=mesh['a'=8] {'a':(2)2}", "fsdp"),
    ("replica_groups={{0,1,2},{4,5,6}}", "part of fsdp+model"),
    ("source_target_pairs={{0,2},{2,0},{1,3},{3,1}}", "fsdp"),
  ],
)
def test_collectives_are_named_after_axes(groups, axis):
  instruction = hlo_text.Instruction("x", "f32[]", "all-reduce", (), groups)
  mesh = {"data": 2, "fsdp": 2, "model": 2}
  assert collectives.axis(instruction, mesh) == axis


SLICES = """HloModule made_up, is_scheduled=true

ENTRY %main (a: f32[10,300]) -> f32[10,300] {
  %a = ARRAY parameter(0)
  %none = token[] after-all()
  %send = (ARRAY, u32[], token[]) send(%a, %none), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-reduce_0",_xla_megascale_reduce_operation="SUM",_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (ARRAY, u32[], token[]) recv(%none), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %sent = token[] send-done(%send), channel_id=4
  %came = (ARRAY, token[]) recv-done(%recv), channel_id=3
  ROOT %r = ARRAY get-tuple-element(%came), index=0
}
"""  # noqa: E501, as libtpu writes it for two slices.


def test_what_goes_between_slices_is_a_collective_over_them():
  text = SLICES.replace("ARRAY", SHORT["ARRAY"])
  found = report(text, axes={"slice": 2, "data": 4})
  assert found.collectives == [
    program_report.Collective("all-reduce", "slice", 1, 16 * 384 * 4, False)
  ]
  assert found.unknown == ["1 x collective, 0.0 MB"]


@pytest.mark.compile
def test_a_program_for_a_pod():
  pytest.importorskip("libtpu")
  from tools import compile_only  # noqa: F401, it sets what libtpu reads.

  devices = topologies.devices("v5e-4")
  mesh = jax.sharding.Mesh(
    np.array(devices).reshape(2, 2), ("data", "model"), (AxisType.Auto,) * 2
  )
  place = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))

  def scale(x):
    call = pl.pallas_call(
      lambda x, y: y.__setitem__(..., x[...] * 2),
      out_shape=jax.ShapeDtypeStruct((128, 512), x.dtype),
      cost_estimate=pl.CostEstimate(
        flops=10**6, bytes_accessed=10**4, transcendentals=0
      ),
      name="twice",
    )
    return jax.shard_map(
      call,
      in_specs=PartitionSpec("data"),
      out_specs=PartitionSpec("data"),
      check_vma=False,
    )(x)

  @functools.partial(jax.jit, static_argnums=2)
  def layers(x, weights, turns):
    def layer(x, _):
      return scale(jnp.tanh(x @ weights[0]) @ weights[1]), None

    return jax.lax.scan(layer, x, None, length=turns)[0]

  x = jax.ShapeDtypeStruct((256, 512), jnp.bfloat16, sharding=place("data"))
  weights = [
    jax.ShapeDtypeStruct((512, 512), jnp.bfloat16, sharding=place(*axes))
    for axes in ((None, "model"), ("model", None))
  ]
  with jax.set_mesh(mesh):
    found = [
      program_report.read(layers.lower(x, weights, n).compile()) for n in (3, 6)
    ]
  products = 2 * 2 * 128 * 512 * 256
  for n, each in zip((3, 6), found, strict=True):
    assert each.flops == pytest.approx(n * (products + 10**6), rel=0.02)
    (kernel,) = each.kernels
    assert kernel[:4] == ("twice", n, n * 10**6, n * 10**4)
    summed = [c for c in each.collectives if c.kind == "all-reduce"]
    assert [(c.axis, c.count) for c in summed] == [("model", n)]
    assert 0 < each.kernel_share < 1
    assert each.argument_bytes >= 2 * (128 * 512 + 2 * 512 * 256)
  # But for what is before and after the loop.
  assert found[1].seconds == pytest.approx(2 * found[0].seconds, rel=0.2)
  assert found[1].bytes == pytest.approx(2 * found[0].bytes, rel=0.2)


class Unprintable:
  """A program that jaxlib cannot print, as of a newer libtpu."""

  input_shardings = ()

  def cost_analysis(self):
    return {"flops": 12.0, "bytes accessed": 34.0}

  def memory_analysis(self):
    return types.SimpleNamespace(
      argument_size_in_bytes=5, temp_size_in_bytes=6, peak_memory_in_bytes=7
    )

  def as_text(self):
    raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure\n at")


def test_of_a_program_that_cannot_be_printed_the_rest_is_known():
  report = program_report.read(Unprintable())
  assert (report.flops, report.bytes) == (12, 34)
  sizes = report.argument_bytes, report.temporary_bytes, report.peak_bytes
  assert sizes == (5, 6, 7)
  assert report.seconds is report.kernels is report.collectives is None
  (unknown,) = report.unknown
  assert unknown.endswith("(INTERNAL: RET_CHECK failure)")


# Of v5p: rows are gathered beside the rest, by a core of its own.
GATHERED = """HloModule jit_step

%beside (p: f32[50,768], i: s32[16]) -> f32[16,768] {
  %p = f32[50,768]{1,0:T(8,128)} parameter(0)
  %i = s32[16]{0:T(128)} parameter(1)
  ROOT %g = f32[16,768]{1,0:T(8,128)} custom-call(%p, %i), \
custom_call_target="gathers"
}, execution_thread="sparsecore"

ENTRY %main (a: f32[50,768], b: s32[16]) -> f32[16,768] {
  %a = f32[50,768]{1,0:T(8,128)} parameter(0)
  %b = s32[16]{0:T(128)} parameter(1)
  %s = ((), (), s32[]) async-start(), async_execution_thread="sparsecore", \
calls=%beside
  %u = ((), f32[16,768]{1,0:T(8,128)}, s32[]) async-update(%s, %a, %b)
  %d = f32[16,768]{1,0:T(8,128)} async-done(%u)
  ROOT %r = f32[16,768]{1,0:T(8,128)} negate(%d), "estimated_cycles":"70"
}
""".replace("\\\n", "")


def test_what_jaxlib_cannot_print_is_read_from_what_the_compiler_wrote(
  tmp_path,
):
  (tmp_path / "module_0000.jit_step.after_codegen.txt").write_text(GATHERED)
  (tmp_path / "module_0000.jit_step.before_optimizations.txt").write_text("-")
  found = program_report.read(Unprintable(), dump=str(tmp_path))
  assert (found.flops, found.cycles) == (12, 70)
  assert found.unknown == ["1 x custom call gathers, 0.0 MB"]
  assert found.kernels == found.collectives == []


def test_programs_are_written_for_chips_that_need_it():
  assert program_report.dumping("TPU v5 lite", "a") == {}
  for kind in ("TPU v5", "TPU v6 lite"):
    assert program_report.dumping(kind, "a")["xla_dump_to"] == "a"


def test_a_program_of_the_cache_has_written_nothing(tmp_path):
  found = program_report.read(Unprintable(), dump=str(tmp_path))
  assert found.cycles is None
  assert "cannot be read" in found.unknown[0]
