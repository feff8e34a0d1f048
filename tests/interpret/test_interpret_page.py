"""What docs/interpret.md says is run, and has the names that there are."""

import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import interpret
from interpret import plots
from models import tap_errors

PAGE = (Path(__file__).parents[2] / "docs" / "interpret.md").read_text()


def test_names_of_transformer_lens_are_answered_by_ours():
  """Those of the table, which a model of transformers was held against."""
  rows = re.findall(r"^\| (`(?:blocks|ln_final)\..*)$", PAGE, re.MULTILINE)
  answered = 0
  for row in rows:
    theirs, ours = (
      re.findall(r"`([A-Za-z_.0-9/]+)`", cell) for cell in row.split("|")[:2]
    )
    stem = theirs[0].rpartition("hook_")[0]
    for name in theirs:
      name = name if "." in name else stem + name
      found = tap_errors.from_transformer_lens(name.replace(".i.", ".3."))
      if not ours or ours[0] == "logit_attribution":
        assert found is None, name
        continue
      expected = {tap.replace("_i/", "_3/") for tap in ours}
      assert found in expected, name
      answered += 1
  assert answered >= 15
  error = tap_errors.unknown("tap", "blocks.0.attn.hook_pattern", [])
  assert "it is 'layer_0/mixer/attention_weights'" in str(error)


# The analyses of the page, each of which compiles a model.
@pytest.mark.slow
def test_the_examples_run_and_the_table_has_the_names(monkeypatch):
  drawn = []
  for name in ("grid", "logit_lens", "rollout", "head_maps"):
    draw = getattr(plots, name)

    def keep(*args, draw=draw, **options):
      drawn.append(draw(*args, **options))
      return drawn[-1]

    monkeypatch.setattr(plots, name, keep)
  code = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
  assert len(code) > 10
  names = {}
  for i, part in enumerate(code):
    exec(compile(part, f"docs/interpret.md, example {i}", "exec"), names)
  assert len(drawn) >= 5
  assert all(isinstance(figure, Figure) for figure in drawn)
  assert names["rows"] != names["decoding"].generate(
    names["model"], names["variables"], names["prompts"], max_tokens=5
  )
  assert abs(float(names["slope"])) > 1e-6
  known = interpret.list_taps(
    *(names[name] for name in ("model", "variables", "tokens"))
  )
  rows = re.findall(
    r"^\| `?(?:blocks|ln_final|hook|the).*$", PAGE, re.MULTILINE
  )
  listed = {
    name.replace("layer_i", "layer_0")
    for row in rows
    for name in re.findall(r"`([a-z_i0-9/]+)`", row.split("|")[2].split(":")[0])
  }
  of_one_layer = {name for name in known if not re.match(r"layer_[1-9]", name)}
  assert listed == of_one_layer
