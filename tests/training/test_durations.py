import pytest

from training import durations

CLOCK = durations.Clock(100, 32, total_steps=200)


@pytest.mark.parametrize(
  ("text", "steps"),
  [
    ("7 steps", 7),
    ("1 step", 1),
    ("10_000 steps", 10_000),
    ("3 epochs", 9),  # 300 examples are 9.375 batches of 32.
    ("0.1 epochs", 1),  # Never rounded down to nothing.
    ("0 epochs", 0),
    ("5 percent", 10),
    ("64 examples", 2),
    ("2.5epochs", 8),
  ],
)
def test_converts_each_unit(text, steps):
  assert CLOCK.steps(text) == steps


@pytest.mark.parametrize("text", ["", "5", "epochs", "5 parsecs", "-1 steps"])
def test_what_is_no_duration_is_an_error_with_the_field(text):
  with pytest.raises(ValueError, match=r"train_for=.*30 epochs"):
    CLOCK.steps(text, "train_for")


def test_what_32_bits_cannot_count_is_an_error():
  assert CLOCK.steps("2_147_483_647 steps") == 2**31 - 1
  for text in ("2_147_483_648 steps", "9" * 400 + " epochs"):
    with pytest.raises(ValueError, match=r"train_for=.*more than 2147483647"):
      CLOCK.steps(text, "train_for")


def test_a_share_of_no_steps_is_none():
  clock = durations.Clock(100, 32, total_steps=0)
  assert clock.steps("5 percent") == 0
  assert clock.steps("1 epochs") == 3


def test_percent_needs_the_total():
  with pytest.raises(ValueError, match="percent of the whole run"):
    durations.Clock(100, 32).steps("5 percent")


def test_is_due_each_period_and_at_the_end():
  due = [s for s in range(1, 11) if durations.is_due(s, 4, 10)]
  assert due == [4, 8, 10]
  assert [s for s in range(1, 11) if durations.is_due(s, 0, 10)] == [10]
