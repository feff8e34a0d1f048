"""Tokens per second of language models, beside PyTorch's transformers.

  python -m benchmarks.language_throughput --sizes=small,medium

The same network in both, made from one config.json, with the same optimizer.
A training step is forward, backward, clipping and AdamW; decoding adds to a
prompt the tokens that are most probable, prompt included in the time. What
compiles has done so before: the seconds that took are reported for themselves.

Ours and theirs run in turns in one process, so that whatever else the machine
does meets both; the ratio is the median of the rounds' ratios. Theirs is the
faster of eager and, with --compile_theirs, compiled, in a turn before.

`--clock=cpu` counts the CPU seconds of the process instead of the wall's, for
machines that are not idle; run it on one core (`taskset -c 0`, --threads=1),
as threads that wait for one another may spin.
"""

import json
import platform
import statistics
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np
from absl import app, flags

from benchmarks import flag_checks, language_cases, language_peers, turns
from configs import common
from input_pipeline import text
from models import decoding, huggingface, registry
from models.transformer import Transformer
from tasks.language_modeling import LanguageModeling
from training import host_memory, optimizers, train_state, train_step

_SIZES = flag_checks.define_names(
  "sizes",
  ["small", "medium"],
  language_cases.SIZES,
  "Keys of language_cases.SIZES.",
)
_FAMILIES = flag_checks.define_names(
  "families",
  list(language_cases.FAMILIES),
  language_cases.FAMILIES,
  "Which networks.",
)
# Not --passes and --compile: a process may import more than one benchmark.
_MEASURED = flag_checks.define_names(
  "measure", ["train", "decode"], ["train", "decode"], "What to time."
)
_ROWS = flags.DEFINE_list("decode_rows", ["1", "8"], "Rows that are decoded.")
_THREADS = flags.DEFINE_integer(
  "threads", 2, "Of PyTorch; XLA has one a core.", lower_bound=1
)
_COMPILE = flags.DEFINE_bool(
  "compile_theirs", True, "torch.compile theirs too."
)
_CLOCK = flags.DEFINE_enum("clock", "wall", list(turns.CLOCKS), "See above.")


def main(argv: Sequence[str]) -> None:
  """Prints a row for each network and pass."""
  del argv
  host_memory.keep_freed_memory()
  for size in _SIZES.value:
    for family in _FAMILIES.value:
      for which in _MEASURED.value:
        for rows in [0] if which == "train" else map(int, _ROWS.value):
          row = measure(family, size, rows)
          print(
            json.dumps(row) if turns.JSON.value else describe(row), flush=True
          )


def measure(family: str, size: str, rows: int) -> dict[str, str | float]:
  """Times a training step, or with `rows` decoding so many, in turns."""
  case = language_cases.SIZES[size]
  peer = language_peers.Peer(family, case, _THREADS.value)
  shape = (rows or case.batch, case.length + 1)
  tokens = np.random.default_rng(0).integers(
    0, case.vocabulary, shape, np.int32
  )
  fields = huggingface.fields(
    {"model_type": family, **language_cases.config(family, case)}
  )
  if rows:
    amount = rows * (case.length - case.prompt)
    prompts = tokens[:, : case.prompt]
    ours = our_decoding(fields, prompts, case.length - case.prompt)
  else:
    amount = case.batch * case.length
    ours = our_training(fields, tokens)
  theirs, compile_s = {}, {"ours": turns.seconds_of(ours)}
  for compiled in [False, True][: 1 + _COMPILE.value]:
    name = "compiled" if compiled else "eager"
    if rows:
      run = peer.decode(prompts, case.length - case.prompt, compiled)
    else:
      run = peer.train(tokens[:, :-1], tokens[:, 1:], compiled)
    compile_s[name] = turns.seconds_of(run)
    theirs[name] = run

  def rate(run):
    return turns.rate(run, amount, turns.SECONDS.value, _CLOCK.value)

  fastest = max(theirs, key=lambda name: rate(theirs[name]))
  rounds = [
    (rate(ours), rate(theirs[fastest])) for _ in range(turns.ROUNDS.value)
  ]
  return {
    "network": f"{family} {size}",
    "parameters": peer.parameters(),
    "pass": f"decode {rows}" if rows else "train",
    "device": _device(),
    "clock": _CLOCK.value,
    "threads": _THREADS.value,
    "ours_tokens_per_s": statistics.median(a for a, _ in rounds),
    "peer": f"transformers, {fastest}",
    "peer_tokens_per_s": statistics.median(b for _, b in rounds),
    "ratio": statistics.median(a / b for a, b in rounds),
    "ratios": [round(a / b, 2) for a, b in rounds],
    "first_run_s": {name: round(s, 1) for name, s in compile_s.items()},
  }


def describe(row: dict[str, str | float]) -> str:
  """One line for people."""
  return (
    f"{row['network']} ({row['parameters']:,}), {row['pass']}, on "
    f"{row['device']}: {row['ours_tokens_per_s']:,.0f} tokens/s, "
    f"{row['peer']} {row['peer_tokens_per_s']:,.0f}, ratio {row['ratio']:.2f} "
    f"of {row['ratios']}; first runs took {row['first_run_s']} s"
  )


def our_training(fields: dict, tokens: np.ndarray) -> turns.Run:
  """A function that takes one training step and waits for it.

  Args:
    fields: of the transformer.
    tokens: int32 [rows, length + 1].
  """
  config = common.get_config("language_modeling")
  config.data.packing = "stream"
  config.data.length = tokens.shape[1] - 1
  config.model = ml_collections.ConfigDict({"name": "transformer", **fields})
  del config.model["vocabulary_size"]
  config.optimizer.weight_decay = language_peers.WEIGHT_DECAY
  config.optimizer.b2 = language_peers.BETAS[1]
  config.optimizer.clip_norm = language_peers.CLIP
  info = text.TextInfo(fields["vocabulary_size"], tokenizer=None)
  task = LanguageModeling(config, info)

  def schedule(step):
    del step
    return language_peers.LEARNING_RATE

  tx = optimizers.create_optimizer(config.optimizer, schedule)
  state = jax.jit(
    lambda key: train_state.create_state(task.init(key), tx, key, use_ema=False)
  )(jax.random.key(0))
  step = jax.jit(
    train_step.make_train_step(task, tx, schedule, config), donate_argnums=0
  )
  targets = tokens[:, 1:]
  batch = jax.device_put(
    {
      "tokens": tokens[:, :-1],
      "targets": targets,
      "weights": np.ones(targets.shape, np.float32),
    }
  )

  def run() -> None:
    nonlocal state
    state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))

  return run


def our_decoding(fields: dict, prompts: np.ndarray, count: int) -> turns.Run:
  """A function that decodes `count` tokens after prompts [rows, length]."""
  model = registry.build(Transformer, fields)
  variables = jax.jit(model.init)(jax.random.key(0), prompts)
  prompts = prompts.tolist()

  def run() -> None:
    decoding.generate(model, variables, prompts, max_tokens=count)

  return run


def _device() -> str:
  device = jax.devices()[0]
  return (
    f"{platform.machine()} CPU"
    if device.platform == "cpu"
    else device.device_kind
  )


if __name__ == "__main__":
  app.run(main)
