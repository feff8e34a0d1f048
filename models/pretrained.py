"""Published weights: from a safetensors file or the Hugging Face hub.

variables = load("timm:maxvit_tiny_tf_224.in1k", "maxvit_tiny_224")
logits = models.create("maxvit_tiny_224").apply(variables, images)

model, variables = from_huggingface("openai-community/gpt2")
logits = model.apply(variables, tokens)
"""

import collections
import functools
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.core import FrozenDict

import attention
from models import (
  huggingface,
  insertion,
  registry,
  transformer,
  weight_files,
  weight_maps,
)
from models.lina_attention import GATE_LEAVES
from models.weight_maps import layouts

Variables = dict[str, Any]
Tensors = weight_files.Tensors
Init = Callable[[jax.Array], Variables]

# Our own names and layouts, as of the variables of a run.
_OWN = lambda path: ("/".join(path), layouts.SAME)
# Where every model has the layer of its logits.
_HEAD = ("head", "logits")


def load(
  source: str | pathlib.Path,
  model: str | nn.Module,
  *,
  resize_tables: bool = False,
  replace_head: bool = False,
  part: str = "",
  init: Init | None = None,
  seed: int = 0,
  **overrides: Any,
) -> Variables:
  """Returns {"params", "batch_stats"} for `model` with published weights.

  Args:
    source: path of a .safetensors file with timm's names, those of its authors
      for LINA and DiT, latent diffusion's or diffusers' for an autoencoder; or
      "timm:<name>" for the file of timm/<name> on the Hugging Face hub.
    model: name of a model, or the model.
    resize_tables: whether what belongs to another resolution is made to fit:
      tables of relative biases are interpolated to the model's, LINA's gates
      start again at one.
    replace_head: whether the layer of the logits is initialised anew, as for
      other classes, and that of the file, if any, ignored.
    part: name of a submodule, as "trunk", that the weights are for: they are
      those of a model like it, whose logits are ignored. The rest of `model` is
      initialised anew.
    init: initialises the variables from a key; as for tokens, for the model's
      `example_inputs`, or for images of three channels, if None.
    seed: seed of that initialisation.
    **overrides: fields of the model, if `model` is a name.

  Raises:
    ValueError: if the source is a pickle, or cannot be had or read, or if a
      tensor is missing, surplus, of the wrong shape, of a dtype that is not
      floating, or not finite. All of them are listed.
  """
  if isinstance(model, str):
    model = registry.create(model, **overrides)
  elif overrides:
    raise ValueError(
      f"overrides are {sorted(overrides)}; with a model in place of a name set "
      "its fields directly"
    )
  fresh = _initializer(model, init, seed)
  tensors = weight_files.read(source)
  try:
    variables = from_tensors(
      tensors,
      model,
      resize_tables=resize_tables,
      replace_head=replace_head,
      part=part,
      init=init,
    )
  except ValueError as error:
    raise ValueError(f"source is {str(source)!r}: {error}") from None
  return _initialise_missing(variables, fresh)


def from_huggingface(
  source: str | pathlib.Path, **overrides: Any
) -> tuple[transformer.Transformer, Variables]:
  """Returns a language model and its variables, from the Hugging Face hub.

  LLaVA's is a `VisionLanguage`, whose tokens are those of the text alone; the
  placeholders that its tokenizer writes for an image say where that stands, see
  `image_places.from_placeholders`.

  Args:
    source: name of a repository, as "openai-community/gpt2", or a folder with
      its config.json and its safetensors, in one file or in shards.
    **overrides: fields of the model that take the place of those that follow
      from config.json, as `dtype="bfloat16"` or `scan_layers=True`. Dropout is
      none unless it is given.

  Returns:
    (model, variables); `model.apply(variables, tokens)` gives the logits.

  Raises:
    ValueError: if the source cannot be had or read; if its architecture, or
      something that config.json asks for, is not implemented; or if a tensor
      is missing, surplus, of the wrong shape, of a dtype that is not floating,
      or not finite. All of them are listed. A head that is tied to the
      embedding may be stored a second time if it is equal.
  """
  folder = weight_files.folder(source)
  config = weight_files.read_json(folder / weight_files.CONFIG)
  try:
    architecture = huggingface.architecture(config)
    naming = architecture.naming
    fields = {**huggingface.fields(config), **overrides}
    model = registry.build(architecture.model, fields)
    tensors, remarks = naming.normalise(
      weight_files.read_folder(folder), model.tied_head
    )
    plain = model.clone(scan_layers=False)
    example = {"tokens": jnp.zeros((1, 1), jnp.int32)}
    if hasattr(plain, "image_tokens"):
      side = plain.vision["image_size"]
      example["images"] = jnp.zeros((1, side, side, 3))
    variables = from_tensors(
      tensors,
      plain,
      init=functools.partial(plain.init, **example),
      weight_map=naming.weight_map(plain),
      remarks=remarks,
    )
  except ValueError as error:
    raise ValueError(f"source is {str(source)!r}: {error}") from None
  if model.scan_layers:
    params = variables["params"]
    stacked = transformer.stack_layers(params, len(model.mixers))
    variables = {"params": stacked}
  return model, variables


def adapt(
  variables: Variables,
  model: nn.Module,
  *,
  resize_tables: bool = False,
  replace_head: bool = False,
  part: str = "",
  optional: Callable[[str], bool] = lambda path: False,
  init: Init | None = None,
  seed: int = 0,
) -> Variables:
  """Like `load`, from the variables of a similar model, as before a transfer.

  What it lacks of paths, as "params/head/bias", that are `optional` is
  initialised anew, and so is what it lacks of inserts.

  Raises:
    ValueError: if some are missing, surplus or do not fit; lists all.
  """
  fresh = _initializer(model, init, seed)
  flat = traverse_util.flatten_dict(variables)
  return _initialise_missing(
    from_tensors(
      {"/".join(path[1:]): np.asarray(flat[path]) for path in flat},
      model,
      resize_tables=resize_tables,
      replace_head=replace_head,
      part=part,
      optional=optional,
      init=init,
      weight_map=_OWN,
    ),
    fresh,
  )


def from_tensors(
  tensors: Tensors,
  model: nn.Module,
  *,
  resize_tables: bool = False,
  replace_head: bool = False,
  part: str = "",
  optional: Callable[[str], bool] = lambda path: False,
  init: Init | None = None,
  weight_map: layouts.WeightMap | None = None,
  remarks: Mapping[str, str] = FrozenDict(),
) -> Variables:
  """Like `load`, from {name: tensor}; what would be initialised is left out.

  So is what has no tensor and a path that is `optional` or of an insert, whose
  names are ours. With a `weight_map` tensors have other names than those of the
  model's family.
  `remarks` follow the names of surplus tensors in the error.
  """
  owner = weight_maps.part(model, part) if part else model
  constants = {}
  if weight_map is None:
    constants = weight_maps.constants(owner)
    tensors = weight_maps.normalised(owner, tensors)
    weight_map = weight_maps.of(owner, tensors)
  prefix = 2 if part else 1
  is_inserted = insertion.finder(model)
  ignored, names, problems, loaded = set(), {}, {}, {}
  if replace_head or part:
    ignored = {weight_map((*_HEAD, leaf))[0] for leaf in ("kernel", "bias")}
  for path, wanted in _flat_shapes(_initializer(model, init)).items():
    if (part and path[1] != part) or (replace_head and _is_head(path)):
      continue
    own = is_inserted(path[1:])
    name, layout = _OWN(path[1:]) if own else weight_map(path[prefix:])
    names[name] = None
    if name not in tensors and (own or optional("/".join(path))):
      continue
    try:
      tensor = _fitting(tensors, name, path, wanted, layout, resize_tables)
    except ValueError as error:
      problems[name] = str(error)
      continue
    loaded[path] = jnp.asarray(layout.read(tensor, wanted.shape))
  for name in tensors:
    # PyTorch counts batches where Flax and TensorFlow do not.
    counter = name.endswith(".num_batches_tracked")
    if name in constants:
      if problem := _differs(name, tensors[name], constants[name]):
        problems[name] = problem
    elif name not in names and name not in ignored and not counter:
      problems[name] = f"surplus: {name}{remarks.get(name, '')}"
  if not loaded:
    _check_prefix(tensors, list(names))
  if problems:
    raise ValueError(
      f"{len(problems)} tensors do not fit the model:\n  "
      + "\n  ".join(problems.values())
    )
  return traverse_util.unflatten_dict(loaded)


def to_tensors(
  variables: Variables,
  model: nn.Module,
  *,
  weight_map: layouts.WeightMap | None = None,
) -> Tensors:
  """Returns {their name: tensor}: the inverse of `from_tensors`."""
  weight_map, tensors = weight_map or weight_maps.of(model), {}
  is_inserted = insertion.finder(model)
  shared = collections.defaultdict(dict)
  for path, value in traverse_util.flatten_dict(variables).items():
    own = is_inserted(path[1:])
    name, layout = (_OWN if own else weight_map)(path[1:])
    tensor = layout.store(np.asarray(value))
    if layout.part:
      shared[name][layout.part.index] = tensor
      if len(shared[name]) < layout.part.count:
        continue
      tensor = layout.part.join([t for _, t in sorted(shared[name].items())])
    tensors[name] = np.ascontiguousarray(tensor)
  return tensors


def _fitting(
  tensors: Tensors,
  name: str,
  path: tuple[str, ...],
  wanted: jax.ShapeDtypeStruct,
  layout: layouts.Layout,
  resize_tables: bool,
) -> np.ndarray:
  """Returns the tensor for `path`, of the dtype wanted.

  Raises:
    ValueError: if it does not fit.
  """
  if name not in tensors:
    raise ValueError(f"missing: {name}, for {'/'.join(path)}")
  tensor = tensors[name]
  if not jnp.issubdtype(tensor.dtype, jnp.floating):
    raise ValueError(f"dtype: {name} has {tensor.dtype}, which is not floating")
  with np.errstate(over="ignore"):  # What it leaves infinite is refused.
    tensor = tensor.astype(wanted.dtype)
  if resize_tables:
    tensor = _resized(tensor, path, wanted, layout)
  if tensor.shape != layout.whole(wanted.shape):
    raise ValueError(
      f"shape: {name} has {tensor.shape}, the model needs "
      f"{layout.whole(wanted.shape)}{_remedy(path)}"
    )
  if not np.isfinite(tensor).all():
    raise ValueError(f"value: {name} has NaN or infinite elements")
  return tensor


def _differs(name: str, tensor: np.ndarray, wanted: np.ndarray) -> str:
  """Says how a tensor is not what the model computes; nothing if it is."""
  if tensor.shape != wanted.shape:
    return (
      f"shape: {name} has {tensor.shape}, the model computes {wanted.shape}"
    )
  # Files of half precision have rounded it.
  if not np.allclose(tensor, wanted, atol=1e-2):
    return f"value: {name} is not the table that the model computes"
  return ""


def _initializer(
  model: nn.Module, init: Init | None, seed: int = 0
) -> Callable[[], Variables]:
  if not 0 <= seed < 2**32:
    # JAX would take it for another one.
    raise ValueError(
      f"seed is {seed}, but must have 32 bits: from 0 to 2**32-1"
    )
  if init is None:
    if isinstance(model, transformer.Transformer):
      example = (jnp.zeros((1, 1), jnp.int32),)
    elif hasattr(model, "example_inputs"):
      example = tuple(model.example_inputs().values())
    else:
      size = model.size_multiple
      example = (jnp.zeros((1, size, size, 3)),)
    init = lambda key: model.init(key, *example)
  return functools.partial(init, jax.random.key(seed))


def _flat_shapes(init: Callable[[], Variables]) -> dict[tuple[str, ...], Any]:
  return traverse_util.flatten_dict(jax.eval_shape(init))


def _initialise_missing(
  variables: Variables, init: Callable[[], Variables]
) -> Variables:
  flat = traverse_util.flatten_dict(variables)
  missing = [path for path in _flat_shapes(init) if path not in flat]
  if missing:

    def fresh():
      # Under jit only what is returned is computed.
      initial = traverse_util.flatten_dict(init())
      return {path: initial[path] for path in missing}

    flat |= jax.jit(fresh)()
  return traverse_util.unflatten_dict(flat)


def _check_prefix(names: Iterable[str], wanted: Sequence[str]) -> None:
  """Says so if the wanted names are there, all behind a common prefix."""
  ending = f".{wanted[0]}"
  for name in names:
    prefix = name.removesuffix(ending[1:])
    if name.endswith(ending) and all(n.startswith(prefix) for n in names):
      raise ValueError(
        f"every tensor's name begins with {prefix!r}, which the model's names "
        "do not, as what wraps a model writes it: save the tensors without it"
      )


def _is_head(path: tuple[str, ...]) -> bool:
  return path[1:3] == _HEAD


def _remedy(path: tuple[str, ...]) -> str:
  if path[-1] == "relative_bias_table":
    return " (resize_tables=True interpolates it)"
  if path[-1] in GATE_LEAVES:
    return " (resize_tables=True starts it again at one)"
  return " (replace_head=True leaves it out)" if _is_head(path) else ""


def _resized(
  tensor: np.ndarray,
  path: tuple[str, ...],
  wanted: jax.ShapeDtypeStruct,
  layout: layouts.Layout,
) -> np.ndarray:
  """Makes what belongs to another resolution fit the model's."""
  if path[-1] == "relative_bias_table":
    side = (wanted.shape[-1] + 1) // 2
    return np.asarray(
      attention.resize_relative_table(jnp.asarray(tensor), side)
    )
  fits = layout.whole(wanted.shape)
  if path[-1] in GATE_LEAVES and len(fits) == tensor.ndim:
    gate = layout.load(tensor, wanted.shape)  # [tokens, heads or 1]
    if gate.shape[0] != wanted.shape[0] and gate.shape[1:] == wanted.shape[1:]:
      return np.ones(fits, tensor.dtype)
  return tensor
