"""Files of weights: safetensors, here, in a bucket, or on the Hugging Face hub.

A pickle is never read. What is wrong with a file is said with its name.
"""

import json
import pathlib
import re
import tempfile
from typing import Any

import numpy as np

import storage

Tensors = dict[str, np.ndarray]

CONFIG = "config.json"
_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARDS = "model-*.safetensors"
_PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


def read(source: str | pathlib.Path) -> Tensors:
  """Returns {name: tensor} of a file, or of "timm:<name>" on the hub.

  Raises:
    ValueError: if the source is a pickle, or cannot be had or read.
  """
  if str(source).startswith("timm:"):
    source = _download_timm(str(source).removeprefix("timm:"))
  path = storage.path(source)
  _refuse_pickle(path)
  if path.suffix != ".safetensors":
    raise ValueError(
      f"source is {str(source)!r}; it must be a .safetensors file or "
      "timm:<name>"
    )
  if not path.exists() or path.is_dir():
    raise ValueError(f"source is {str(source)!r}; there is no such file")
  return _read_file(path)


def folder(source: str | pathlib.Path) -> Any:
  """Returns the path of a model's folder, downloaded if it is on the hub.

  Args:
    source: a folder with config.json, or the name of a repository on the
      Hugging Face hub, as "openai-community/gpt2".

  Raises:
    ValueError: if it is neither, or has no config.json, or could not be
      downloaded.
  """
  path = storage.path(source)
  _refuse_pickle(path)
  if path.is_dir():
    if not (path / CONFIG).exists():
      raise ValueError(
        f"source is {str(source)!r}, a folder without {CONFIG}; it must be one "
        "that transformers' save_pretrained wrote, or a copy of a repository"
      )
    return path
  if path.exists():
    raise ValueError(
      f"source is {str(source)!r}, a file; it must be the folder that also has "
      f"{CONFIG}"
    )
  if not _REPOSITORY.fullmatch(str(source)):
    raise ValueError(
      f"source is {str(source)!r}; there is no such folder, and it is no name "
      "of a repository, as 'openai-community/gpt2'"
    )
  return storage.path(_download_repository(str(source)))


def read_json(path: Any) -> dict[str, Any]:
  """Returns the object in a JSON file.

  Raises:
    ValueError: if there is none.
  """
  try:
    value = json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path} is not JSON ({error}): get it again") from None
  if not isinstance(value, dict):
    raise ValueError(f"{path} has a {type(value).__name__}, not an object")
  return value


def read_folder(path: Any) -> Tensors:
  """Returns {name: tensor} of a model's folder, of one file or of shards.

  Raises:
    ValueError: if there is neither, or shards are missing, or have other
      tensors than their index says, or cannot be read.
  """
  if (path / _INDEX).exists():
    return _read_shards(path)
  if (path / _WHOLE).exists():
    return _read_file(path / _WHOLE)
  for file in path.iterdir():
    _refuse_pickle(file)
  raise ValueError(f"{path} has neither {_WHOLE} nor {_INDEX}")


def _read_shards(path: Any) -> Tensors:
  index = read_json(path / _INDEX).get("weight_map")
  if not isinstance(index, dict) or not index:
    raise ValueError(f"{path / _INDEX} has no weight_map: get it again")
  files = sorted(set(index.values()))
  missing = [name for name in files if not (path / name).exists()]
  if missing:
    raise ValueError(
      f"{path} lacks {len(missing)} of the {len(files)} files that {_INDEX} "
      f"names: {missing}"
    )
  tensors, problems = {}, []
  for file in files:
    found = _read_file(path / file)
    stated = {name for name, where in index.items() if where == file}
    problems += [f"{file} lacks {name}" for name in sorted(stated - set(found))]
    problems += [
      f"{file} has {name}, which the index puts into {index.get(name)}"
      for name in sorted(set(found) - stated)
    ]
    tensors |= found
  if problems:
    raise ValueError(
      f"{path} does not hold what {_INDEX} says:\n  " + "\n  ".join(problems)
    )
  return tensors


def _read_file(path: Any) -> Tensors:
  try:
    from safetensors import SafetensorError
    from safetensors import numpy as safetensors
  except ImportError as error:
    raise ImportError(
      "reading weights needs safetensors: pip install 'foveal[hub]'"
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
      f"source is {str(path)!r}, which cannot be read ({error}). It may be "
      "empty or cut short, a page or a pointer that was saved in its place, or "
      "have a dtype that numpy has not: get it again"
    ) from error


def _refuse_pickle(path: Any) -> None:
  if path.suffix in _PICKLES and not path.is_dir():
    raise ValueError(
      f"source is {str(path)!r}, a pickle: reading one runs whatever code it "
      "holds. Where you trust it, convert it with safetensors.torch.save_file"
    )


def _download_timm(name: str) -> str:
  hub = _hub()
  try:
    return hub.hf_hub_download(f"timm/{name}", _WHOLE)
  except Exception as error:  # Its errors vary with version and transport.
    raise ValueError(
      f"source is 'timm:{name}', which could not be downloaded "
      f"({type(error).__name__}: {error}). By hand: get "
      f"https://huggingface.co/timm/{name}/resolve/main/{_WHOLE} and "
      "give its path as source"
    ) from error


def _download_repository(name: str) -> str:
  hub = _hub()
  try:
    return hub.snapshot_download(
      name, allow_patterns=[CONFIG, _WHOLE, _INDEX, _SHARDS]
    )
  except Exception as error:  # Its errors vary with version and transport.
    raise ValueError(
      f"source is {name!r}, which is no folder here and could not be "
      f"downloaded ({type(error).__name__}: {error}). By hand: get {CONFIG}, "
      f"the .safetensors files and, if there are several, {_INDEX} from "
      f"https://huggingface.co/{name}/tree/main and give their folder as source"
    ) from error


def _hub() -> Any:
  try:
    import huggingface_hub
  except ImportError as error:
    raise ImportError(
      "downloading weights needs huggingface_hub: pip install 'foveal[hub]'"
    ) from error
  return huggingface_hub
