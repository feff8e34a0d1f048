"""A config to run, and what its runs need not do again."""

import pytest

from tests.train_runs import Repeated, make_config


@pytest.fixture(scope="module", params=["digits"])
def job(request):
  """Which of CONFIGS; a test may say others."""
  return request.param


@pytest.fixture(scope="module")
def repeated():
  return Repeated()


@pytest.fixture(autouse=True)
def _share_what_repeats(repeated, monkeypatch):
  repeated.share(monkeypatch)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  return str(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(job, data_dir):
  return make_config(job, data_dir)
