"""Optimizers by name, with weight decay by parameter-name rules."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import optax

from training import paths

OPTIMIZERS = ("adamw", "adam", "sgd", "rmsprop", "lamb")


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
      weight_decay=0.0,
      # Parameters whose path matches are not decayed. MaxViT's rule is this
      # one; ResNet-RS decays everything but normalisation.
      decay_exclude=r"bias|scale",
      clip_norm=0.0,
      # Pairs (pattern of a parameter's path, factor of its learning rate); the
      # first that matches counts, and without one the factor is 1.
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

  Args:
    config: as `default_config`.
    schedule: step -> learning rate.

  Returns:
    An optax transformation.

  Raises:
    ValueError: for an unknown optimizer or a pattern that is no regular
      expression.
  """
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


def freeze(
  tx: optax.GradientTransformation, trainable: Callable[[str], bool]
) -> optax.GradientTransformation:
  """Leaves parameters as they are whose path is not trainable, without state.

  Weight decay does not reach them either.
  """

  def label(params):
    return jax.tree_util.tree_map_with_path(
      lambda path, _: "train" if trainable(paths.path_name(path)) else "freeze",
      params,
    )

  return optax.partition({"train": tx, "freeze": optax.set_to_zero()}, label)


def decay_mask(params: Any, exclude: str) -> Any:
  """True for each parameter that decays: its path does not match `exclude`."""
  pattern = re.compile(exclude) if exclude else None
  return jax.tree_util.tree_map_with_path(
    lambda path, _: not (pattern and pattern.search(paths.path_name(path))),
    params,
  )


def check_rules(config: ml_collections.ConfigDict, params: Any) -> None:
  """Raises ValueError if a rule for learning rates matches no parameter.

  Args:
    config: as `default_config`.
    params: a tree with the paths of all parameters, frozen ones too.
  """
  names = paths.flatten_with_names(params)
  for pattern, _ in config.learning_rate_rules:
    if not any(re.search(pattern, name) for name in names):
      raise ValueError(
        f"optimizer.learning_rate_rules has {pattern!r}, which matches no "
        f"parameter; there are {', '.join(names)}."
      )


def _scale_by_rules(
  rules: Sequence[tuple[str, float]],
) -> optax.GradientTransformation:
  compiled = []
  for rule in rules:
    if len(rule) != 2 or not isinstance(rule[1], (int, float)) or rule[1] < 0:
      raise ValueError(
        f"optimizer.learning_rate_rules has {rule!r}; each must be a pair "
        "(pattern of a path, factor that is not negative)."
      )
    pattern = _compile("learning_rate_rules", rule[0])
    compiled.append((pattern, float(rule[1])))

  def scale(path, update):
    name = paths.path_name(path)
    factors = (f for pattern, f in compiled if pattern.search(name))
    return update * next(factors, 1.0)

  return optax.stateless(
    lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates)
  )


def _compile(field: str, pattern: str) -> re.Pattern[str]:
  try:
    return re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f"optimizer.{field}={pattern!r} is not a regular expression: {error}."
    ) from None


def _weight_decay(
  config: ml_collections.ConfigDict,
) -> optax.GradientTransformation:
  _compile("decay_exclude", config.decay_exclude)
  if not config.weight_decay:
    return optax.identity()
  return optax.add_decayed_weights(
    config.weight_decay,
    mask=lambda params: decay_mask(params, config.decay_exclude),
  )
