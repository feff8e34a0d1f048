"""The keys of config.json, each of which is taken or has no effect."""

from collections.abc import Mapping
from typing import Any

# What changes nothing that a forward pass computes: how to train, generate and
# store it, other heads, and older names of keys that are always beside theirs.
# Dropout is a field of the model for those who train it further.
WITHOUT_EFFECT = frozenset(
  {
    "_name_or_path",
    "architectures",
    "dtype",
    "model_type",
    "torch_dtype",
    "transformers_version",
    "bos_token_id",
    "cls_token_id",
    "eos_token_id",
    "pad_token_id",
    "sep_token_id",
    "cache_implementation",
    "deterministic_flash_attn",
    "gradient_checkpointing",
    "reference_compile",
    "reorder_and_upcast_attn",
    "repad_logits_with_grad",
    "use_cache",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "classifier_dropout",
    "embd_pdrop",
    "embedding_dropout",
    "hidden_dropout_prob",
    "mlp_dropout",
    "resid_pdrop",
    "initializer_cutoff_factor",
    "initializer_range",
    "output_router_logits",
    "pretraining_tp",
    "router_aux_loss_coef",
    "sparse_pred_ignore_index",
    "sparse_prediction",
    "classifier_pooling",
    "id2label",
    "label2id",
    "problem_type",
    "task_specific_params",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "n_ctx",
  }
)
_REQUIRED, _AS_ABSENT = object(), object()
_OFF = (None, False, "", [], {})


class Options:
  """Keys and values, each of which has to be taken or to have no effect.

  Problems are gathered, so that one error names all.

  Args:
    values: the object in config.json, or one within it.
    prefix: what comes before a key in messages.

  Attributes:
    kind: the value of "model_type", None without.
  """

  def __init__(self, values: Mapping[str, Any], prefix: str = ""):
    self._left = {k: v for k, v in values.items() if k not in WITHOUT_EFFECT}
    self._prefix = prefix
    self.kind = values.get("model_type")
    self._problems: list[str] = []

  def take(
    self, key: str, default: Any = _REQUIRED, null: Any = _AS_ABSENT
  ) -> Any:
    """Returns the value of a key.

    Args:
      key: a key.
      default: what it is if it is absent; a problem, and 0, without a default.
      null: what it is if it is null; as if it were absent, if not given.
    """
    absent = key not in self._left
    value = self._left.pop(key, None)
    if value is not None:
      return value
    if not absent and null is not _AS_ABSENT:
      return null
    if default is _REQUIRED:
      self.note(f"{self._prefix}{key} is missing")
      return 0
    return default

  def choose(self, key: str, choices: Mapping[str, Any], default: str) -> Any:
    """Returns what the value of a key stands for."""
    value = self.take(key, default)
    if value not in choices:
      self.note(f"{self._prefix}{key} is {value!r}; we have {sorted(choices)}")
    return choices.get(value)

  def expect(self, **expected: Any) -> None:
    """Notes each key that is there with another value than the expected."""
    for key, wanted in expected.items():
      value = self.take(key, wanted)
      if value != wanted:
        self.note(f"{self._prefix}{key} is {value!r}; we have {wanted!r} alone")

  def drop(self, *keys: str) -> None:
    """Takes keys that, given the others, have no effect."""
    for key in keys:
      self._left.pop(key, None)

  def within(
    self, key: str, defaults: Mapping[str, Any] | None = None
  ) -> "Options | None":
    """Returns the keys of an object, None if it is absent or empty.

    With `defaults` it has those too where it has no value for them.
    """
    values = self.take(key, None)
    if defaults is not None:
      values = {**defaults, **(values or {})}
    if not values:
      return None
    child = Options(values, f"{self._prefix}{key}.")
    child._problems = self._problems
    return child

  def note(self, problem: str) -> None:
    """Adds a problem to those that `check` raises."""
    self._problems.append(problem)

  def note_unknown(self) -> None:
    """Adds all keys that nobody took, unless what they ask for is off."""
    for key, value in self._left.items():
      if value not in _OFF:
        self.note(
          f"{self._prefix}{key} is {value!r}, a key that we do not know"
        )

  def check(self) -> None:
    """Raises ValueError with all problems, if there are any."""
    self.note_unknown()
    if self._problems:
      raise ValueError(
        "config.json asks for what we have not:\n  "
        + "\n  ".join(self._problems)
      )
