"""Lists of keys and labels: what is asked can be told from the row."""

import collections

import jax
import numpy as np
from etils import epath

from tools import key_label_lists


def test_the_label_that_is_asked_is_the_most_frequent_one():
  lists = key_label_lists.draw(np.random.default_rng(0), 500)
  assert lists.tokens.shape == (500, key_label_lists.LENGTH)
  assert (lists.tokens[:, 0] == key_label_lists.BOS).all()
  assert (lists.tokens[:, 3::3] == key_label_lists.NEWLINE).all()
  right, told = 0.0, []
  for row, label in zip(lists.tokens, lists.labels, strict=True):
    pairs = row[1:-1].reshape(-1, 3)
    assert len(set(pairs[:, 0])) <= key_label_lists.KEYS_OF_A_ROW
    labels = pairs[pairs[:, 0] == row[-1], 1]
    assert len(labels) >= 2
    told += list(labels == label)
    count = collections.Counter(labels)
    best = [name for name in count if count[name] == max(count.values())]
    right += (label in best) / len(best)
  assert 0.65 < np.mean(told) < 0.75
  np.testing.assert_allclose(key_label_lists.most_frequent(lists), right / 500)
  # More than one label tells.
  assert right / 500 > np.mean(told) + 0.05
  first = key_label_lists.FIRST_LABEL
  assert set(lists.labels) == set(range(first, key_label_lists.VOCABULARY))


def test_targets_are_labels_of_keys_that_were_there_before():
  lists = key_label_lists.draw(np.random.default_rng(1), 20)
  weights = key_label_lists.asked_again(lists.tokens)
  for row, own in zip(lists.tokens, weights, strict=True):
    seen = set()
    for place, token in enumerate(row):
      key = 2 <= token < key_label_lists.FIRST_LABEL
      assert own[place] == float(key and token in seen)
      if key:
        seen.add(token)
  assert weights[:, -1].all()


def test_a_model_is_trained_once(tmp_path):
  folder = epath.Path(tmp_path)
  first = key_label_lists.trained(folder, 0, "test")
  again = key_label_lists.trained(folder, 0, "test")
  assert len(list(folder.iterdir())) == 1
  jax.tree.map(np.testing.assert_array_equal, first.variables, again.variables)
  untrained = first.model.init(jax.random.key(0), np.zeros((1, 4), np.int32))
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), first.variables, untrained
  )
  assert max(jax.tree.leaves(moved)) > 1e-4
