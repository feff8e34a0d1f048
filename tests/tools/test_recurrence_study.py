"""The study of recurrence, attention and gates has the rows that it says."""

import numpy as np

from configs import forecasting
from tools.module_studies import recurrence_attention_gating as study


def test_rows_differ_in_what_they_say():
  configs = {
    name: study.make_config(options, 1, "full")
    for name, options in study.rows("full")
  }
  for name, config in configs.items():
    model = config.model
    assert ("GRU" in name) <= (model.get("cell") == "gru")
    assert ("RHN" in name) == (model.get("cell") == "rhn")
    assert ("attention" in name or "transformer" in name) == (
      model.get("attention", False)
    )
    assert ("gates" in name) == (model.get("cell_gate", "none") == "coupled")
    assert (config.seed, config.train_for) == (1, "3000 steps")
    windows = name in ("GRU, windows", "transformer")
    assert (config.data.order == "shuffled") == windows
    size = forecasting.parameters(model.to_dict(), 8, model.width)
    assert abs(size - 30_000) < 1500


def test_nothing_changes_without_training():
  name, options = study.rows("test")[0]
  found = study.measure(None, name, options, 0, "test")
  assert set(found) == {column for column, _ in study.COLUMNS}
  # In a twentieth of its time the ring moves by some tenths of its deviation.
  assert 0.05 < found["one_step"] < 0.6
  assert found["diverged"] == 0
  assert found["spectrum"] is None
  assert np.isfinite(found["valid_time"])
