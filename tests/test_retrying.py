"""A storage that does not answer for a while."""

import errno

import ml_collections
import pytest
from etils import epath

import storage
from storage import retrying
from training import metrics, records


class HttpError(Exception):
  """As gcsfs and google.api_core raise it."""

  def __init__(self, code):
    super().__init__(f"the server said {code}")
    self.code = code


class ClientError(Exception):
  """As botocore raises it."""

  def __init__(self, status):
    super().__init__("An error occurred")
    self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


def caused_by(cause):
  try:
    raise RuntimeError("a checkpoint could not be written") from cause
  except RuntimeError as error:
    return error


TRANSIENT = [
  OSError(errno.ETIMEDOUT, "timed out"),
  OSError(errno.ESTALE, "stale file handle"),
  OSError(errno.EIO, "input/output error"),
  ConnectionResetError("by peer"),
  TimeoutError(),
  HttpError(503),
  HttpError("429"),
  ClientError(500),
  ValueError("UNAVAILABLE: Error writing local file"),
  RuntimeError("CURL error ... HTTP response code: 503"),
  caused_by(HttpError(502)),
]
PERMANENT = [
  OSError(errno.ENOSPC, "no space left"),
  OSError(errno.EACCES, "permission denied"),
  FileNotFoundError(errno.ENOENT, "no such file"),
  OSError("of no number"),
  HttpError(404),
  ClientError(403),
  ValueError("NOT_FOUND: there is no array"),
  caused_by(OSError(errno.EDQUOT, "quota exceeded")),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_what_may_pass_is_known(error):
  assert storage.is_transient(error)


@pytest.mark.parametrize("error", PERMANENT, ids=repr)
def test_what_stays_is_not_tried_again(error):
  assert not storage.is_transient(error)


@pytest.fixture
def waits(monkeypatch):
  """The seconds that were waited."""
  found = []
  monkeypatch.setattr(retrying.time, "sleep", found.append)
  monkeypatch.setattr(retrying.random, "uniform", lambda low, high: 1.0)
  return found


class Flaky:
  """Fails so many times."""

  def __init__(self, error, times):
    self.error, self.left, self.calls = error, times, 0

  def __call__(self, value):
    self.calls += 1
    if self.left:
      self.left -= 1
      raise self.error
    return value


def test_waits_double_until_it_answers(waits, caplog):
  flaky = Flaky(HttpError(503), 4)
  assert storage.retry(flaky, 7, what="reading a/b") == 7
  assert waits == [1, 2, 4, 8]
  assert "reading a/b failed (try 4 of 8), again in 8 s" in caplog.text
  assert "HttpError: the server said 503" in caplog.text


def test_it_gives_up_in_the_end(waits):
  flaky = Flaky(HttpError(503), 100)
  with pytest.raises(HttpError):
    storage.retry(flaky, 7, what="reading a/b")
  assert flaky.calls == retrying.TRIES
  assert 60 < sum(waits) < 180


def test_what_stays_is_raised_at_once(waits):
  flaky = Flaky(OSError(errno.ENOSPC, "no space left"), 1)
  with pytest.raises(OSError, match="no space"):
    storage.retry(flaky, 7, what="reading a/b")
  assert flaky.calls == 1
  assert not waits


@pytest.fixture
def flaky_disk(waits, monkeypatch, tmp_path):
  """A local path whose every third read or write works."""
  path = storage.path(tmp_path) / "file"
  for name in ("read_bytes", "write_bytes", "mkdir"):
    original, calls = getattr(type(path), name), [0]

    def flaky(self, *args, original=original, calls=calls, **kwargs):
      calls[0] += 1
      if calls[0] % 3:
        raise OSError(errno.ESTALE, "stale file handle")
      return original(self, *args, **kwargs)

    monkeypatch.setattr(type(path), name, flaky)
  return path


def test_whole_files_get_through(flaky_disk):
  storage.write_whole(flaky_disk, "one")
  assert storage.read_bytes(flaky_disk) == b"one"


def test_what_grows_by_being_replaced_gets_through(flaky_disk, monkeypatch):
  monkeypatch.setattr("storage.growing.is_remote", lambda path: True)
  storage.write_whole(flaky_disk, "one ")
  file = storage.GrowingFile(flaky_disk, append=True)
  file.write(b"two")
  file.close()
  assert storage.read_bytes(flaky_disk) == b"one two"


def test_folders_get_through(flaky_disk, tmp_path):
  (tmp_path / "from").mkdir()
  (tmp_path / "from" / "a").write_text("a")
  storage.upload(str(tmp_path / "from"), epath.Path(tmp_path) / "to")
  assert (tmp_path / "to" / "a").read_text() == "a"


def test_what_a_disk_does_not_show_at_once_is_not_taken_for_absent(
  flaky_disk, monkeypatch, tmp_path
):
  """As `os.path.exists` says no of a stale handle, and some buckets do."""
  storage.write_whole(tmp_path / "metrics.jsonl", '{"step": 1}\n')
  config = ml_collections.ConfigDict({"seed": 0})
  records.write_config(str(tmp_path), config)
  monkeypatch.setattr(type(flaky_disk), "exists", lambda self: False)
  assert metrics.read_metrics(str(tmp_path)) == [{"step": 1}]
  other = ml_collections.ConfigDict({"seed": 1})
  with pytest.raises(records.ConfigMismatchError, match="seed: 0 -> 1"):
    records.check_workdir(
      str(tmp_path), other, defaults=lambda _: config, override=False
    )
  assert storage.read_bytes_if_there(flaky_disk) is None
  assert storage.read_bytes_if_there(tmp_path / "metrics.jsonl" / "a") is None
