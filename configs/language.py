"""Language models on text: the embedded one, or any files.

  python train.py --config=configs/language.py:tiny --workdir=runs/language

Variants:
- `tiny` (the default): a byte-level model on the text that comes with Python,
  which trains in minutes on two cores.
- `shakespeare_cpu`: nanoGPT's setting for a CPU, to compare with; it needs
  --config.data.files=<tiny Shakespeare>.
- `gpt2`: GPT-2 of 124M parameters with a tokenizer.json and files of yours.
- `1b`: Llama 3.2's smallest, 1.24B parameters, on 8,192 tokens a row, with its
  tokenizer.json and files of yours.
- `study`: what the studies of `tools/studies` have in common, some 25 CPU
  seconds; see docs/results/language.md.
- `test`: a few steps of a very small model, for tests and notebooks.
"""

import ml_collections

from configs import common

VARIANTS = ("tiny", "shakespeare_cpu", "gpt2", "1b", "study", "test")


def get_config(variant: str = "tiny") -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("language", variant, VARIANTS)
  config = common.get_config("language_modeling")
  config.optimizer.b2 = 0.99
  config.optimizer.clip_norm = 1.0
  config.optimizer.weight_decay = 0.1
  config.optimizer.decay_exclude = ("scale", "bias")
  {
    "tiny": _tiny,
    "shakespeare_cpu": _shakespeare_cpu,
    "gpt2": _gpt2,
    "1b": _1b,
    "study": _study,
    "test": _test,
  }[variant](config)
  return config


def _tiny(config: ml_collections.ConfigDict) -> None:
  config.model.update(dict(name="transformer", width=128, depth=4, heads=4))
  config.model.mlp_width = 344
  config.data.length = 256
  config.batch_size = 8
  config.eval_batch_size = 16
  common.schedule(
    config, steps=1200, every=600, save_every=300, rates=(3e-3, 1e-4)
  )


def _shakespeare_cpu(config: ml_collections.ConfigDict) -> None:
  """`config/train_shakespeare_char.py` with the README's options for a CPU."""
  config.model = _gpt2_model(width=128, depth=4, heads=4, max_length=64)
  # Exact GELU, and no biases.
  config.model.update(dict(mlp="gelu", mlp_bias=False, norm_bias=False))
  config.model.update(dict(attention_bias=False, out_bias=False))
  config.data.tokenizer = "characters"
  config.data.packing = "stream"
  config.data.random_offsets = True
  config.data.length = 64
  config.batch_size = 12
  config.eval_batch_size = 64
  common.schedule(
    config, steps=2000, every=250, save_every=500, rates=(1e-3, 1e-4)
  )


def _gpt2(config: ml_collections.ConfigDict) -> None:
  """nanoGPT's `config/train_gpt2.py`, but for where rows begin."""
  config.model = _gpt2_model()
  config.data.packing = "stream"
  config.data.length = 1024
  config.dtype = "bfloat16"
  config.batch_size = 480
  config.eval_batch_size = 64
  common.schedule(
    config,
    steps=600000,
    every=5000,
    save_every=2000,
    rates=(6e-4, 6e-5),
    warmup="2000 steps",
  )
  config.optimizer.b2 = 0.95


def _1b(config: ml_collections.ConfigDict) -> None:
  """The network as published; the recipe is ours: half a million tokens a step.

  Parameters, moments and gradients are split over all chips, as a chip of 16 GB
  does not hold them.
  """
  config.model = ml_collections.ConfigDict(dict(name="llama3_2_1b"))
  # One layer to compile, and the input of each kept to compute it again.
  config.model.update(dict(scan_layers=True, remat=True))
  config.data.packing = "stream"
  config.data.length = 8192
  config.dtype = "bfloat16"
  config.mesh.update(dict(data=1, fsdp=-1))
  config.batch_size = 64
  config.eval_batch_size = 64
  common.schedule(
    config,
    steps=100000,
    every=2000,
    save_every=500,
    rates=(3e-4, 3e-5),
    warmup="2000 steps",
  )
  config.optimizer.b2 = 0.95


def _study(config: ml_collections.ConfigDict) -> None:
  config.model.update(dict(name="transformer", width=64, depth=4, heads=4))
  config.model.mlp_width = 172
  config.data.length = 128
  config.batch_size = 16
  config.eval_batch_size = 32
  common.schedule(config, steps=400, every=400, rates=(3e-3, 1e-4))


def _test(config: ml_collections.ConfigDict) -> None:
  config.model.update(dict(name="transformer", width=32, depth=2, heads=2))
  config.data.length = 32
  config.batch_size = 8
  config.eval_batch_size = 256
  common.schedule(config, steps=12, every=6, save_every=3)
  config.optimizer.learning_rate = 1e-2


def _gpt2_model(**fields) -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(dict(name="gpt2", **fields))
