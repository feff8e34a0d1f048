"""What would make a step fit is found by compiling little."""

import types

import jax
import pytest

from configs import digits, language
from tools import fitting


def found(config, size, step="train"):
  """Searches with `size(config)` bytes of 100; returns answers and tries."""
  tried = []

  def compile_step(changed):
    needed = size(changed)
    tried.append(needed)
    return types.SimpleNamespace(
      fits=needed <= 100,
      needed_bytes=needed,
      report=types.SimpleNamespace(peak_bytes=needed),
    )

  devices = jax.devices()[:4]
  answers = fitting.search(config, devices, step, compile_step)
  return [(a["change"], a["peak_bytes"]) for a in answers], len(tried)


def test_each_change_that_is_enough_is_found():
  config = digits.get_config("tiny")

  def size(config):
    rows = config.batch_size // 4
    return rows * (2 if config.model.remat else 20) + 60 // config.mesh.fsdp

  answers, tried = found(config, size)
  # Of 16 rows a chip; no sharing of 60 bytes helps against 320.
  assert answers == [({"model.remat": True}, 92), ({"batch_size": 8}, 100)]
  assert tried == 1 + 1 + 5


def test_the_least_sharing_and_the_most_rows_are_found():
  config = digits.get_config("tiny")
  answers, _ = found(
    config, lambda c: 5 * c.batch_size // 4 + 40 // c.mesh.fsdp
  )
  assert answers == [
    ({"mesh.data": 2, "mesh.fsdp": 2}, 100),
    ({"batch_size": 48}, 100),
  ]


def test_all_changes_together_if_one_is_not_enough():
  config = digits.get_config("tiny")

  def size(config):
    rows = config.batch_size // 4
    work = rows * (3 if config.model.remat else 20)
    return work + 340 // config.mesh.fsdp

  answers, _ = found(config, size)
  assert answers == [
    (
      {"model.remat": True, "mesh.data": 1, "mesh.fsdp": 4, "batch_size": 20},
      100,
    )
  ]
  assert found(config, lambda _: 101)[0] == []


def test_what_is_shared_already_is_not_tried_again():
  config = digits.get_config("tiny")
  config.mesh.data, config.mesh.fsdp = 1, -1
  # Remat, the fewest rows, and both.
  assert found(config, lambda _: 101) == ([], 3)
  config.mesh.fsdp, config.mesh.model = 2, -1
  assert found(config, lambda _: 101) == ([], 3)


def test_decoding_has_rows_but_no_remat():
  config = language.get_config("test")
  answers, _ = found(config, lambda c: c.eval_batch_size, "decode")
  # Of 64 rows a chip, 16 parts of 4.
  assert answers == [({"eval_batch_size": 96}, 96)]
  answers, tried = found(config, lambda c: 50 * c.eval_batch_size, "decode")
  assert answers == []
  assert tried == 3
  config.eval_batch_size = 2**20
  answers, tried = found(config, lambda c: c.eval_batch_size // 100, "decode")
  assert answers == [({"eval_batch_size": 2**13}, 81)]
  assert tried < 10


def test_batches_are_made_to_split():
  config = language.get_config("test")
  config.batch_size, config.accumulation_steps = 9, 2
  changed, notes = fitting.with_batches_that_split(config, jax.devices()[:4])
  assert (changed.batch_size, changed.eval_batch_size) == (16, 256)
  (note,) = notes
  assert "batch_size=9" in note
  assert "16" in note
  assert config.batch_size == 9
  config.mesh.model = 3
  with pytest.raises(ValueError, match="mesh="):
    fitting.with_batches_that_split(config, jax.devices()[:4])


def test_an_answer_can_be_typed():
  answer = {"change": {"mesh.fsdp": 4, "batch_size": 8}, "peak_bytes": 2**31}
  assert fitting.describe(answer) == (
    "--config.mesh.fsdp=4 --config.batch_size=8: at most 2.00 GiB a chip at "
    "once"
  )
