"""The notebooks run top to bottom."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests import compiler_flags

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(ROOT.glob("colab/*.ipynb"))


def test_there_are_notebooks():
  assert NOTEBOOKS


# A kernel of its own, and a run in it.
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_clones_what_is_published(path, monkeypatch):
  """It has the address that `setup.py` has, and says so if there is none."""
  (url,) = re.findall(
    r'^URL = "(.*)"$', (ROOT / "setup.py").read_text(), re.MULTILINE
  )
  notebook = nbformat.read(path, as_version=4)
  install = next(c.source for c in notebook.cells if c.cell_type == "code")
  assert re.findall(r'"FOVEAL_URL", "(.*)"', install) == [url]
  cloned = []
  monkeypatch.delenv("FOVEAL_URL", raising=False)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  monkeypatch.setattr(subprocess, "run", lambda cmd, **_: cloned.append(cmd))
  monkeypatch.setattr(sys, "path", list(sys.path))
  if not url:
    with pytest.raises(SystemExit, match="Set url above"):
      exec(install, {})
    assert not cloned
  monkeypatch.setenv("FOVEAL_URL", "https://example.org/foveal")
  exec(install, {})
  assert cloned[0][-2:] == ["https://example.org/foveal", "foveal"]


# Runs a whole notebook.
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
  # A few steps are enough to see every cell work.
  monkeypatch.setenv("FOVEAL_TRAIN_FOR", "8 steps")
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  monkeypatch.setenv("XLA_FLAGS", compiler_flags.QUICK)
  notebook = nbformat.read(path, as_version=4)
  assert not any(cell.get("outputs") for cell in notebook.cells)
  client = NotebookClient(
    notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}
  )
  client.execute()
  pictures = [
    output
    for cell in notebook.cells
    for output in cell.get("outputs", [])
    if "image/png" in output.get("data", {})
  ]
  assert len(pictures) >= 3
