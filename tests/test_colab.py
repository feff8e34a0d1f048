"""The notebooks run top to bottom."""

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
