"""What tests of attention share."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked():
  """Turns off the checks of annotations, to meet the function's own errors."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)
