"""Optimizers by name, with weight decay by parameter-name rules."""

import math
from collections.abc import Collection, Sequence
from typing import Any

import jax
import ml_collections
import optax

from training import paths, ranges, schedules
from training.ranges import Number

# The fields that not all of them use.
OPTIMIZERS = {
  "adamw": ("b1", "b2", "eps"),
  "adam": ("b1", "b2", "eps"),
  "sgd": ("momentum",),
  "rmsprop": ("rms_decay", "eps", "momentum"),
  "lamb": ("b1", "b2", "eps"),
  "lars": ("momentum", "trust_coefficient"),
}
RANGES = {
  "learning_rate": Number(0),
  "final_learning_rate": Number(0),
  "decay_factor": Number(0),
  "b1": Number(0, 1, below=True),
  "b2": Number(0, 1, below=True),
  # With 0 a gradient of 0 gives NaN.
  "eps": Number(0, above=True),
  "momentum": Number(0, 1, below=True),
  "rms_decay": Number(0, 1, below=True),
  "trust_coefficient": Number(0, above=True),
  "weight_decay": Number(0),
  "clip_norm": Number(0),
  "stem_factor": Number(0, 1, above=True),
}
# What nobody decays in transformers: biases, factors of normalisation and of
# layers, and what is looked up and not multiplied with, which are positions and
# learned tokens. A model need not have all of them.
DECAY_EXCLUDE = (
  "bias",
  "scale",
  ".+_layer_scale",
  "relative_bias_table",
  "position",
  "class_token",
  "scale_token",
  "threshold",
)


def default_config() -> ml_collections.ConfigDict:
  """Every field of `config.optimizer`, with AdamW's usual values."""
  return ml_collections.ConfigDict(
    dict(
      name="adamw",
      learning_rate=1e-3,
      schedule="cosine",
      warmup="0 steps",
      final_learning_rate=0.0,
      boundaries=(),
      decay_factor=0.1,
      b1=0.9,
      b2=0.999,
      eps=1e-8,
      momentum=0.9,
      rms_decay=0.9,
      trust_coefficient=0.001,
      weight_decay=0.0,
      # What no weight decay reaches, by path as `training.paths` says.
      decay_exclude=DECAY_EXCLUDE,
      clip_norm=0.0,  # Of the gradient; 0 does not clip.
      # Pairs (pattern of a path, factor of the learning rate); the first that
      # matches counts, and without one the factor is 1.
      learning_rate_rules=(),
      # Of the stem's learning rate against the head's; the layers between have
      # rates with a constant ratio from one to the next. 1 is none of this.
      stem_factor=1.0,
    )
  )


def create_optimizer(
  config: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Builds the optimizer: clipping, the named rule, decay, learning rate.

  Weight decay is decoupled from the gradient statistics in AdamW and LAMB
  (Loshchilov and Hutter 2019; You et al. 2020) and part of the gradient in
  Adam, SGD and RMSProp, where it equals an L2 loss of
  `weight_decay / 2 * |w|^2` as in the ResNet and EfficientNet recipes.

  LARS (You et al. 2017, arXiv 1708.03888) is what MAE and its successors probe
  with: arrays of two axes and more have the gradient, with its decay, scaled to
  `trust_coefficient` of the parameter's own norm, and all others have plain
  momentum, without decay whatever `decay_exclude` says. The learning rate comes
  after the momentum.

  Args:
    config: as `default_config`.
    schedule: step -> learning rate.

  Returns:
    An optax transformation.

  Raises:
    ValueError: for an unknown optimizer, a number out of its range, or a
      pattern that cannot be read.
  """
  ranges.check(config, RANGES, "optimizer.")
  decay = _weight_decay(config)
  rules = {
    "adamw": lambda: (
      optax.scale_by_adam(config.b1, config.b2, config.eps),
      decay,
    ),
    "adam": lambda: (
      decay,
      optax.scale_by_adam(config.b1, config.b2, config.eps),
    ),
    "lamb": lambda: (
      optax.scale_by_adam(config.b1, config.b2, config.eps),
      decay,
      optax.scale_by_trust_ratio(),
    ),
    "sgd": lambda: (
      decay,
      optax.trace(config.momentum, nesterov=True),
    ),
    "lars": lambda: (
      optax.masked(
        optax.chain(
          decay,
          optax.scale_by_trust_ratio(
            trust_coefficient=config.trust_coefficient
          ),
        ),
        lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
      ),
      optax.trace(config.momentum),
    ),
    # TensorFlow's form, which the published recipes used: epsilon inside the
    # root, accumulators that start at one, the learning rate before momentum.
    "rmsprop": lambda: (
      decay,
      optax.scale_by_rms(
        config.rms_decay, config.eps, initial_scale=1.0, eps_in_sqrt=True
      ),
    ),
  }
  if config.name not in rules:
    raise ValueError(
      f"optimizer.name={config.name!r} is not known; choose from "
      f"{', '.join(OPTIMIZERS)}."
    )
  steps = list(rules[config.name]())
  if config.clip_norm:
    steps.insert(0, optax.clip_by_global_norm(config.clip_norm))
  steps.append(optax.scale_by_learning_rate(schedule))
  if config.name == "rmsprop":
    steps.append(optax.trace(config.momentum))
  if config.learning_rate_rules:
    steps.append(_scale_by_rules(config.learning_rate_rules))
  return optax.chain(*steps)


def check_unused(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for a field that is set and would do nothing.

  Set is what differs from `default_config`. Of the optimizer and the schedule
  that are chosen, each uses some fields only.
  """
  default = default_config()
  kinds = (("name", OPTIMIZERS), ("schedule", schedules.SCHEDULES))
  for kind, uses in kinds:
    for field in {field for fields in uses.values() for field in fields}:
      users = [name for name, fields in uses.items() if field in fields]
      if config[field] != default[field] and config[kind] not in users:
        raise ValueError(
          f"optimizer.{field}={config[field]!r} does nothing with "
          f"optimizer.{kind}={config[kind]!r}: {', '.join(users)} would use "
          f"it. Leave it at {default[field]!r}."
        )


def decay_mask(params: Any, exclude: Sequence[str]) -> Any:
  """True for each parameter that decays: no pattern of `exclude` takes it."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: paths.first_match(exclude, paths.path_name(path)) is None,
    params,
  )


def group_by_rules(
  config: ml_collections.ConfigDict, names: Collection[str]
) -> dict[str, dict[str, list[str]]]:
  """Which parameters each rule for decay and for learning rates takes.

  Args:
    config: as `default_config`.
    names: the paths of all parameters, frozen ones too.

  Returns:
    By field of the config, what `paths.group_by_rule` returns.

  Raises:
    ValueError: if one that is not a default takes no parameter.
  """
  rates = paths.check_pairs(
    "optimizer.learning_rate_rules", config.learning_rate_rules
  )
  return {
    "decay_exclude": paths.group_by_rule(
      "optimizer.decay_exclude",
      config.decay_exclude,
      names,
      optional=DECAY_EXCLUDE,
    ),
    "learning_rate_rules": paths.group_by_rule(
      "optimizer.learning_rate_rules", rates, names
    ),
  }


def _scale_by_rules(
  rules: Sequence[tuple[str, float]],
) -> optax.GradientTransformation:
  patterns = paths.check_pairs("optimizer.learning_rate_rules", rules)
  for pattern, factor in rules:
    if not (ranges.is_number(factor) and 0 <= factor < math.inf):
      raise ValueError(
        f"optimizer.learning_rate_rules has {factor!r} for {pattern!r}; it "
        "must be a finite factor that is not negative."
      )

  def scale(path, update):
    index = paths.first_match(patterns, paths.path_name(path))
    return update if index is None else update * float(rules[index][1])

  return optax.stateless(
    lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates)
  )


def _weight_decay(
  config: ml_collections.ConfigDict,
) -> optax.GradientTransformation:
  paths.check_patterns("optimizer.decay_exclude", config.decay_exclude)
  if not config.weight_decay:
    return optax.identity()
  return optax.add_decayed_weights(
    config.weight_decay,
    mask=lambda params: decay_mask(params, config.decay_exclude),
  )
