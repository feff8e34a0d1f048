"""Analyses of language models refuse others, and leave a ViT within alone."""

import fnmatch
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interpret
import models
from interpret import (
  attention_influence,
  gradients,
  head_attribution,
  head_edits,
  logit_attribution,
  logit_lens,
  metrics,
  retrieval_heads,
)

TOKENS = np.ones((2, 5), np.int32)


@pytest.mark.parametrize(
  "call",
  [
    logit_lens.lens,
    functools.partial(logit_attribution.attribute, targets=TOKENS),
    functools.partial(gradients.of_tokens, metric=metrics.loss),
    head_attribution.ships,
    functools.partial(attention_influence.losses, mask=np.ones((1, 1), bool)),
    functools.partial(retrieval_heads.of_model, answer=TOKENS > 0),
  ],
)
def test_other_kinds_are_refused(call):
  model = models.create("vit_tiny_16_224")
  with pytest.raises(ValueError, match="PatchMixer; it must be a language"):
    call(model, {}, TOKENS)


def test_heads_of_a_vit_are_no_heads_of_the_language_model():
  """Masks of heads are [layers, heads], and blocks have numbers too."""
  model = models.create("vision_language", vocabulary_size=13)
  inputs = jnp.asarray(TOKENS), jnp.zeros((2, 32, 32, 1))
  variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
  known = interpret.list_taps(model, variables, inputs)
  maps = fnmatch.filter(known, "*/attention_weights")
  found = fnmatch.filter(known, head_edits.MAPS)
  assert len(found) == model.depth < len(maps)
  assert all(name.startswith("layer_") for name in found)
