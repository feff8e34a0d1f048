"""Steps of configs are compiled for pods, and what they need is said."""

import json

import pytest

from configs import (
  diffusion,
  digits,
  language,
  lina,
  masked_diffusion,
  vision_language,
)

pytestmark = [
  pytest.mark.compile,
  # Without a chip JAX cannot read what an earlier run kept, and says so.
  pytest.mark.filterwarnings("ignore:Error reading persistent compilation"),
]
pytest.importorskip("libtpu")

# compile_only sets what libtpu reads when it is loaded, which is not yet.
from tools import (  # noqa: E402
  absent_data,
  compile_only,  # noqa: F401, for what it sets
  compile_report,
  compiled_steps,
  topologies,
)

# What others rely on, see docs/pods.md.
KEYS = (
  *("fits", "bytes_per_chip", "peak_bytes", "flops", "collectives"),
  "kernel_share",
)


def test_a_training_step_on_a_pod():
  config = language.get_config("test")
  config.dtype = "bfloat16"
  config.mesh.fsdp, config.mesh.model = 2, 2
  row = json.loads(json.dumps(compile_report.report(config, "v5e-8")))
  assert row["fits"]
  assert row["step"] == "train"
  assert (row["chips"], row["chip"]) == (8, "v5e")
  assert row["mesh"] == {"data": 2, "fsdp": 2, "model": 2}
  assert row["bytes_per_chip"] >= row["argument_bytes"] > 0
  assert 0 < row["peak_bytes"] < row["available_bytes"]
  assert 0 < row["kernel_share"] < 1
  assert any("flash" in kernel["name"] for kernel in row["kernels"])
  kinds = {(c["kind"], c["axis"]) for c in row["collectives"]}
  assert ("all-reduce", "model") in kinds
  assert any("data" in axis for _, axis in kinds)
  text = compile_report.describe(row)
  assert "transformer, train step, 8 rows on v5e:2x4: 8 chips v5e" in text
  assert "fits: at most" in text
  assert "kernel flash_forward: 2 x" in text


def test_what_does_not_fit_says_what_would():
  config = language.get_config("test")
  config.batch_size = 2**21
  row = compile_report.report(config, "v5e-4", fit=False)
  assert set(KEYS) <= row.keys()
  assert not row["fits"]
  assert row["flops"] is None
  assert row["bytes_per_chip"] > row["available_bytes"] > 2**33
  assert "would_fit" not in row
  text = compile_report.describe({**row, "would_fit": []})
  assert "DOES NOT FIT: needs" in text
  assert "nothing that was tried" in text


def test_decoding_and_evaluation():
  config = language.get_config("test")
  config.eval_batch_size = 5
  row = compile_report.report(config, "v5e-4", step="decode")
  assert row["fits"]
  assert row["rows"] == 8
  assert any("eval_batch_size=5" in note for note in row["notes"])
  # The key and value of each layer, of all tokens of two rows.
  assert row["argument_bytes"] > 2 * 2 * 2 * 32 * 32 * 4
  row = compile_report.report(config, "v5e-4", step="eval")
  assert row["fits"]
  assert "decode" not in row["step"]


# A generator's decoder is compiled for it.
@pytest.mark.slow
def test_a_step_of_a_generator_and_of_a_chip_without_a_clock():
  config = lina.get_config("test")
  row = compile_report.report(config, "v6e-4", step="decode")
  assert row["estimated_seconds"] is None
  assert row["kernel_share"] is None
  assert any("linear_attention" in k["name"] for k in row["kernels"])
  assert "time: unknown" in compile_report.describe(row)


def lowered(config):
  devices = topologies.devices("v5e-4")
  info = absent_data.info(config)
  return compiled_steps.STEPS["decode"](config, devices, info)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_a_step_of_sampling_has_both_halves_of_guidance(guidance):
  config = diffusion.get_config("test")
  config.eval_batch_size = 12
  config.sampling.guidance = guidance
  text = lowered(config).program.as_text()
  sample = "x".join(map(str, absent_data.info(config).image_shape))
  assert f"tensor<12x{sample}xf32>" in text
  assert (f"tensor<24x{sample}xf32>" in text) == (guidance != 1)


def test_a_cache_has_room_for_an_image_before_the_text():
  config = vision_language.get_config("digits_grid")
  made = lowered(config)
  # In the program keys are [rows of a chip, tokens, heads, dim], of which the
  # image's are 16.
  tokens = 16 + len(absent_data.info(config).arrays["tokens"])
  assert f"tensor<100x{tokens}x" in made.program.as_text()


def test_a_masked_diffusion_model_fills_whole_rows():
  config = masked_diffusion.get_config("test")
  length = len(absent_data.info(config).arrays["tokens"])
  assert f"tensor<{config.eval_batch_size}x{length}xi32>" in (
    lowered(config).program.as_text()
  )


def test_what_there_is_not_is_refused():
  with pytest.raises(ValueError, match="decode"):
    compile_report.report(digits.get_config("tiny"), "v5e-4", step="decode")
  for name in ("v9-4", "v5e:3x7"):
    with pytest.raises(ValueError, match=name):
      topologies.devices(name)


def test_names_of_slices():
  sizes = {"v4-32": 16, "v5e-64": 64, "v5e-256": 256, "v5p-64": 32}
  sizes["v6e-256"] = 256
  assert topologies.resolve("v5litepod-256") == "v5e:16x16"
  for name, size in sizes.items():
    found = topologies.devices(name)
    assert len(found) == size
    assert topologies.CHIPS[found[0].device_kind].name == name.split("-")[0]
  with pytest.raises(ValueError, match="num_slices=0"):
    topologies.devices("v5e-4", num_slices=0)
  two = topologies.devices("v5e-4", num_slices=2)
  assert [device.slice_index for device in two] == [0] * 4 + [1] * 4
