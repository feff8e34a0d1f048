"""Image files: what is read, where results go, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from tasks import image_files


def picture(height=5, width=7, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3)).astype(np.uint8)


def save(path, pixels=None, **options):
  pixels = picture() if pixels is None else pixels
  Image.fromarray(pixels).save(path, **options)
  return path


def test_one_file(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  source = save(tmp_path / "photo.png")
  (job,) = image_files.jobs(str(source), "", "restored")
  assert (str(job.target), job.shape) == ("restored.png", (5, 7))
  np.testing.assert_array_equal(image_files.read(job.source), picture())
  (job,) = image_files.jobs("photo.png", str(tmp_path / "a.PNG"), "restored")
  assert job.target.name == "a.PNG"


def test_a_folder_in_order_without_what_is_no_image(tmp_path):
  for name in ("b.png", "a.jpg", "C.PNG", "d.webp", ".hidden.png"):
    # Pillow takes the format from the name.
    save(tmp_path / name)
  (tmp_path / "notes.txt").write_text("none")
  (tmp_path / "deeper").mkdir()
  jobs = image_files.jobs(str(tmp_path), str(tmp_path / "out"), "restored")
  assert [job.source.name for job in jobs] == [
    "C.PNG",
    "a.jpg",
    "b.png",
    "d.webp",
  ]
  assert [job.target.name for job in jobs] == [
    "C.png",
    "a.png",
    "b.png",
    "d.png",
  ]
  assert {job.target.parent for job in jobs} == {tmp_path / "out"}


def test_all_kinds_become_rgb(tmp_path):
  grey = picture()[..., 0]
  read = image_files.read(save(tmp_path / "grey.png", grey))
  np.testing.assert_array_equal(read, np.stack([grey] * 3, -1))
  opaque = np.concatenate([picture(), np.full((5, 7, 1), 255, np.uint8)], -1)
  read = image_files.read(save(tmp_path / "opaque.png", opaque))
  np.testing.assert_array_equal(read, picture())
  palette = Image.fromarray(picture()).quantize(256)
  palette.save(tmp_path / "palette.png")
  read = image_files.read(tmp_path / "palette.png")
  np.testing.assert_array_equal(read, np.asarray(palette.convert("RGB")))


def test_a_camera_that_was_turned(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6  # To be seen, a quarter of a turn clockwise.
  path = save(tmp_path / "turned.png", exif=exif)
  assert image_files.shape_of(path) == (7, 5)
  np.testing.assert_array_equal(image_files.read(path), np.rot90(picture(), -1))


@pytest.mark.parametrize(
  ("given", "out", "message"),
  [
    ("", "", "input=''"),
    ("none.png", "", "input='none.png' does not exist"),
    ("empty", "", "input='empty' has no images: no .png"),
    ("photo.png", "a.jpg", "out='a.jpg' must end in .png"),
    ("photo.png", "gone/a.png", "the folder 'gone' does not exist"),
    ("photo.png", "photo.png", "'photo.png' is one of the images"),
    ("two", "two", "is one of the images that are read"),
    ("two", "out", "'two/a.jpg' and 'two/a.png' would both be written"),
    ("two", "photo.png", "out='photo.png' must be a folder"),
    ("damaged.png", "", "'damaged.png' cannot be read as an image"),
    ("text.png", "", "'text.png' cannot be read as an image"),
    ("deep.png", "", "'deep.png' is of mode 'I;16'"),
  ],
)
def test_what_cannot_be_done_is_said_first(
  tmp_path, monkeypatch, given, out, message
):
  monkeypatch.chdir(tmp_path)
  save(tmp_path / "photo.png")
  for folder in ("empty", "two"):
    (tmp_path / folder).mkdir()
  for name in ("a.jpg", "a.png"):
    save(tmp_path / "two" / name)
  whole = (tmp_path / "photo.png").read_bytes()
  (tmp_path / "damaged.png").write_bytes(whole[:20])
  (tmp_path / "text.png").write_text("no image")
  save(tmp_path / "deep.png", np.zeros((3, 3), np.uint16))
  with pytest.raises(ValueError, match=message):
    image_files.jobs(given, out, "restored")


def test_files_that_turn_out_not_to_be_whole(tmp_path):
  for suffix, check in (
    (".jpg", image_files.read),
    (".png", image_files.shape_of),
  ):
    path = save(tmp_path / f"photo{suffix}", picture(40, 40))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match=f"photo{suffix}' cannot be read"):
      check(path)
  clear = np.concatenate([picture(), picture()[..., :1]], -1)
  with pytest.raises(ValueError, match="has transparent pixels"):
    image_files.read(save(tmp_path / "clear.png", clear))
