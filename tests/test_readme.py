"""What the README and the documents name must be in this tree."""

import functools
import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = {
  path.name: path.read_text()
  for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
}
PACKAGES = {path.parent.name for path in ROOT.glob("[!.]*/*.py")}
# Of another repository.
FOREIGN = {"models/vae.py"}
of_every_document = pytest.mark.parametrize("document", DOCUMENTS)


@functools.cache
def files():
  """The files of all packages, and those at the root, with a slash before."""
  found = [path for path in ROOT.iterdir() if path.is_file()]
  for name in (*PACKAGES, "colab"):
    found += (ROOT / name).rglob("*")
  return [f"/{path.relative_to(ROOT)}" for path in found]


@pytest.mark.parametrize("name", ["train", "test"])
def test_ci_finds_both_commands(name):
  assert f"<!-- command: {name} -->\n```bash\n" in README


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README))
def test_links_lead_somewhere(link):
  assert (ROOT / link).exists()


@of_every_document
def test_files_and_programs_that_are_named_are_there(document):
  text = DOCUMENTS[document]
  named = set(re.findall(r"`([\w/.-]+\.(?:py|ipynb|sh))`", text)) - FOREIGN
  for module in re.findall(r"-m ((?:tools|benchmarks)\.[\w.]+)", text):
    named.add(module.replace(".", "/") + ".py")
  assert not {
    name for name in named if not any(f.endswith(f"/{name}") for f in files())
  }


@of_every_document
def test_configs_that_are_named_are_there(document):
  named = r"[^/\w]configs/(\w+)\.py(?::([a-z0-9][\w-]*))?"
  for name, variant in set(re.findall(named, DOCUMENTS[document])):
    text = (ROOT / "configs" / f"{name}.py").read_text()
    # Some variants are made of parts; importing all configs takes long.
    parts = re.split("[_-]", variant)
    assert all(re.search(rf"(\b|_){p}(\b|_)", text) for p in parts), variant


@pytest.mark.parametrize("document", ["README.md", "architecture.md"])
def test_names_that_are_given_are_there(document):
  ours = "|".join(PACKAGES - {"tests"})
  pattern = rf"`((?:{ours})\.[\w.]*\w)(?<!\.py)[`(]"
  for name in set(re.findall(pattern, DOCUMENTS[document])):
    pkgutil.resolve_name(name)


def test_every_package_is_described():
  text = DOCUMENTS["architecture.md"]
  assert {name for name in PACKAGES if f"{name}/" not in text} == set()


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
