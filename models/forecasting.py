"""Models that forecast a state from those before it, of parts to choose from.

"Deconstructing Recurrence, Attention, and Gating" (arXiv 2410.02654) takes
transformers and gated recurrent networks apart into recurrence, attention and
gates, and puts them together again. Here they are fields of one class. What of
the paper could not be read, formulas and sizes, is ours, and said to be so at
the parts (`models/merging.py`, `models/lag_attention.py`).
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import (
  feed_forward,
  lag_attention,
  layers,
  merging,
  normalization,
  recurrent_cells,
  registry,
  taps,
)

Carry = dict[str, Any]


class Forecaster(taps.Tapped):
  """Predicts the next state after each of those that it is given.

  A layer is three branches one after another, each of which may be left out,
  merged with the stream x by a gate G:

    x = G(x, cell(norm(x)))
    x = G(x, attention(norm(x)))
    x = G(x, feed-forward(norm(x)))

  Without a gate ("none") a cell reads the stream as it is, as stacks of
  recurrent layers usually do. The stream is float32.

  With a cell, or with `recurrence`, the model carries a state from call to
  call: those of its cells, and keys and values of the last `window` - 1 times.
  Otherwise it is *stateless*, begins anew in each window of at most `window`
  states, and to go on is to read the last window once more.

  Attributes:
    size: numbers of a state.
    width: channels of the stream.
    depth: layers.
    cell: a key of `recurrent_cells.CELLS`, or "none".
    micro_steps: layers within a step of the cell "rhn".
    transform_bias: what the bias of its transform gate begins at.
    cell_gate: how a cell's output joins the stream, of `merging.KINDS`.
    attention: whether layers attend to the last states of the stream.
    heads: of the attention.
    window: how many states it sees.
    recurrence: without a cell, whether keys and values are carried on, as in
      Transformer-XL. A cell always carries its state.
    feed_forward: hidden width of the feed-forward branch over `width`; 0 for
      none.
    gate: how attention and feed-forward branch join the stream.
    increment: whether the output is what is added to the state that came last.
    implementation: which implementation of the attention runs; see
      `attention.kernels.dispatch`.
    dtype: dtype of the products.
    param_dtype: dtype of the parameters.
    remat: whether layers are computed again in the backward pass.
  """

  size: int = 8
  width: int = 64
  depth: int = 1
  cell: str = "none"
  micro_steps: int = 3
  transform_bias: float = -2.0
  cell_gate: str = "none"
  attention: bool = False
  heads: int = 4
  window: int = 16
  recurrence: bool = False
  feed_forward: int = 0
  gate: str = "additive"
  increment: bool = True
  implementation: str = "auto"
  dtype: layers.Dtype = jnp.float32
  param_dtype: layers.Dtype = jnp.float32
  remat: bool = False

  def setup(self):
    self._check()
    layer = nn.remat(ForecastingLayer) if self.remat else ForecastingLayer
    options = {
      name: getattr(self, name)
      for name in ForecastingLayer.__dataclass_fields__
      if name not in ("parent", "name")
    }
    self.embed = self._dense(self.width)
    self.layer = [layer(**options) for _ in range(self.depth)]
    if self.has_skips:
      self.norm = normalization.LayerNorm(param_dtype=self.param_dtype)
    # A model that knows nothing yet says that all stays as it is.
    self.out = self._dense(self.size, kernel_init=nn.initializers.zeros)

  @property
  def stateless(self) -> bool:
    """Whether each window begins anew."""
    return self.cell == "none" and not self.recurrence

  @property
  def has_skips(self) -> bool:
    """Whether a stream goes past branches, so that its size may grow."""
    gates = self.cell_gate != "none" and self.cell != "none"
    return gates or self.attention or self.feed_forward > 0

  def __call__(
    self, states: jax.Array, carry: Carry | None = None, train: bool = False
  ) -> tuple[jax.Array, Carry]:
    """Predicts what follows each state.

    Args:
      states: floating point [batch, time, size], each number with mean 0 and
        deviation 1 or so.
      carry: to go on from, what a call before returned, or `init_carry`; None
        begins anew. A stateless model takes none.
      train: makes no difference.

    Returns:
      (predictions, carry): float32 [batch, time, size], the states one time
      later; and what the next call, or `step`, goes on from.

    Raises:
      ValueError: for states of another shape, or more than a stateless model's
        window, or a carry that it has no use for.
    """
    del train
    self._check_states(states)
    batch, time, _ = states.shape
    valid = jnp.ones((batch, time), bool)
    if not self.stateless:
      carry = self.init_carry(batch) if carry is None else carry
      return self._run(states, valid, carry)
    if carry is not None or time > self.window:
      raise ValueError(
        f"states has {time} times, and carry is "
        f"{'None' if carry is None else 'given'}; a stateless model takes at "
        f"most window={self.window} of them, and no carry"
      )
    empty = self._empty_window(batch)
    carry = jax.tree.map(
      lambda old, new: jnp.concatenate([old, new], 1)[:, -self.window :],
      empty,
      {"inputs": states.astype(jnp.float32), "valid": 1.0 * valid},
    )
    return self._run(states, valid, {})[0], carry

  def begin(self, states: jax.Array) -> tuple[jax.Array, Carry]:
    """Reads states before a forecast, as many as there are.

    Args:
      states: [batch, time, size].

    Returns:
      (prediction, carry): of the next state, float32 [batch, size], and what
      `step` goes on from.
    """
    if self.stateless:
      states = states[:, -self.window :]
    predictions, carry = self(states)
    return predictions[:, -1], carry

  def step(self, state: jax.Array, carry: Carry) -> tuple[jax.Array, Carry]:
    """Goes on by one state.

    Args:
      state: [batch, size].
      carry: of `begin`, of a call or of the step before.

    Returns:
      (prediction, carry): as `begin`.
    """
    if not self.stateless:
      predictions, carry = self(state[:, None], carry)
      return predictions[:, 0], carry
    new = {"inputs": state.astype(jnp.float32), "valid": jnp.ones(len(state))}
    carry = jax.tree.map(
      lambda old, new: jnp.concatenate([old[:, 1:], new[:, None]], 1),
      carry,
      new,
    )
    predictions, _ = self._run(carry["inputs"], carry["valid"] > 0.5, {})
    return predictions[:, -1], carry

  @nn.nowrap
  def init_carry(self, batch: int) -> Carry:
    """What a model that carries a state begins with; all float32.

    Args:
      batch: rows.

    Raises:
      ValueError: if the model is stateless.
    """
    if self.stateless:
      raise ValueError(
        "cell is 'none' and recurrence False: a stateless model has nothing to "
        "carry"
      )
    one = {}
    if self.cell != "none":
      cell = recurrent_cells.find(self.cell)
      one["cell"] = cell.empty(batch, self.width)
    if self.attention:
      one["attention"] = lag_attention.LagAttention.empty(
        batch, self.window, self.width
      )
    # Arrays of their own, for each may be donated.
    return {
      f"layer_{i}": jax.tree.map(jnp.copy, one) for i in range(self.depth)
    }

  @nn.nowrap
  def example_inputs(self) -> dict[str, jax.Array]:
    """What `init` takes where the data do not say more."""
    return {"states": jnp.zeros((1, 1, self.size))}

  def _run(self, states, valid, carry):
    x = self.embed(states.astype(self.dtype)).astype(jnp.float32)
    after = {}
    for i, layer in enumerate(self.layer):
      x, own = layer(x, valid, carry.get(f"layer_{i}", {}))
      after[f"layer_{i}"] = own
    if self.has_skips:
      x = self.norm(x)
    out = self.out(x.astype(self.dtype)).astype(jnp.float32)
    return (states.astype(jnp.float32) if self.increment else 0) + out, after

  def _empty_window(self, batch: int) -> Carry:
    return {
      "inputs": jnp.zeros((batch, self.window, self.size)),
      "valid": jnp.zeros((batch, self.window)),
    }

  def _dense(self, width: int, **options: Any) -> nn.Module:
    return layers.Dense(
      width, dtype=self.dtype, param_dtype=self.param_dtype, **options
    )

  def _check_states(self, states: jax.Array) -> None:
    if (
      states.ndim != 3
      or states.shape[-1] != self.size
      or not states.shape[1]
      or not jnp.issubdtype(states.dtype, jnp.floating)
    ):
      raise ValueError(
        f"states is {states.dtype} of shape {states.shape}; it must be "
        f"floating point [batch, time, {self.size}] with at least one time"
      )

  def _check(self) -> None:
    if self.cell != "none":
      recurrent_cells.find(self.cell)
    elif not self.attention:
      raise ValueError(
        "cell is 'none' and attention False: nothing looks at the states before"
      )
    elif self.cell_gate != "none":
      raise ValueError(
        f"cell_gate is {self.cell_gate!r}, but cell is 'none': there is "
        "nothing to merge; it must be 'none'"
      )
    if self.cell != "none" and self.recurrence:
      raise ValueError(
        f"recurrence is True, but the cell {self.cell!r} carries a state "
        "anyway: recurrence is for cell 'none'"
      )
    for name in ("cell_gate", "gate"):
      if (kind := getattr(self, name)) not in merging.KINDS:
        raise registry.unknown(name, kind, merging.KINDS)
    if self.attention:
      lag_attention.check(self.heads, self.width, self.window)


class ForecastingLayer(nn.Module):
  """A cell, attention and a feed-forward branch; see `Forecaster`."""

  width: int
  cell: str
  micro_steps: int
  transform_bias: float
  cell_gate: str
  attention: bool
  heads: int
  window: int
  feed_forward: int
  gate: str
  implementation: str
  dtype: layers.Dtype
  param_dtype: layers.Dtype

  @nn.compact
  def __call__(
    self, x: jax.Array, valid: jax.Array, carry: Carry
  ) -> tuple[jax.Array, Carry]:
    """Maps a stream [batch, time, width]; valid [batch, time]."""
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    after = {}
    if self.cell != "none":
      y = self._read(x, "cell") if self.cell_gate != "none" else x
      cell = recurrent_cells.find(self.cell)
      if self.cell == "rhn":
        cell = functools.partial(
          cell,
          micro_steps=self.micro_steps,
          transform_bias=self.transform_bias,
        )
      y, after["cell"] = cell(self.width, name="cell", **dtypes)(
        y.astype(self.dtype), carry["cell"]
      )
      x = merging.Merge(self.cell_gate, name="cell_gate", **dtypes)(x, y)
    if self.attention:
      y, state = lag_attention.LagAttention(
        self.heads,
        self.window,
        self.implementation,
        name="attention",
        **dtypes,
      )(self._read(x, "attention"), valid, carry.get("attention"))
      x = merging.Merge(self.gate, name="attention_gate", **dtypes)(x, y)
      if state is not None:
        after["attention"] = state
    if self.feed_forward:
      y = feed_forward.FeedForward(
        "gelu",
        self.feed_forward * self.width,
        use_bias=True,
        kernel_init=nn.initializers.lecun_normal(),
        out_init=nn.initializers.lecun_normal(),
        name="mlp",
        **dtypes,
      )(self._read(x, "mlp"))
      x = merging.Merge(self.gate, name="mlp_gate", **dtypes)(x, y)
    return taps.tap(self, "hidden_state", x.astype(jnp.float32)), after

  def _read(self, x: jax.Array, name: str) -> jax.Array:
    """The normalised stream, as products take it."""
    return normalization.LayerNorm(
      dtype=self.dtype, param_dtype=self.param_dtype, name=f"{name}_norm"
    )(x)


def forecast(
  model: Forecaster,
  variables: Mapping[str, Any],
  states: jax.Array,
  steps: int,
) -> jax.Array:
  """Lets a model go on from its own output.

  Args:
    model: any of this family.
    variables: of the model.
    states: those before, [batch, time, size].
    steps: how many states to make, at least one.

  Returns:
    float32 [batch, steps, size].
  """
  state, carry = model.apply(variables, states, method=Forecaster.begin)
  _, more = go_on(model, variables, state, carry, steps - 1)
  return jnp.concatenate([state[:, None], more], axis=1)


def go_on(
  model: Forecaster,
  variables: Mapping[str, Any],
  state: jax.Array,
  carry: Carry,
  steps: int,
) -> tuple[Carry, jax.Array]:
  """Makes states from a prediction on.

  Args:
    model: any of this family.
    variables: of the model.
    state: what was predicted last, [batch, size].
    carry: what came with it.
    steps: how many states to make.

  Returns:
    (carry, states): after the last, and float32 [batch, steps, size].
  """

  def one(pair, _):
    state, carry = model.apply(variables, *pair, method=Forecaster.step)
    return (state, carry), state

  (_, carry), states = jax.lax.scan(one, (state, carry), length=steps)
  return carry, states.swapaxes(0, 1)


KIND = "forecasting"
_TRANSFORMER = {"attention": True, "feed_forward": 4, "depth": 2}
VARIANTS: Mapping[str, tuple[type[nn.Module], dict[str, Any]]] = {
  "forecasting_gru": (Forecaster, {"cell": "gru"}),
  "forecasting_lstm": (Forecaster, {"cell": "lstm"}),
  "forecasting_rhn": (Forecaster, {"cell": "rhn"}),
  "forecasting_transformer": (Forecaster, _TRANSFORMER),
}
# What a row of a batch carries lies where the row does (`tasks.forecasting`).
_ROWS = ("slice", "data", "fsdp")
SHARDING_RULES = (
  ("carry/.*/cell/(hidden|cell)", (_ROWS, None)),
  ("carry/.*/attention/(keys|values)", (_ROWS, None, None)),
  ("carry/.*/attention/valid", (_ROWS, None)),
)
