"""Pairs: patches are aligned, streams are functions of their number."""

import itertools

import numpy as np
import pytest

from input_pipeline import restoration
from input_pipeline.images import DamagedImageError
from input_pipeline.restoration import photographs
from tests.input_pipeline.restoration.conftest import draw


def _take(config, count, *, seed=0, batch=4, **options):
  iterator = restoration.train_iterator(
    config, seed=seed, global_batch_size=batch, **options
  )
  return list(itertools.islice(iterator, count))


def _find(patch, image):
  """Where and how turned the patch is in the image: (top, left, turn)."""
  size = len(patch)
  windows = np.lib.stride_tricks.sliding_window_view(image, (size, size, 3))
  windows = windows[:, :, 0]  # [tops, lefts, size, size, 3]
  found = []
  for mirrored, turns in itertools.product((False, True), range(4)):
    # Back: a patch was mirrored and then turned.
    back = np.rot90(patch, -turns)
    back = back[:, ::-1] if mirrored else back
    same = (windows == back).all((2, 3, 4))
    found += [(int(y), int(x), mirrored, turns) for y, x in np.argwhere(same)]
  (only,) = found
  return only


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_patches_are_aligned(config, write, scale):
  images = {}
  for n in range(2):
    # Noise, so that each place is told from all others.
    rng = np.random.default_rng(n)
    small = rng.integers(0, 256, (11, 12, 3), np.uint8)
    images[f"{n}_LR"] = small
    images[f"{n}_HR"] = small.repeat(scale, 0).repeat(scale, 1)
  config.train_folder = write(**images)
  config.scale = scale
  assert restoration.num_train_examples(config) == 8
  seen = set()
  for batch in _take(config, 30):
    assert batch.keys() == {"degraded", "clean"}
    assert batch["degraded"].shape == (4, 8, 8, 3)
    assert batch["degraded"].dtype == batch["clean"].dtype == np.uint8
    for degraded, clean in zip(batch["degraded"], batch["clean"], strict=True):
      large = degraded.repeat(scale, 0).repeat(scale, 1)
      np.testing.assert_array_equal(clean, large)
      source = {_find_in(degraded, images)}
      seen |= source
  assert {n for n, *_ in seen} == {"0_LR", "1_LR"}
  assert {top for _, top, *_ in seen} == {0, 1, 2, 3}
  assert {left for _, _, left, *_ in seen} == {0, 1, 2, 3, 4}
  assert len({turn for *_, turn in seen}) == 4
  assert len({(m, turn) for *_, m, turn in seen}) == 8


def _find_in(patch, images):
  for name in ("0_LR", "1_LR"):
    try:
      return (name, *_find(patch, images[name]))
    except ValueError:
      continue
  raise AssertionError("a patch is of no image")


def test_no_flips_and_no_rotations(config, write):
  images = {"0_LR": draw(0, 11, 12), "0_HR": draw(1, 22, 24)}
  config.train_folder = write(**images)
  config.flips = config.rotations = False
  for batch in _take(config, 3):
    for degraded, clean in zip(batch["degraded"], batch["clean"], strict=True):
      top, left, mirrored, turns = _find(degraded, images["0_LR"])
      assert (mirrored, turns) == (False, 0)
      wanted = images["0_HR"][2 * top :, 2 * left :][:16, :16]
      np.testing.assert_array_equal(clean, wanted)
  config.flips = True
  turns = set()
  for batch in _take(config, 6):
    turns |= {_find(patch, images["0_LR"])[2:] for patch in batch["degraded"]}
  assert turns == {(False, 0), (True, 0)}


@pytest.mark.parametrize("spec", ["bicubic", "bicubic(2)|bicubic(2)"])
def test_a_patch_made_on_the_fly_is_that_of_the_whole(config, write, spec):
  scale = 4
  image = draw(0, 75, 90)
  config.train_folder = config.folder = write(photo=image)
  config.scale, config.degradations = scale, (spec,)
  config.flips = config.rotations = False
  (pair,) = restoration.eval_pairs(config)
  assert pair.name == "photo"
  assert pair.degradation == spec
  # What the scale leaves over is cut off first.
  np.testing.assert_array_equal(pair.clean, image[:72, :88])
  tops = set()
  for batch in _take(config, 30):
    for degraded, clean in zip(batch["degraded"], batch["clean"], strict=True):
      top, left, *_ = _find(degraded, pair.degraded)
      tops |= {top}
      wanted = pair.clean[scale * top :, scale * left :][:32, :32]
      np.testing.assert_array_equal(clean, wanted)
  assert {0, 10} <= tops
  (batch,) = restoration.eval_batches(config, batch_size=3)
  assert batch["index"].tolist() == [0, -1, -1]
  assert batch["mask"].tolist() == [1, 0, 0]
  np.testing.assert_array_equal(batch["degraded"][0], pair.degraded[5:13, 7:15])
  np.testing.assert_array_equal(batch["clean"][0], pair.clean[20:52, 28:60])


def test_degradations_to_choose_from(config, write):
  images = dict.fromkeys("ab", draw(0, 40, 30))
  config.folder = config.train_folder = write(**images)
  config.scale = config.repeat = 1
  config.degradations = ("noise(sigma=10)", "jpeg(10)", "haze")
  info = restoration.dataset_info(config)
  assert info.num_eval_examples == restoration.num_eval_pairs(config) == 6
  assert info.degradations == config.degradations
  pairs = list(restoration.eval_pairs(config))
  assert [(p.name, p.degradation) for p in pairs] == [
    *itertools.product(images, config.degradations)
  ]
  for pair, again in zip(pairs, restoration.eval_pairs(config), strict=True):
    np.testing.assert_array_equal(pair.degraded, again.degraded)
    np.testing.assert_array_equal(pair.clean, images[pair.name])
    assert (pair.degraded != pair.clean).any()
  noise = [pairs[n].degraded - pairs[n].clean.astype(int) for n in (0, 3)]
  assert (noise[0] != noise[1]).any()
  # Training draws each, also for the same example of another epoch.
  grown = np.concatenate(
    [
      batch["degraded"].astype(int).mean((1, 2, 3))
      - batch["clean"].mean((1, 2, 3))
      for batch in _take(config, 25)
    ]
  )
  assert 0.15 < (grown > 6).mean() < 0.55


def test_streams_are_functions_of_their_number(config, write):
  config.folder = config.train_folder = write(
    a=draw(0, 40, 30), b=draw(1, 25, 33)
  )
  config.degradations = ("bicubic|noise", "bicubic|rain")
  whole = _take(config, 4)
  odd = _take(config, 4, rows=[1, 3])
  for batch, part in zip(whole, odd, strict=True):
    for name in batch:
      np.testing.assert_array_equal(batch[name][[1, 3]], part[name])
  large = _take(config, 2, batch=8)
  np.testing.assert_array_equal(
    np.concatenate([b["degraded"] for b in whole]),
    np.concatenate([b["degraded"] for b in large]),
  )
  other = _take(config, 1, seed=1)
  assert (other[0]["clean"] != whole[0]["clean"]).any()
  # A patch of the second epoch is another one.
  epochs = _take(config, 4, batch=8)
  patches = {p.tobytes() for batch in epochs for p in batch["degraded"]}
  assert len(patches) == 32


def test_folders_that_do_not_fit(config, write, tmp_path):
  def fails(match, **images):
    for file in tmp_path.iterdir():
      file.unlink()
    config.folder = config.train_folder = write(**images)
    with pytest.raises(ValueError, match=match):
      restoration.dataset_info(config)

  small, large = draw(0, 10, 12), draw(0, 20, 24)
  fails("has no image")
  fails("only one of b_HR and b_LR", a_HR=large, a_LR=small, b_HR=large)
  fails("1 other images, first of all c.png", a_HR=large, a_LR=small, c=small)
  fails("a_HR.png is 10 x 12 pixels.*must be 20 x 24", a_HR=small, a_LR=small)
  config.degradations = ()
  fails("degradations is empty", a=small)
  config.degradations = ("noise",)
  fails("smaller by 1, but scale is 2", a=small)
  config.degradations = ("bicubic",)
  config.folder = str(tmp_path / "nowhere")
  with pytest.raises(ValueError, match="nowhere' is no folder"):
    restoration.num_eval_pairs(config)
  with pytest.raises(
    ValueError, match=r"a\.png is 10 x 12 .*must be 16 or more"
  ):
    restoration.num_train_examples(config)
  config.folder = ""
  with pytest.raises(ValueError, match=r"set config\.data\.folder"):
    restoration.dataset_info(config)
  (tmp_path / "a.jpg").write_bytes(b"")
  with pytest.raises(ValueError, match=r"a\.jpg and a\.png, two images"):
    restoration.num_train_examples(config)
  (tmp_path / "a.jpg").rename(tmp_path / "b.jpg")
  with pytest.raises(DamagedImageError, match=r"b\.jpg: cannot identify"):
    restoration.num_train_examples(config)


def test_a_damaged_image_is_named(config, write, tmp_path):
  config.folder = write(a=draw(0, 64, 64))
  file = tmp_path / "a.png"
  file.write_bytes(file.read_bytes()[:900])
  with pytest.raises(DamagedImageError, match=r"a\.png: 900 bytes"):
    next(restoration.eval_pairs(config))


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    (dict(folder="/tmp", name="photographs"), "set name='folder' too"),
    (dict(scale=0), "scale is 0"),
    (dict(patch_size=2.5), "patch_size is 2.5"),
    (dict(repeat=0), "repeat is 0"),
    (dict(flips=1), "flips is 1"),
    (dict(degradations="noise"), r"must be a tuple of strings: \('noise',\)"),
    (dict(num_threads=-1), "num_threads"),
    (dict(name="no_such_set", data_dir="/nowhere"), "no_such_set' is not"),
  ],
)
def test_bad_fields(changes, match):
  config = restoration.default_config()
  with config.ignore_type():
    config.update(changes)
  with pytest.raises(ValueError, match=match):
    restoration.dataset_info(config)


def test_photographs(monkeypatch):
  config = restoration.default_config()
  config.num_threads = 0
  train, evaluated = (
    photographs.PHOTOGRAPHS[name].keys() for name in ("train", "eval")
  )
  assert not train & evaluated
  assert restoration.num_train_examples(config) == 100 * len(train)
  assert restoration.dataset_info(config).num_eval_examples == 3
  pairs = {pair.name: pair for pair in restoration.eval_pairs(config)}
  assert pairs.keys() == {"astronaut", "coffee", "flower"}
  assert pairs["coffee"].clean.shape == (400, 600, 3)
  assert pairs["flower"].clean.shape == (426, 640, 3)
  assert pairs["flower"].degraded.shape == (213, 320, 3)
  for name in train | evaluated:
    place = photographs.PHOTOGRAPHS["train" if name in train else "eval"]
    image = photographs._read(name, *place[name])
    assert min(image.shape[:2]) >= 300
  found = photographs.importlib.util.find_spec
  monkeypatch.setattr(
    photographs.importlib.util,
    "find_spec",
    lambda name: None if name == "skimage" else found(name),
  )
  with pytest.raises(ValueError, match=r"pip install 'foveal\[photographs\]'"):
    restoration.dataset_info(config)
  monkeypatch.setitem(
    photographs.PHOTOGRAPHS,
    "eval",
    {"gone.jpg": ("sklearn", "datasets/images")},
  )
  with pytest.raises(
    ValueError, match=r"gone\.jpg, which the installed sklearn"
  ):
    restoration.dataset_info(config)
