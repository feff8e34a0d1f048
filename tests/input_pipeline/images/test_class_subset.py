"""Some classes of the digits, and of a data set with damaged records."""

import numpy as np
import pytest
from sklearn import datasets

from input_pipeline import images
from input_pipeline.images import class_subset, source


@pytest.fixture
def config(tmp_path_factory):
  config = images.default_config()
  config.data_dir = str(tmp_path_factory.getbasetemp())
  config.channels = 1
  return config


def test_records_are_those_of_the_classes_in_order(config):
  config.classes = (7, 2)
  subset = class_subset.open_source(config, "test")
  whole = source.open_source(config, "test")
  rows = [i for i in range(len(whole)) if whole[i]["label"] in (2, 7)]
  assert len(subset) == len(rows)
  assert subset.class_names == ("7", "2")
  for index in (0, 3, len(rows) - 1):
    record = whole[rows[index]]
    assert subset[index]["image"] == record["image"]
    assert (7, 2)[subset[index]["label"]] == record["label"]
    assert subset.describe(index) == whole.describe(rows[index])


def test_the_pipeline_sees_nothing_else(config):
  config.classes = (0, 1, 2, 3, 4)
  info = images.dataset_info(config)
  assert len(info.class_names) == 5
  assert info.class_names == tuple("01234")
  digits = datasets.load_digits().target
  assert images.num_train_examples(config) == (digits[:1437] < 5).sum()
  assert info.num_eval_examples == (digits[1437:] < 5).sum()
  batches = list(images.eval_batches(config, batch_size=64))
  labels = np.concatenate([b["label"][b["mask"] > 0] for b in batches])
  assert np.bincount(labels).size == 5
  assert len(labels) == info.num_eval_examples


@pytest.mark.parametrize("classes", [(1, 1), (10,), (-1,)])
def test_classes_that_are_not_there(config, classes):
  config.classes = classes
  with pytest.raises(ValueError, match=r"classes is .* from 0 to 9"):
    images.dataset_info(config)
