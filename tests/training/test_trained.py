"""Which parameters are trained, and that no gradient is made of the rest."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend import core
from jax.interpreters import partial_eval

from tests.training import test_train_step as steps
from training import trained

NAMES = ("stem/kernel", "stem/bias", "head/kernel", "head/bias")


def learns(**options):
  is_trained = trained.choose(NAMES, **options)
  return [name for name in NAMES if is_trained(name)]


def test_patterns_and_the_task_have_to_agree():
  assert trained.choose(NAMES) is None
  assert learns(trainable=("bias",)) == ["stem/bias", "head/bias"]
  assert learns(frozen=("stem",)) == ["head/kernel", "head/bias"]
  assert learns(trainable=("head",), frozen=("bias",)) == ["head/kernel"]
  head = lambda name: name.startswith("head")
  assert learns(also=head) == ["head/kernel", "head/bias"]
  assert learns(also=head, trainable=("kernel",)) == ["head/kernel"]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"trainable": ("haed",)}, r"trainable has 'haed'.* Near it are head"),
    ({"frozen": ("haed",)}, r"frozen has 'haed'.* Near it are head"),
    ({"frozen": "head"}, r"frozen='head' must be a tuple"),
    ({"frozen": ("stem", "head")}, r"but no parameter of stem/kernel"),
    ({"trainable": ("stem", "head")}, r"but every parameter of"),
    ({"also": lambda name: True}, r"but every parameter of"),
  ],
)
def test_patterns_that_do_not_fit(options, message):
  with pytest.raises(ValueError, match=message):
    trained.choose(NAMES, **options)


def test_trees_are_cut_and_joined():
  tree = {"a": {"kernel": 1, "bias": 2}, "b": {"kernel": 3}}
  parts = trained.split(tree, lambda name: name == "a/bias")
  assert parts == ({"a": {"bias": 2}}, {"a": {"kernel": 1}, "b": {"kernel": 3}})
  assert trained.join(*parts) == tree
  assert trained.split(tree, None) == (tree, {})


class Net(nn.Module):
  """Sizes that tell every kernel by its shape, and its transpose."""

  @nn.compact
  def __call__(self, x, *, train):
    del train
    x = x.reshape(len(x), -1)  # [batch, 75]
    for width in (11, 13):
      x = nn.relu(nn.Dense(width)(x))
    return nn.Dense(steps.CLASSES)(x)


KERNELS = [(75, 11), (11, 13), (13, steps.CLASSES)]


def products(jaxpr):
  """Shapes of all products that a jaxpr's results depend on."""
  jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return _products(jaxpr)


def _products(jaxpr):
  shapes = []
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      shapes.append(equation.outvars[0].aval.shape)
    for value in jax.tree.leaves(list(equation.params.values())):
      if isinstance(value, core.ClosedJaxpr):
        shapes += _products(value.jaxpr)
      elif isinstance(value, core.Jaxpr):
        shapes += _products(value)
  return shapes


@pytest.mark.parametrize("n", [1, 2])
def test_the_step_differentiates_what_is_trained_only(n):
  trainable = lambda name: name.startswith("Dense_1")
  state, step, _ = steps.make(
    steps.get_config(),
    Net(),
    optax.adamw(0.1, weight_decay=0.1),
    accumulation_steps=n,
    trainable=trainable,
  )
  # The optimizer knows no others.
  sizes = {leaf.shape for leaf in jax.tree.leaves(state.opt_state)}
  assert sizes == {(), (11, 13), (13,)}
  batch = steps.make_batch()
  jaxpr = jax.make_jaxpr(step)(state, batch).jaxpr
  found = products(jaxpr)
  gradients = [shape for shape in found if {shape, shape[::-1]} & {*KERNELS}]
  assert len(gradients) == 1
  assert set(gradients[0]) == {11, 13}
  # Three forwards, the kernel's and that of its output; nothing before it.
  assert len(found) == 5
  new, metrics = step(state, batch)
  for name in ("Dense_0", "Dense_2"):
    jax.tree.map(
      np.testing.assert_array_equal, new.params[name], state.params[name]
    )
  moved = new.params["Dense_1"]["kernel"] - state.params["Dense_1"]["kernel"]
  assert jnp.abs(moved).min() > 0
  assert metrics["grad_norm"] > 0


def test_all_gradients_are_found_where_all_is_trained():
  state, step, _ = steps.make(steps.get_config(), Net())
  jaxpr = jax.make_jaxpr(step)(state, steps.make_batch()).jaxpr
  found = products(jaxpr)
  assert len(found) == 8
  assert len([s for s in found if {s, s[::-1]} & {*KERNELS}]) == 3
