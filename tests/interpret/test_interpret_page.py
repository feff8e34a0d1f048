"""What docs/interpret.md says is run, and has the names that there are."""

import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import interpret
from interpret import plots

PAGE = (Path(__file__).parents[2] / "docs" / "interpret.md").read_text()


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
