"""Recipes of light modules against what scripts say, and equal sizes."""

import jax
import jax.numpy as jnp
import pytest

import models
from configs import fashion_mnist, mobilenet, patch_mixers


def test_the_script_of_ninformer():
  config = patch_mixers.get_config("ninformer")
  model = models.create(config.model.name)
  assert (model.width, model.depth, model.dropout_rate) == (256, 4, 0.5)
  assert (config.batch_size, config.train_for) == (128, "100 epochs")
  optimizer = config.optimizer
  assert (optimizer.name, optimizer.schedule) == ("adamw", "constant")
  assert (optimizer.learning_rate, optimizer.weight_decay) == (1e-3, 0.0)
  assert config.data.train_transform == "shift(pixels=4)|flip"
  assert "shift" not in config.data.eval_transform


def test_the_script_of_ela():
  config = mobilenet.get_config("v2_ela_base")
  assert (config.batch_size, config.train_for) == (256, "200 epochs")
  optimizer = config.optimizer
  assert (optimizer.name, optimizer.momentum) == ("sgd", 0.9)
  assert (optimizer.learning_rate, optimizer.weight_decay) == (0.1, 1e-4)
  assert config.model.dropout_rate == 0.1


def _parameters(config):
  fields = config.model.to_dict()
  model = models.create(fields.pop("name"), **{"num_classes": 10, **fields})
  side, channels = config.data.image_size, config.data.channels
  image = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), image)
  return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def test_networks_on_patches_have_equal_sizes():
  names = ("digits", "mlp_digits", "ninformer_digits")
  counts = [_parameters(patch_mixers.get_config(name)) for name in names]
  assert counts == [28_458, 28_346, 28_522]
  for name in names:
    other = patch_mixers.get_config(name.replace("digits", "fashion_mnist"))
    assert other.model == patch_mixers.get_config(name).model
    assert other.data.name == "fashion_mnist"


@pytest.mark.parametrize("variant", fashion_mnist.VARIANTS)
def test_gates_on_fashion_mnist(variant):
  config = fashion_mnist.get_config(variant)
  assert config.model.gate == variant
  plain = _parameters(fashion_mnist.get_config("none"))
  assert (_parameters(config) > plain) == (variant != "none")
  assert config.data.name == "fashion_mnist"


def test_unknown_variants():
  for recipes in (fashion_mnist, mobilenet, patch_mixers):
    with pytest.raises(ValueError, match="has no variant 'v9'; it has "):
      recipes.get_config("v9")
