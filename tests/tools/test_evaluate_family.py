"""The table of a family: what is evaluated, noted and written."""

import dataclasses
import importlib
import json

import jax
import pytest
from etils import epath
from safetensors import numpy as safetensors

import experiment
from configs import digits
from eval import evaluate
from models import pretrained
from tools import evaluate_family, model_table, published, results_table


def _row(**fields):
  (row,) = (
    row
    for row in published.rows("maxvit")
    if row.weights == "timm:maxvit_tiny_tf_224.in1k"
  )
  return dataclasses.replace(row, **fields)


# Compiles and evaluates a network.
@pytest.mark.slow
def test_a_family_is_evaluated_and_noted(
  tmp_path_factory, tmp_path, monkeypatch
):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.getbasetemp()))
  config = digits.get_config("tiny")
  row = _row(config="digits", resolution=16, top1=50.0)
  missing = _row(config="tiny_224")
  monkeypatch.setattr(published, "rows", lambda family: [row, missing])
  monkeypatch.setattr(results_table, "FOLDER", epath.Path(tmp_path / "docs"))
  monkeypatch.setattr(
    model_table,
    "describe",
    lambda name, size: {"parameters": size * 10**6, "multiply-adds G": 1.0},
  )
  recipe = importlib.import_module("configs.maxvit")
  monkeypatch.setattr(recipe, "get_config", lambda variant: config)
  built = experiment.create(config)
  variables = jax.jit(built.task.init)(jax.random.key(0))
  tensors = pretrained.to_tensors(variables, built.task.model)
  safetensors.save_file(tensors, tmp_path / "digits.safetensors")

  evaluate_family.evaluate_rows("maxvit", str(tmp_path))
  (line,) = (tmp_path / "docs" / "maxvit.jsonl").read_text().splitlines()
  noted = json.loads(line)
  expected = evaluate(config, str(tmp_path / "digits.safetensors"))
  assert noted["top1"] == expected["accuracy"]
  assert noted["examples"] == 360
  results_table.write("maxvit")
  table = (tmp_path / "docs" / "maxvit.md").read_text().splitlines()
  first, second = ([c.strip() for c in t.split("|")] for t in table[-2:])
  top1 = 100 * expected["accuracy"]
  assert first[4:9] == [
    "16.00",
    "1.00",
    "50",
    f"{top1:.3f}",
    f"{top1 - 50:+.3f}",
  ]
  assert second[4:9] == ["224.00", "1.00", "83.426", "", ""]


def test_a_family_without_weights(tmp_path):
  with pytest.raises(ValueError, match="has weights for no row of maxvit"):
    evaluate_family.evaluate_rows("maxvit", str(tmp_path))
  with pytest.raises(ValueError, match="family is 'vit'"):
    evaluate_family.evaluate_rows("vit", "timm")


def test_errors_are_short(tmp_path):
  with pytest.raises(SystemExit, match=r"ValueError: weights='.*no row of"):
    evaluate_family.main(["maxvit", f"--weights={tmp_path}"])
