"""Published weights: from a safetensors file or the Hugging Face hub.

variables = load("timm:maxvit_tiny_tf_224.in1k", "maxvit_tiny_224")
logits = models.create("maxvit_tiny_224").apply(variables, images)
"""

import functools
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

import attention
import storage
from models import registry, weight_maps
from models.weight_maps import layouts

Variables = dict[str, Any]
Tensors = dict[str, np.ndarray]
Init = Callable[[jax.Array], Variables]

# Where every model has the layer of its logits.
_HEAD = ("head", "logits")
_PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}


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
    source: path of a .safetensors file with timm's names, or "timm:<name>" for
      the file of timm/<name> on the Hugging Face hub.
    model: name of a model, or the model.
    resize_tables: whether tables of relative biases of another size are
      interpolated to the model's.
    replace_head: whether the layer of the logits is initialised anew, as for
      other classes, and that of the file, if any, ignored.
    part: name of a submodule, as "trunk", that the weights are for: they are
      those of a model like it, whose logits are ignored. The rest of `model` is
      initialised anew.
    init: initialises the variables from a key; as for images of three channels
      if None.
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
  tensors = _read(source)
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


def adapt(
  variables: Variables,
  model: nn.Module,
  *,
  resize_tables: bool = False,
  replace_head: bool = False,
  part: str = "",
  init: Init | None = None,
  seed: int = 0,
) -> Variables:
  """Like `load`, from the variables of a similar model, as before a transfer.

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
      init=init,
      weight_map=lambda path: ("/".join(path), layouts.SAME),
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
  init: Init | None = None,
  weight_map: layouts.WeightMap | None = None,
) -> Variables:
  """Like `load`, from {name: tensor}; what would be initialised is left out.

  With a `weight_map` tensors have other names than those of the model's family.
  """
  owner = weight_maps.part(model, part) if part else model
  weight_map = weight_map or weight_maps.of(owner)
  prefix = 2 if part else 1
  left, names, problems, loaded = dict(tensors), [], [], {}
  if replace_head or part:
    for leaf in ("kernel", "bias"):
      left.pop(weight_map((*_HEAD, leaf))[0], None)
  for path, wanted in _flat_shapes(_initializer(model, init)).items():
    if (part and path[1] != part) or (replace_head and _is_head(path)):
      continue
    name, layout = weight_map(path[prefix:])
    names.append(name)
    tensor = left.pop(name, None)
    if tensor is None:
      problems.append(f"missing: {name}, for {'/'.join(path)}")
      continue
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
      problems.append(
        f"dtype: {name} has {tensor.dtype}, which is not floating"
      )
      continue
    with np.errstate(over="ignore"):  # What it leaves infinite is refused.
      tensor = tensor.astype(wanted.dtype)
    if resize_tables and path[-1] == "relative_bias_table":
      tensor = _resize(tensor, wanted.shape[-1])
    if tensor.shape != layout.shape(wanted.shape):
      problems.append(
        f"shape: {name} has {tensor.shape}, the model needs "
        f"{layout.shape(wanted.shape)}{_remedy(path)}"
      )
      continue
    if not np.isfinite(tensor).all():
      problems.append(f"value: {name} has NaN or infinite elements")
      continue
    loaded[path] = jnp.asarray(layout.load(tensor, wanted.shape))
  # PyTorch counts batches where Flax and TensorFlow do not.
  surplus = [n for n in left if not n.endswith(".num_batches_tracked")]
  problems += [f"surplus: {name}" for name in surplus]
  if not loaded:
    _check_prefix(tensors, names)
  if problems:
    raise ValueError(
      f"{len(problems)} tensors do not fit the model:\n  "
      + "\n  ".join(problems)
    )
  return traverse_util.unflatten_dict(loaded)


def to_tensors(variables: Variables, model: nn.Module) -> Tensors:
  """Returns {timm's name: tensor}: the inverse of `from_tensors`."""
  weight_map, tensors = weight_maps.of(model), {}
  for path, value in traverse_util.flatten_dict(variables).items():
    name, layout = weight_map(path[1:])
    tensors[name] = np.ascontiguousarray(layout.store(np.asarray(value)))
  return tensors


def _initializer(
  model: nn.Module, init: Init | None, seed: int = 0
) -> Callable[[], Variables]:
  if not 0 <= seed < 2**32:
    # JAX would take it for another one.
    raise ValueError(
      f"seed is {seed}, but must have 32 bits: from 0 to 2**32-1"
    )
  if init is None:
    size = model.size_multiple
    image = jnp.zeros((1, size, size, 3))
    init = functools.partial(model.init, x=image)
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
  return " (replace_head=True leaves it out)" if _is_head(path) else ""


def _resize(table: np.ndarray, side: int) -> np.ndarray:
  resized = attention.resize_relative_table(jnp.asarray(table), (side + 1) // 2)
  return np.asarray(resized)


def _read(source: str | pathlib.Path) -> Tensors:
  if str(source).startswith("timm:"):
    source = _download(str(source).removeprefix("timm:"))
  path = storage.path(source)
  if path.suffix in _PICKLES:
    raise ValueError(
      f"source is {str(source)!r}, a pickle: reading one runs whatever code it "
      "holds. Where you trust it, convert it with safetensors.torch.save_file"
    )
  if path.suffix != ".safetensors":
    raise ValueError(
      f"source is {str(source)!r}; it must be a .safetensors file or "
      "timm:<name>"
    )
  if not path.exists() or path.is_dir():
    raise ValueError(f"source is {str(source)!r}; there is no such file")
  try:
    from safetensors import SafetensorError
    from safetensors import numpy as safetensors
  except ImportError as error:
    raise ImportError(
      "reading weights needs safetensors: pip install 'foveal[parity]'"
    ) from error
  try:
    if not storage.is_remote(path):
      return safetensors.load_file(path)
    with tempfile.NamedTemporaryFile() as local:
      local.write(path.read_bytes())
      local.flush()
      return safetensors.load_file(local.name)
  # The second for a dtype that numpy has not, as float8.
  except (SafetensorError, AttributeError) as error:
    raise ValueError(
      f"source is {str(source)!r}, which cannot be read ({error}). It may be "
      "empty or cut short, a page or a pointer that was saved in its place, or "
      "have a dtype that numpy has not: get it again"
    ) from error


def _download(name: str) -> str:
  try:
    import huggingface_hub
  except ImportError as error:
    raise ImportError(
      "downloading weights needs huggingface_hub: pip install 'foveal[parity]'"
    ) from error
  try:
    return huggingface_hub.hf_hub_download(f"timm/{name}", "model.safetensors")
  except Exception as error:  # Its errors vary with version and transport.
    raise ValueError(
      f"source is 'timm:{name}', which could not be downloaded "
      f"({type(error).__name__}: {error}). By hand: get "
      f"https://huggingface.co/timm/{name}/resolve/main/model.safetensors and "
      "give its path as source"
    ) from error
