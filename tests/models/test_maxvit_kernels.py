"""A whole MaxViT through the fused kernels: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from tests import parity_helper

SMALL = {
  "stem_widths": (8, 8),
  "widths": (32, 64),
  "depths": (1, 1),
  "num_classes": 3,
}


# A whole network's kernels in the interpreter.
@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.parametrize("implementation", ["tpu_interpret", "gpu_interpret"])
def test_kernels_give_the_logits_and_gradients_of_the_reference(
  implementation,
):
  reference = models.create("maxvit_tiny_224", **SMALL)
  size = reference.size_multiple
  x = jax.random.normal(jax.random.key(0), (2, size, size, 3))
  fields = {"attention_implementation": implementation}
  if implementation.startswith("tpu"):
    fields["feed_forward_implementation"] = implementation
  fused = models.create("maxvit_tiny_224", **fields, **SMALL)
  variables = parity_helper.random_variables(reference, seed=0)

  def loss(params, model):
    logits = model.apply(variables | {"params": params}, x, train=False)
    return jnp.sum(jnp.sin(logits)), logits

  (expected, logits), (actual, fused_logits) = (
    jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(
      variables["params"], model
    )
    for model in (reference, fused)
  )
  np.testing.assert_allclose(fused_logits, logits, atol=1e-4)
  for (path, want), have in zip(
    jax.tree.leaves_with_path(expected), jax.tree.leaves(actual), strict=True
  ):
    np.testing.assert_allclose(
      have,
      want,
      atol=2e-4 * float(jnp.max(jnp.abs(want))) + 1e-6,
      err_msg=jax.tree_util.keystr(path),
    )
