"""Restormer and MTAIR against a second statement in PyTorch."""

import numpy as np
import pytest

from models import pretrained
from tests import parity_helper
from tests.models import mtair_small, mtair_torch


@pytest.mark.parity
def test_values_and_gradients():
  model, variables = mtair_small.model_and_variables()
  net = mtair_torch.create(model)
  parity_helper.fill(net, pretrained.to_tensors(variables, model))
  (out, ours), (expected, theirs) = parity_helper.logits_and_gradients(
    model, variables, net, mtair_small.IMAGES
  )
  np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
  for name, gradient in theirs.items():
    scale = np.abs(gradient).max()
    np.testing.assert_allclose(
      ours[name], gradient, atol=1e-4 * scale, err_msg=name
    )
