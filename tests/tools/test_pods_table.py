"""The table of pods is made of lines; what has one is not compiled again."""

import json

import pytest

from tools import pods_table

FITS = {
  "fits": True,
  "rows": 4096,
  "peak_bytes": 3 * 2**30,
  "bytes_per_chip": 3 * 2**30,
  "available_bytes": 16 * 2**30,
  "flops": 7.9e11,
  "bytes": 5.1e10,
  "estimated_seconds": 0.0488,
  "utilisation": 0.0821,
  "kernel_share": 0.025,
  "collectives": [
    {"bytes": 70_000_000, "conditional": False},
    {"bytes": 10**9, "conditional": True},
  ],
}


def test_lines_become_a_table(tmp_path, monkeypatch, capsys):
  asked = []

  def compiled(entry, topology):
    asked.append((entry.config, topology))
    if topology == "v5e-64":
      raise ValueError("no variant")
    if topology == "v4-32":
      return {**FITS, "fits": False, "bytes_per_chip": 40 * 2**30}
    if topology == "v6e-256":
      return {**FITS, "estimated_seconds": None}
    return FITS

  monkeypatch.setattr(pods_table, "compiled", compiled)
  lines = tmp_path / "pods.jsonl"
  options = [f"--lines={lines}", "--only=gpt2"]
  pods_table.main([*options, "--topologies=v5e-256"])
  names = ("v5e-256", "v5e-64", "v4-32", "v6e-256")
  pods_table.main([*options, f"--topologies={','.join(names)}"])
  assert asked == [("language:gpt2", name) for name in names]
  assert len(lines.read_text().splitlines()) == 3
  assert capsys.readouterr().err == "no variant\n"
  report = tmp_path / "pods.md"
  report.write_text("<!-- begin: pods -->\nold\n<!-- end: pods -->\n")
  pods_table.main([*options, "--nocompile", f"--report={report}"])
  lines = report.read_text().splitlines()
  rows = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in lines
    if line.startswith("|")
  ]
  assert len({len(row) for row in rows}) == 1
  cells = {tuple(row[:2]): row[2:] for row in rows}
  fits = cells["language:gpt2", "v5e-256"]
  assert fits[:4] == ["4096", "yes", "3.00", "16.00"]
  assert fits[4:] == ["0.79", "51", "48.8", "8%", "2.5%", "70 MB", "0"]
  assert cells["language:gpt2", "v4-32"][1:3] == ["no", "40.00"]
  assert cells["language:gpt2", "v6e-256"][6] == "unknown"
  (text,) = (
    line for line in lines if line.startswith("Not compiled for v5e-2")
  )
  assert "maxvit:tiny_224" in text
  assert "gpt2" not in text


def test_a_failure_is_not_a_line(tmp_path, monkeypatch):
  entry = pods_table.Entry("language:nothing")
  done = pods_table.subprocess.CompletedProcess([], 1, "", "no variant")
  monkeypatch.setattr(pods_table.subprocess, "run", lambda *_, **__: done)
  with pytest.raises(ValueError, match="no variant"):
    pods_table.compiled(entry, "v5e-256")
  done.returncode, done.stdout = 0, "some line\n" + json.dumps(FITS)
  assert pods_table.compiled(entry, "v5e-256") == FITS
