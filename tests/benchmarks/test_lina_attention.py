"""What the cost of LINA's attention is counted, compared and timed by."""

import pytest
from absl import flags

from benchmarks import lina_attention
from benchmarks.lina_attention import count, crossover, length

PARTS = ("projections", "attention", "convolution", "all")


def test_multiply_adds_are_the_published_ones():
  linear, softmax = count("linear"), count("softmax")
  for name in PARTS:
    # The authors count the denominators' sum over keys as no products.
    published = linear[f"{name}_published"]
    assert linear[f"{name}_G"] == pytest.approx(published, abs=0.013), name
  assert softmax["all_G"] == pytest.approx(softmax["all_published"], abs=0.01)
  assert softmax["convolution_G"] == 0


def test_multiply_adds_of_a_small_layer():
  tokens, width, heads = 20, 12, 2
  dim = width // heads
  row = count("linear", tokens, width, heads)
  counts = [round(row[f"{name}_G"] * 1e9) for name in PARTS]
  projections = 4 * tokens * width**2
  # The memory has a column for the denominator.
  attention = 2 * tokens * heads * dim * (dim + 1)
  convolution = 25 * 16 * width
  assert counts[:3] == [projections, attention, convolution]
  assert counts[3] == sum(counts[:3])


def test_crossover():
  # A ratio of sqrt(n / 100).
  ratios = {25: 0.5, 225: 1.5, 900: 3.0}
  assert crossover(ratios) == pytest.approx(100)
  assert crossover({225: 1.5, 900: 3.0}) == 225
  assert crossover({25: 0.5}) is None
  # It counts where linear attention stays faster.
  assert crossover({10: 1.5, **ratios}) == pytest.approx(100)


@pytest.mark.parametrize("text", ["320", "20", "5"])
def test_lengths_of_square_images(text):
  assert length(text) == int(text)


@pytest.mark.parametrize("text", ["321", "10", "0", "-20", "many"])
def test_other_lengths(text):
  with pytest.raises(ValueError, match=f"tokens='{text}' must be 5 times"):
    length(text)


@pytest.mark.parametrize("part", ["attention", "layer"])
def test_measures_here(part, monkeypatch):
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  monkeypatch.setattr(flags.FLAGS["seconds"], "value", 1e-3)
  monkeypatch.setattr(flags.FLAGS["rounds"], "value", 1)
  row = lina_attention.measure(part, 20, 16, 2)
  assert row["linear_us"] > 0
  assert row["ratio"] == pytest.approx(row["softmax_us"] / row["linear_us"])
