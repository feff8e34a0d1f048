"""Labels of sequences that are made up, by the name of their source.

  python train.py --config=configs/sequences.py:mqar --workdir=runs/mqar

Variants that train in minutes on two cores:
- `cited_facts`: the value of a key, and which of 4 to 16 passages says so.
- `digits`: which of ten a handwritten digit is, 16 patches of 2 x 2 pixels.
- `marked_word`: which sentence holds the marked word, for encoders.
- `mqar`: multi-query associative recall, which value came with a key.
- `near_and_far`: repeat the last token, or recall what came with a key.
- `reversal`: a string of symbols backwards.
- `grammar`: the hidden state of a small random grammar at each of its symbols,
  across gaps.

SelectivBench's four tasks (arXiv 2601.12598), whose smallest model has width
256 and 8 layers; for gated DeltaNet, whose values are as wide as its keys here:
- `grammar_complexity`: D symbols of D states each, 20 of the paper's 20 to 40:
  depth and ambiguities, and vocabulary_size = D + 1, of data.options.
- `grammar_size`: 40 of 40, for models of several widths.
- `grammar_gaps`: gaps of 1 to 10 blanks, and noise.
- `grammar_wrong_symbols`: gaps of symbols that cannot follow.
- `grammar_generalization`: trained as `grammar_gaps`, evaluated with gaps of 1
  to 50 blanks; --config.data.eval_options.gaps says others.
"""

import ml_collections

from configs import common
from input_pipeline.sequences import sources

# Of short trainings, the highest and the last.
_RATES = (3e-3, 1e-4)

# Linear mixers in one frame, as fla's layers have it.
_RECURRENT = {
  "feature_map": "identity",
  "normalizer": "identity",
  "qk_norm": "unit",
  "short_convolution": 4,
  "output_norm": True,
}
# Options of the mixer `linear` by what the literature calls them.
RECURRENT_MIXERS = {
  "linear": _RECURRENT,
  "gated linear": {**_RECURRENT, "decay": "data"},
  "GLA": {**_RECURRENT, "decay": "feature"},
  "DeltaNet": {**_RECURRENT, "update": "delta"},
  "gated DeltaNet": {**_RECURRENT, "update": "delta", "decay": "data"},
}


def get_config(variant: str = "mqar") -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("sequences", variant, VARIANTS)
  config = common.get_config("sequence_labeling")
  # As "grammar" of "grammar_gaps".
  config.data.source = next(filter(variant.startswith, sources.SOURCES))
  config.optimizer.clip_norm = 1.0
  config.optimizer.weight_decay = 0.1
  config.optimizer.decay_exclude = ("scale", "bias")
  VARIANTS[variant](config)
  return config


def _mqar(config: ml_collections.ConfigDict) -> None:
  config.data.options.update(length=64, pairs=(4, 8), vocabulary_size=128)
  config.model.update(dict(width=64, depth=2, heads=2, mlp_width=128))
  config.batch_size = 64
  config.eval_batch_size = 100
  common.schedule(config, steps=600, every=200, rates=_RATES)


def _digits(config: ml_collections.ConfigDict) -> None:
  config.data.update(train_examples=1437, eval_examples=1000)
  config.model.update(dict(width=32, depth=6, heads=4, mlp="gelu"))
  config.model.update(dict(causal=False, tied_head=False, scan_layers=True))
  config.model.update(dict(position_encoding="learned", max_length=16))
  config.model.update(dict(norm="layer_norm", mlp_bias=True))
  # With 0.02 four hundred steps of so narrow a model do not get far.
  config.model.init_scale = 0.1
  config.batch_size = 32
  config.eval_batch_size = 200
  common.schedule(config, steps=400, every=400, rates=_RATES)


def _grammar(config: ml_collections.ConfigDict) -> None:
  config.data.options.update(vocabulary_size=9, ambiguities=8, depth=4)
  config.data.options.update(elements=40, gaps=(1, 10), length=320)
  # Of the first seeds the one whose strings begin with two pairs of states that
  # have the same symbol, so that even a perfect predictor cannot tell all.
  config.data.options.grammar_seed = 5
  config.data.eval_options.gaps = (1, 10)
  config.data.eval_examples = 200
  config.model.update(dict(width=64, depth=2, heads=2, mlp_width=128))
  config.model.update(dict(mixers=("linear",), tied_head=False))
  config.model.position_encoding = "none"
  config.model.mixer_options = {"linear": RECURRENT_MIXERS["gated DeltaNet"]}
  config.batch_size = 16
  config.eval_batch_size = 50
  common.schedule(config, steps=600, every=200, rates=_RATES)


def _near_and_far(config: ml_collections.ConfigDict) -> None:
  config.model.update(dict(width=64, depth=4, heads=4, mlp_width=64))
  # Within 300 steps heads find places with this, and not with 0.02.
  config.model.init_scale = 0.125
  config.batch_size = 32
  config.eval_batch_size = 100
  common.schedule(config, steps=300, every=100, rates=_RATES)


def _marked_word(config: ml_collections.ConfigDict) -> None:
  config.model.update(dict(width=64, depth=1, heads=4, mlp_width=128))
  config.model.update(dict(causal=False, tied_head=False, max_length=64))
  config.model.position_encoding = "learned"
  # Small weights stand still for most of so short a training.
  config.model.init_scale = 0.125
  config.batch_size = 32
  config.eval_batch_size = 100
  common.schedule(config, steps=600, every=600, rates=_RATES)


def _reversal(config: ml_collections.ConfigDict) -> None:
  config.model.update(dict(width=64, depth=2, heads=2, mlp_width=128))
  config.batch_size = 64
  config.eval_batch_size = 100
  common.schedule(config, steps=600, every=600, rates=_RATES)


def _cited_facts(config: ml_collections.ConfigDict) -> None:
  config.model.update(dict(width=64, depth=4, heads=4, mlp_width=128))
  # Attention alone had not begun to copy after 800 steps.
  config.model.mixers = ("convolution", "full")
  config.model.init_scale = 0.125
  config.batch_size = 32
  config.eval_batch_size = 100
  common.schedule(config, steps=600, every=600, rates=_RATES)


def _selectivbench(config: ml_collections.ConfigDict) -> None:
  """What the paper's four tasks have in common; a learning rate of three."""
  config.data.train_examples = 200_000
  config.data.num_threads = 8
  config.model.update(dict(width=256, depth=8, heads=4, mlp="none"))
  config.model.update(dict(mixers=("linear",), tied_head=False))
  config.model.update(dict(norm="layer_norm", norm_placement="post"))
  config.model.update(dict(position_encoding="none", dropout_rate=0.2))
  config.model.mixer_options = {"linear": RECURRENT_MIXERS["gated DeltaNet"]}
  config.dtype = "bfloat16"
  config.batch_size = 64
  config.eval_batch_size = 20
  config.train_for = "200000 examples"
  config.evaluate_every = "5000 examples"
  config.checkpoint.every = "20000 examples"
  config.optimizer.weight_decay = 0.0
  config.optimizer.learning_rate = 1e-3
  config.optimizer.warmup = "476 steps"


def _complexity(config: ml_collections.ConfigDict) -> None:
  _selectivbench(config)
  config.data.options.update(vocabulary_size=21, ambiguities=20, depth=20)


def _gaps(config: ml_collections.ConfigDict) -> None:
  _selectivbench(config)
  config.data.options.update(gaps=(1, 10), noise=0.2)
  config.data.eval_options.gaps = (1, 10)


def _wrong_symbols(config: ml_collections.ConfigDict) -> None:
  _selectivbench(config)
  config.data.options.update(wrong_symbols=True, gap_probability=0.1)
  config.data.options.gap_start = 50


def _generalization(config: ml_collections.ConfigDict) -> None:
  _gaps(config)
  config.data.eval_options.gaps = (1, 50)


VARIANTS = {
  "cited_facts": _cited_facts,
  "digits": _digits,
  "marked_word": _marked_word,
  "mqar": _mqar,
  "grammar": _grammar,
  "grammar_complexity": _complexity,
  "grammar_size": _selectivbench,
  "grammar_gaps": _gaps,
  "grammar_wrong_symbols": _wrong_symbols,
  "grammar_generalization": _generalization,
  "near_and_far": _near_and_far,
  "reversal": _reversal,
}
