"""What the tests of whole runs share: small configs, and how runs compare."""

import json
import pathlib
from pydoc_data import topics

import jax
import numpy as np
import pytest

from configs import digits, language

LANGUAGE_TEXT = "\n\n".join(topics.topics.values())[:40_000]
# Of every task: what the loop promises does not depend on what is trained.
CONFIGS = {
  "digits": lambda: digits.get_config("tiny"),
  "language": lambda: language.get_config("test"),
}
of_every_task = pytest.mark.parametrize("job", CONFIGS, scope="module")


def make_config(job, data_dir):
  config = CONFIGS[job]()
  config.data.data_dir = data_dir
  if job == "language":
    # Little text, so that evaluations are short.
    path = pathlib.Path(data_dir) / "text.txt"
    path.write_text(LANGUAGE_TEXT)
    config.data.files = str(path)
  return config


def read_rows(workdir):
  with open(f"{workdir}/metrics.jsonl") as file:
    return [json.loads(line) for line in file]


def assert_same_state(a, b):
  """Equal to the last bit, random key and statistics included."""
  a, b = (
    jax.tree.map(
      lambda x: np.asarray(
        jax.random.key_data(x)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        else x
      ),
      state,
    )
    for state in (a, b)
  )
  jax.tree.map(np.testing.assert_array_equal, a, b)


def strip_rates(rows):
  return [
    {k: v for k, v in row.items() if not k.endswith("_per_second")}
    for row in rows
  ]
