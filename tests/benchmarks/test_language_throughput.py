"""That both sides of the comparison are the same network, and run."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
  language_cases,
  language_peers,
  language_throughput,
  turns,
)
from models import huggingface, registry
from models.transformer import Transformer

TINY = language_cases.Size(2, 2, 24, 31, 12, 3, 5)


def _fields(family, size):
  config = language_cases.config(family, size)
  return huggingface.fields({"model_type": family, **config})


@pytest.mark.parity
@pytest.mark.parametrize("family", language_cases.FAMILIES)
def test_both_have_as_many_parameters(family):
  for size in (TINY, language_cases.SIZES["small"]):
    model = registry.build(Transformer, _fields(family, size))
    tokens = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)
    ours = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert ours == language_peers.Peer(family, size, 1).parameters()


@pytest.mark.parity
def test_both_train_and_decode():
  peer = language_peers.Peer("llama", TINY, 1)
  tokens = np.random.default_rng(0).integers(0, 31, (3, 13), np.int32)
  fields = _fields("llama", TINY)
  language_throughput.our_training(fields, tokens)()
  language_throughput.our_decoding(fields, tokens[:, :5], 7)()
  before = [p.detach().clone() for p in peer.model.parameters()]
  peer.train(tokens[:, :-1], tokens[:, 1:], compiled=False)()
  after = peer.model.parameters()
  assert all((a != b).any() for a, b in zip(after, before, strict=True))
  peer.decode(tokens[:, :5], 7, compiled=False)()


def test_rate_counts_what_was_done(monkeypatch):
  """By a clock that goes on by a second each time it is looked at."""
  monkeypatch.setitem(turns.CLOCKS, "wall", itertools.count().__next__)
  calls = []
  # Looked at after 1, 2 and 3 s, each time but the last a run, and at the end.
  assert turns.rate(lambda: calls.append(0), 5, 3) == 2 * 5 / 4
  assert len(calls) == 3
