"""Configs of language models, and nanoGPT's setting to the integer."""

import pathlib

import jax
import pytest

import experiment
from configs import language
from input_pipeline import text
from input_pipeline.text import pipeline, tokenizers
from training import optimizers, paths

# Never part of the project; see docs/language.md for where it comes from.
# Beside the project, never in it.
SHAKESPEARE = (
  pathlib.Path(__file__).parents[3] / "shared/data/tinyshakespeare.txt"
)
# As published, with tables of embeddings for the tokens of these tests.
PARAMETERS = {
  "gpt2": 124_439_808 - 50257 * 768 + 257 * 768,
  "1b": 1_235_814_400 - 128256 * 2048 + 257 * 2048,
}


def info(vocabulary_size):
  return pipeline.TextInfo(
    vocabulary_size, tokenizers.Bytes(), num_train_examples=10_000
  )


@pytest.mark.parametrize("variant", language.VARIANTS)
def test_every_variant_is_created_without_data(variant):
  config = language.get_config(variant)
  config.mesh.update(dict(data=1, fsdp=1))
  setup = experiment.create(config, jax.devices()[:1], info(257))
  sizes = paths.flatten_with_names(setup.state.params)
  if variant in PARAMETERS:
    assert sum(x.size for x in sizes.values()) == PARAMETERS[variant]
  # Matrices decay, and biases and factors do not, whatever their shape.
  mask = optimizers.decay_mask(
    setup.state.params, config.optimizer.decay_exclude
  )
  for name, decays in paths.flatten_with_names(mask).items():
    assert decays == (not name.endswith(("bias", "scale"))), name


def test_nanogpts_setting_has_its_parameters():
  config = language.get_config("shakespeare_cpu")
  config.mesh.update(dict(data=1, fsdp=1))
  setup = experiment.create(config, jax.devices()[:1], info(65))
  names = paths.flatten_with_names(setup.state.params)
  assert sum(x.size for x in names.values()) == 804_096
  assert not any(name.endswith("bias") for name in names)
  assert setup.clock.total_steps == 2000


def test_initial_weights_are_nanogpts():
  config = language.get_config("shakespeare_cpu")
  config.mesh.update(dict(data=1, fsdp=1))
  params = experiment.create(config, jax.devices()[:1], info(65)).init().params
  for name, x in paths.flatten_with_names(params).items():
    if name.endswith("scale"):
      assert (x == 1).all()
      continue
    residual = "mixer/out/" in name or "mlp/shrink/" in name
    deviation = 0.02 / (8**0.5 if residual else 1)
    assert float(x.std()) == pytest.approx(deviation, rel=0.05), name


@pytest.mark.skipif(
  not SHAKESPEARE.exists(), reason=f"there is no {SHAKESPEARE}"
)
def test_tiny_shakespeare_is_split_as_nanogpt_does():
  config = language.get_config("shakespeare_cpu")
  config.data.files = str(SHAKESPEARE)
  found = text.dataset_info(config.data)
  assert found.vocabulary_size == 65
  # All but the first of the last 111,540 characters, in blocks of 64.
  assert found.eval_tokens == found.eval_bytes == 111_539
  assert found.num_eval_examples == -(-111_539 // 64)
  assert found.source["bytes"] == 1_115_394
  assert text.num_train_examples(config.data) == -(-1_003_853 // 64)
