"""What docs/attention.md and docs/own_mechanism.md say is run, and is so."""

import inspect
import re
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from attention import (
  finishes,
  linear_normalizers,
  masks,
  normalizers,
  scales,
  scores,
  trees,
)
from models import token_mixers
from tests import paper_formulas
from tools import render_attention

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "attention.md").read_text()
PICTURES = render_attention.picture_calls(PAGE)
PAPERS = {
  paper: call.replace(r"\|", "|")
  for paper, call in re.findall(
    r"^\| ([^|!`]+) \| `(.+)` \|$", PAGE, re.MULTILINE
  )
}


@pytest.fixture(scope="module")
def names():
  """The names that the code of the page makes, by running it in order."""
  return render_attention.run_code(PAGE)


def test_every_row_is_found():
  tables = len(re.findall(r"^\|[-|]+\|$", PAGE, re.MULTILINE))
  rows = len(re.findall(r"^\| ", PAGE, re.MULTILINE)) - tables
  assert len(PICTURES) + len(PAPERS) == rows
  assert paper_formulas.FORMULAS.keys() == PAPERS.keys()
  assert len(PICTURES) > 30
  assert len(PAPERS) > 25


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_of_the_call_beside_it(name):
  with Image.open(DOCS / "images" / f"{name}.png") as picture:
    assert picture.info["Description"] == PICTURES[name]


def test_no_picture_is_left_over():
  pages = [page.read_text() for page in DOCS.glob("*.md")]
  shown = {
    name
    for page in pages
    for name in re.findall(r"!\[.*?\]\(images/(\w+\.\w+)\)", page)
  }
  assert {path.name for path in (DOCS / "images").iterdir()} == shown


@pytest.mark.parametrize(
  "name",
  [
    "scales_entropy",
    "scales_log_length",
    "scores_alibi",
    "scores_soft_cap",
    "masks_radial_blocks",
    "normalizers_affine",
    "finishes_gate",
    "block_attention",
  ],
)
def test_pictures_are_drawn(name, names, tmp_path):
  plt.switch_backend("agg")
  path = render_attention.render(name, PICTURES[name], names, tmp_path)
  pixels = np.asarray(Image.open(path).convert("L"))
  assert len(np.unique(pixels)) > 2


def test_drawing_needs_a_folder(capsys):
  with pytest.raises(SystemExit):
    render_attention.main([])
  assert "required: folder" in capsys.readouterr().err


def _public(module):
  return [
    name
    for name, value in vars(module).items()
    if inspect.isfunction(value)
    and not name.startswith("_")
    # Not what a module imports for itself.
    and (value.__module__ == module.__name__ or name in module.__all__)
  ]


@pytest.mark.parametrize(
  "module",
  [masks, scores, normalizers, linear_normalizers, finishes, scales, trees],
  ids=lambda module: module.__name__,
)
def test_every_function_is_on_the_page(module):
  functions = _public(module)
  assert functions
  short = module.__name__.removeprefix("attention.")
  assert [f for f in functions if f"{short}.{f}(" not in PAGE] == []


@pytest.mark.parametrize("paper", PAPERS)
def test_a_call_is_the_formula_of_its_paper(paper, names):
  # One program is compiled faster than its operations one by one.
  out = jax.jit(lambda: eval(PAPERS[paper], names))()
  expected = paper_formulas.expected(paper, names)
  np.testing.assert_allclose(out, expected, rtol=2e-4, atol=2e-5)


@pytest.fixture(scope="module")
def own():
  """The names of docs/own_mechanism.md; its code compares what it makes."""
  mixers = dict(token_mixers.TOKEN_MIXERS)
  yield render_attention.run_code((DOCS / "own_mechanism.md").read_text())
  token_mixers.TOKEN_MIXERS.clear()
  token_mixers.TOKEN_MIXERS.update(mixers)


def test_the_learned_array_of_a_score_function_has_a_gradient(own):
  step = 1e-2
  for head in range(2):
    change = step * np.eye(2, dtype=np.float32)[head]
    measured = own["loss"](own["rate"] + change) - own["loss"](
      own["rate"] - change
    )
    slope = own["gradient"][head]
    np.testing.assert_allclose(measured / (2 * step), slope, rtol=2e-2)
    assert abs(slope) > 1e-5


@pytest.mark.parametrize("blocks", [(4, 8), (8, 4), (16, 16), (5, 7)])
@pytest.mark.parametrize("size", [4, 16])
def test_the_mask_knows_its_tiles(size, blocks, own):
  mask, length = own["Chunks"](size), 40
  apart = np.arange(length)[:, None] // size - np.arange(length) // size
  seen = (apart == 0) | (apart == 1)
  np.testing.assert_array_equal(mask.dense(length, length)[0, 0], seen)
  states = mask.tile_states(length, length, *blocks)[0, 0]
  for row, column in np.ndindex(states.shape):
    tile = seen[
      blocks[0] * row : blocks[0] * (row + 1),
      blocks[1] * column : blocks[1] * (column + 1),
    ]
    if states[row, column] == masks.EMPTY:
      assert not tile.any()
    if states[row, column] == masks.FULL:
      assert tile.all()
  assert masks.EMPTY in states


def test_the_mixer_is_in_the_backbone(own):
  block = own["variables"]["params"]["stage_0"]["block_0"]
  mixer = block["decaying_attention"]["attention"]
  assert mixer["rate"].shape == (2,)
