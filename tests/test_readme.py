"""What the README shows must be true of this tree."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", ["train", "test"])
def test_ci_finds_both_commands(name):
  assert f"<!-- command: {name} -->\n```bash\n" in README


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(link):
  assert (ROOT / link).exists()


# Compiles a network of published width.
@pytest.mark.slow
def test_the_example_runs():
  (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
  # One block a stage shows as much as all of them.
  named = '"maxvit_tiny_224", num_classes=10'
  assert named in code
  names = {}
  exec(code.replace(named, f"{named}, depths=(1, 1, 1, 1)"), names)
  assert names["logits"].shape == (2, 10)
  assert [m.shape[1] for m in names["pyramid"]] == [112, 56, 28, 14, 7]
