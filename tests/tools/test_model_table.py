"""Counting work from a jaxpr, and the table that is made of it."""

import csv
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from models import depthwise
from tools import model_table, published, work


def test_matrix_products():
  x, y = np.zeros((2, 3, 5)), np.zeros((2, 5, 7))
  assert work.count_work(jnp.matmul, x, y) == (2 * 3 * 7 * 5, 2 * 3 * 7)


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(groups):
  images, kernel = np.zeros((2, 8, 6, 4)), np.zeros((3, 5, 4 // groups, 10))

  def convolve(images, kernel):
    return lax.conv_general_dilated(
      images,
      kernel,
      (2, 1),
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=groups,
    )

  pixels = 2 * 4 * 6 * 10
  terms = 3 * 5 * 4 // groups
  counted = work.count_work(convolve, images, kernel)
  assert counted == (pixels * terms, pixels)


def test_loops_branches_and_custom_gradients():
  x = np.zeros((4, 4))

  def looped(x):
    return lax.scan(lambda x, _: (jax.jit(jnp.matmul)(x, x), None), x, None, 5)

  assert work.count_work(looped, x) == (5 * 64, 5 * 16)

  def branched(x):
    return lax.cond(x.sum() > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

  assert work.count_work(branched, x) == (2 * 64, 2 * 16)
  # Written as shifted products on a CPU, and with a gradient of its own.
  counted = work.count_work(
    depthwise.depthwise_convolution,
    np.zeros((1, 6, 6, 8), np.float32),
    np.zeros((3, 3, 1, 8), np.float32),
  )
  assert counted == (36 * 8 * 9, 36 * 8)


def test_what_a_jaxpr_does_not_tell():
  with pytest.raises(ValueError, match="function has a while"):
    work.count_work(
      lambda x: lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ x, x),
      np.zeros((4, 4)),
    )


# Traces a published network.
@pytest.mark.slow
def test_markdown_of_a_published_model(capsys):
  model_table.main(["maxvit_tiny_224"])
  header, _, line = capsys.readouterr().out.splitlines()
  assert header.startswith("| model | size | parameters | published M |")
  cells = [cell.strip() for cell in line.strip("|").split("|")]
  assert cells[:6] == [
    "maxvit_tiny_224",
    "224",
    "30,916,528",
    "31",
    "5.55",
    "5.6",
  ]
  assert cells[-1] == "83.62, 83.1"


def test_csv():
  row = dict.fromkeys(model_table.COLUMNS, "1")
  file = io.StringIO()
  model_table.write_csv([row], file)
  assert list(csv.DictReader(io.StringIO(file.getvalue()))) == [row]


def test_unknown_patterns(capsys):
  with pytest.raises(SystemExit):
    model_table.main(["vat*"])
  assert "no model matches ['vat*']" in capsys.readouterr().err


def test_published_tables():
  with pytest.raises(ValueError, match="family is 'vit'; there are"):
    published.rows("vit")
  (row,) = (
    row
    for row in published.rows("maxvit")
    if row.weights == "timm:maxvit_tiny_tf_224.in1k"
  )
  assert (row.config, row.top1) == ("tiny_tf_224", 83.426)
