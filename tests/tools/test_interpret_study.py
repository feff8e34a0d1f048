"""Studies of looking inside: each one tried, on their page."""

import pytest
from etils import epath

from tests.tools import tried_studies
from tools import interpret_study

PAGE = tried_studies.RESULTS / "interpret.md"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
  """The folder of what studies have in common."""
  return epath.Path(tmp_path_factory.mktemp("studies"))


@pytest.mark.slow  # It trains a very small model.
@pytest.mark.parametrize("name", interpret_study.COMMAND.names())
def test_every_study_goes_through(name, out, tmp_path):
  tried_studies.check(interpret_study.COMMAND, name, PAGE, out, tmp_path)


def test_every_study_has_a_place_on_the_page():
  text = PAGE.read_text()
  for name in interpret_study.COMMAND.names():
    assert f"<!-- begin: {name} -->" in text
