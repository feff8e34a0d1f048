"""Pictures have what they are of in them."""

import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from interpret import plots

rng = np.random.default_rng(0)
TOKENS = ["a", " b", "\n", "$x$"]


def _drawn(figure):
  """The picture's pixels; whatever is in the figure has to be drawable."""
  file = io.BytesIO()
  figure.savefig(file, dpi=50)
  pixels = np.asarray(Image.open(file).convert("L"))
  assert len(np.unique(pixels)) > 20
  return pixels


def _texts(ticks):
  return [tick.get_text() for tick in ticks]


def test_maps_of_heads():
  weights = rng.dirichlet(np.ones(4), (5, 4))
  figure = plots.head_maps(weights, TOKENS, "layer 3, head {}")
  panels = figure.axes
  # Two rows of panels, of which the last ones are empty.
  assert [p.get_title() for p in panels] == [
    *(f"layer 3, head {i}" for i in range(5)),
    *[""] * 3,
  ]
  shown = panels[4].images[0].get_array()
  np.testing.assert_allclose(shown, np.sqrt(weights[4]))
  assert _texts(panels[0].get_xticklabels()) == ["a", "·b", "↵", r"\$x\$"]
  _drawn(figure)
  # Queries of a step of decoding have other names than keys.
  step = plots.head_maps(weights[:, :1], TOKENS)
  assert len(step.axes[0].get_xticks()) == 4


def test_a_grid_of_patches_has_zero_in_the_middle():
  values = np.array([[0.5, -2.0, np.nan], [0.0, 1.0, 0.1]])
  figure = plots.grid(values, ["x", "y", "z"], ["one", "two"], title="restored")
  panel = figure.axes[0]
  image = panel.images[0]
  np.testing.assert_array_equal(image.get_array(), values)
  assert image.get_clim() == (-2, 2)
  assert panel.get_title() == "restored"
  assert _texts(panel.get_yticklabels()) == ["one", "two"]
  _drawn(figure)
  assert plots.grid(np.zeros((2, 2))).axes[0].images[0].get_clim() == (-1, 1)


def test_a_lens():
  probabilities = rng.uniform(size=(3, 4))
  texts = [[f"{i}{j}" for j in range(4)] for i in range(3)]
  figure = plots.logit_lens(probabilities, texts, ["e", "0", "1"], TOKENS)
  panel = figure.axes[0]
  places = {t.get_text(): t.get_position() for t in panel.texts}
  assert len(places) == 12
  assert places["21"] == (1, 2)
  # The last layer is above the first.
  assert panel.get_ylim() == (-0.5, 2.5)
  _drawn(figure)


def test_a_rollout():
  shares = rng.dirichlet(np.ones(4), (3, 4))
  figure = plots.rollout(shares, TOKENS, query=2)
  np.testing.assert_allclose(figure.axes[0].images[0].get_array(), shares[:, 2])
  _drawn(figure)


def test_bars_of_an_attribution():
  parts = {
    "embedded_state": np.float32(0.5),
    "layer_0/mixer/head_outputs": np.array([3.0, -4.0, 0.1]),
    "head/bias": np.float32(-0.25),
  }
  figure = plots.attribution_bars(parts, count=3)
  panel = figure.axes[0]
  assert [bar.get_width() for bar in panel.patches] == pytest.approx(
    [-4, 3, 0.5, -0.15]
  )
  assert _texts(panel.get_yticklabels()) == [
    "layer_0/mixer/head_outputs/1",
    "layer_0/mixer/head_outputs/0",
    "embedded_state",
    "2 others",
  ]
  assert panel.get_title() == "sum -0.650"
  _drawn(figure)
  whole = plots.attribution_bars(parts)
  assert len(whole.axes[0].patches) == 5


def test_tokens_and_statistics():
  figure = plots.token_attribution(np.array([1.0, -2.0, 0, 3]), TOKENS, "why")
  panel = figure.axes[0]
  assert [bar.get_height() for bar in panel.patches] == [1, -2, 0, 3]
  assert panel.get_title() == "why"
  _drawn(figure)
  measures = {"entropy": rng.uniform(size=(3, 2)), "largest": np.arange(3.0)}
  figure = plots.statistics(measures, ["0", "1", "2"])
  np.testing.assert_array_equal(
    figure.axes[0].images[0].get_array(), measures["entropy"]
  )
  widths = [bar.get_width() for bar in figure.axes[1].patches]
  assert widths == [0, 1, 2]
  _drawn(figure)


def test_no_picture_needs_a_window(monkeypatch):
  monkeypatch.setattr(
    matplotlib, "use", lambda *_, **__: pytest.fail("a backend was chosen")
  )
  figure = plots.grid(np.eye(2))
  assert figure.canvas.manager is None


@pytest.mark.parametrize(
  ("call", "said"),
  [
    (lambda: plots.head_maps(np.eye(2)), r"weights has shape \(2, 2\)"),
    (lambda: plots.grid(np.eye(2), ["x"]), "1 texts for 2 places"),
    (
      lambda: plots.logit_lens(np.eye(2), [["a"], ["b"]], "xy"),
      r"texts are \(2, 1\)",
    ),
    (
      lambda: plots.attribution_bars({"mlp": np.eye(2)}),
      r"parts\['mlp'\] has shape \(2, 2\)",
    ),
    (
      lambda: plots.token_attribution(np.eye(2), TOKENS),
      r"it must be \[length\]",
    ),
    (
      lambda: plots.statistics({"entropy": np.zeros((1, 2, 3))}),
      "entropy has shape",
    ),
  ],
)
def test_errors(call, said):
  with pytest.raises(ValueError, match=said):
    call()
