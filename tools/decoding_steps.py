"""Lowers steps of decoding and sampling, rows over the mesh, without arrays."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import experiment
from generation import denoiser, sampler, template_decoding
from models import decoding, masked_sampling, token_sampling
from training import sharding


def lower(made: experiment.Evaluation) -> tuple[jax.stages.Lowered, Any]:
  """Lowers a step of decoding of `eval_batch_size` rows.

  Of a language model it draws one token of each row, with a cache of
  `data.length` tokens, or of an image's and a row's of the data; of a
  masked-diffusion model it fills rows of which every place is open. Of LINA it
  is the dearest of a batch's steps, and of a diffusion model any of its steps,
  both with the guidance of `config.sampling`.

  Returns:
    (lowered, arguments): the arrays of these as `jax.ShapeDtypeStruct`s.

  Raises:
    ValueError: if the task makes nothing up.
  """
  task = made.config.task
  if task not in _LOWER:
    raise ValueError(
      f"task={task!r} has no decoding step: step='decode' is for "
      f"{', '.join(_LOWER)}."
    )
  return _LOWER[task](made)


def _lower_token(made):
  model, length = made.task.model, _cache_length(made)

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


def _cache_length(made) -> int:
  """Tokens that the cache has room for."""
  if made.config.task == "language_modeling":
    return made.config.data.length
  arrays = made.task.info.arrays
  image = made.task.model.image_tokens((1, *arrays["image"].shape))
  return image + len(arrays["tokens"])


def _lower_template(made):
  task = made.task
  length = task.info.arrays["tokens"].shape[0]

  def rows(number):
    return jax.ShapeDtypeStruct((number, length), jnp.int32)

  tokens = _placed(rows, made.config.eval_batch_size, made.mesh)

  @jax.jit
  def fill(variables, tokens):
    return template_decoding.decode(
      functools.partial(task.model.apply, variables),
      tokens[:, :0],
      tokens,
      np.ones(length, bool),
      steps=1,
      mask=task.mask,
    )

  with jax.set_mesh(made.mesh):
    lowered = fill.lower(made.variables, tokens)
  return lowered, (made.variables, tokens)


def _lower_denoising(made):
  task, guidance = made.task, made.config.sampling.guidance
  model = task.model

  def rows(number):
    spec = task.batch_spec(number, train=False)
    names = {"label", "text", "text_length"} & spec.keys()
    given = {name: spec[name] for name in names}
    make = functools.partial(
      denoiser.create_denoiser, model, {}, guidance=guidance
    )
    shape = number, *model.sample_shape, model.channels
    return (
      jax.eval_shape(lambda given: make(**given), given),
      jax.ShapeDtypeStruct(shape, jnp.float32),
    )

  denoise, x = _placed(rows, made.config.eval_batch_size, made.mesh)
  denoise = dataclasses.replace(denoise, variables=made.variables)
  with jax.set_mesh(made.mesh):
    lowered = sampler.take_step.lower(
      denoise, x, x, {}, 0.0, (0.0,) * 4, path=task.path
    )
  return lowered, (denoise, x, x)


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


_LOWER = {
  "language_modeling": _lower_token,
  "vision_language": _lower_token,
  "masked_diffusion": _lower_template,
  "masked_generation": _lower_masked,
  "diffusion": _lower_denoising,
  "distillation": _lower_denoising,
}
