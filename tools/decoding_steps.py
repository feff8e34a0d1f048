"""Lowers steps of decoding, rows over the whole mesh, before there are any."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import experiment
import models
from models import decoding, masked_sampling, token_sampling
from training import sharding


def lower(made: experiment.Evaluation) -> tuple[jax.stages.Lowered, Any]:
  """Lowers a step of decoding of `eval_batch_size` rows.

  Of a language model it draws one token of each row, with a cache of
  `data.length` tokens; of a generator of images it is the dearest of a batch's
  steps, with guidance.

  Returns:
    (lowered, arguments): the arrays of these as `jax.ShapeDtypeStruct`s.

  Raises:
    ValueError: if the model makes nothing up.
  """
  config = made.config
  kind = models.kind(config.model.name)
  if kind == "generation":
    return _lower_masked(made)
  if config.task != "language_modeling":
    raise ValueError(
      f"task={config.task!r} has no decoding step: step='decode' is for "
      "language_modeling and masked_generation."
    )
  return _lower_token(made)


def _lower_token(made):
  model, length = made.task.model, made.config.data.length

  def rows(number):
    whole = functools.partial(jax.ShapeDtypeStruct, (number,))
    state = decoding.State(
      cache=jax.eval_shape(lambda: model.init_cache(number, length)),
      token=whole(jnp.int32),
      position=whole(jnp.int32),
      step=jax.ShapeDtypeStruct((), jnp.int32),
    )
    return state, whole(jnp.bool_), _keys(number)

  state, live, keys = _placed(rows, made.config.eval_batch_size, made.mesh)
  with jax.set_mesh(made.mesh):
    program = decoding.take_steps.lower(
      decoding.hashable(model),
      made.variables,
      state=state,
      live=live,
      how=token_sampling.sampling(temperature=1.0),
      keys=keys,
      stop=jax.ShapeDtypeStruct((1,), jnp.int32),
      max_tokens=length,
      length=1,
    )
  return program, (made.variables, state)


def _lower_masked(made):
  task, config = made.task, made.config
  model = decoding.hashable(task.model)
  places, how = math.prod(model.grid), config.sampling
  plan = masked_sampling.schedule(places, how.steps)
  weights = masked_sampling.guidance_weights(
    how.guidance, how.min_guidance, plan, how.steps
  )
  programs = masked_sampling.shapes(places, plan, weights, how.flow_steps)
  guided = any(program.guided for program in programs)
  program = max(programs)

  def rows(number):
    spec = task.batch_spec(number, train=False)
    given = spec["text" if model.text_width else "label"]
    return jax.eval_shape(
      functools.partial(
        masked_sampling.start,
        model,
        guided=guided,
        padding=max(each.made for each in programs),
      ),
      made.variables,
      given,
      spec.get("text_length"),
      _keys(number),
    )

  arrays = _placed(rows, config.eval_batch_size, made.mesh)
  number = jax.ShapeDtypeStruct((), jnp.int32)
  with jax.set_mesh(made.mesh):
    lowered = masked_sampling.take_step.lower(
      model,
      made.variables,
      *arrays,
      number,
      number,
      jax.ShapeDtypeStruct((), jnp.float32),
      program=program,
    )
  return lowered, (made.variables, arrays)


def _keys(rows: int) -> jax.ShapeDtypeStruct:
  """Random keys [rows]."""
  numbers = jax.ShapeDtypeStruct((rows,), jnp.uint32)
  return jax.eval_shape(lambda x: token_sampling.row_keys(0, x), numbers)


def _placed(make: Callable[[int], Any], rows: int, mesh: Mesh) -> Any:
  """The arrays that `make` has for so many rows, these split over the mesh.

  Where the rows are is seen by making them twice as many.
  """

  def place(array, other):
    axes = [
      sharding.BATCH_AXES if size != more else None
      for size, more in zip(array.shape, other.shape, strict=True)
    ]
    where = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where)

  return jax.tree.map(place, make(rows), make(2 * rows))
