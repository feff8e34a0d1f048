"""The grid of models that forecast: sizes, and the sweep file."""

import pathlib

import jax
import pytest

import models
from configs import forecasting

SWEEP = pathlib.Path(forecasting.__file__).parent / "sweeps"
# Of each form that a number of parameters takes.
COUNTED = (
  "lstm",
  "gru_attention",
  "rhn_input_dependent",
  "gru_attention_learned_rate",
  "transformer_coupled",
  "recurrent_transformer_additive",
)


def test_the_grid_has_every_combination():
  assert len(forecasting.GRID) == 3 * 2 * 5 + 2 * 4
  fields = [tuple(sorted(x.items())) for x in forecasting.GRID.values()]
  assert len(set(fields)) == len(fields)


@pytest.mark.parametrize("system", forecasting.VARIANTS)
def test_all_rows_of_a_system_are_of_a_size(system):
  base = forecasting.get_config(system)
  sizes = {}
  for row in forecasting.GRID:
    config = forecasting.get_config(f"{system}-{row}")
    fields = config.model.to_dict()
    size = config.data.options.size
    sizes[row] = forecasting.parameters(fields, size, config.model.width)
    # A stateless model sees what it was trained on.
    assert config.model.window == config.data.length
    assert config.data.trajectories % config.batch_size == 0
  middle = (max(sizes.values()) + min(sizes.values())) / 2
  assert max(sizes.values()) <= 1.05 * middle
  assert base.model.cell == "gru"


@pytest.mark.parametrize("row", COUNTED)
def test_parameters_are_counted_right(row):
  config = forecasting.get_config(f"lorenz96_small-{row}")
  fields = config.model.to_dict()
  expected = forecasting.parameters(fields, 8, config.model.width)
  model = models.create(fields.pop("name"), size=8, **fields)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), **model.example_inputs())
  )
  assert sum(x.size for x in jax.tree.leaves(shapes)) == expected


def test_the_sweep_is_the_grid():
  lines = (SWEEP / "forecasting_grid.txt").read_text().splitlines()
  assert [line for line in lines if not line.startswith("#")] == [
    f"--config=configs/forecasting.py:lorenz96-{row} "
    f"--workdir=runs/lorenz96/{row}"
    for row in forecasting.GRID
  ]


def test_variants_that_are_not_there():
  with pytest.raises(ValueError, match="has no variant 'lorenz'"):
    forecasting.get_config("lorenz")
  with pytest.raises(ValueError, match="has no variant 'lstm_open'"):
    forecasting.get_config("lorenz96-lstm_open")
