"""Which network of timm's is timed beside which of ours."""

import pytest

import models
from benchmarks import model_throughput

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(
  ("name", "peer"),
  [
    ("maxvit_tiny_224", "maxvit_tiny_tf_224"),
    ("maxvit_tiny_tf_384", "maxvit_tiny_tf_384"),
    ("halonet50ts", "halonet50ts"),
    ("halonet_h1_timm", "halonet_h1"),
    ("resnetrs_101_192", "resnetrs101"),
    ("resnetrs50", "resnetrs50"),
    ("resnet50", "resnet50"),
  ],
)
def test_peers(name, peer):
  assert name in models.list()
  assert model_throughput.peer_name(name) == peer


@pytest.mark.parametrize(
  "name",
  ["halonet_h1", "halonet_h4", "duoformer_r50_2s", "resnetrs_50_swish_160"],
)
def test_models_without_a_peer(name):
  assert name in models.list()
  with pytest.raises(ValueError, match=f"has '{name}', which timm lacks"):
    model_throughput.peer_name(name)
