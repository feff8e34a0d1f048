"""Captions to encode: of classes by their names, or lines of JSON."""

import json
from typing import Any

import ml_collections

from input_pipeline import images
from input_pipeline.text import files
from input_pipeline.text.documents import Document

_OWNERS = ("label", "example", "split")


def of_classes(
  config: ml_collections.ConfigDict, template: str
) -> tuple[list[Document], dict[str, list[int]]]:
  """A caption for each class of the images.

  Raises:
    ValueError: if there is no {name} in the template.
  """
  if "{name}" not in template:
    raise ValueError(
      f"template is {template!r}; it needs {{name}}, as 'the digit {{name}}'."
    )
  data = config.data.copy_and_resolve_references()
  data.classes = ()
  names = images.dataset_info(data).class_names
  texts = [
    Document(f"class {name}", template.replace("{name}", name))
    for name in names
  ]
  return texts, {"label": list(range(len(names)))}


def of_lines(patterns: str) -> tuple[list[Document], dict[str, list[Any]]]:
  """The captions of files of JSON lines, and whose each is.

  Raises:
    ValueError: if there is no such file, for lines without text, or that do
      not all say whose they are.
  """
  texts, records = [], []
  for path in files.find(patterns, "captions"):
    for number, line in enumerate(path.read_text().splitlines(), 1):
      if line.strip():
        place = f"{path}, line {number}"
        records.append(_record(line, place))
        texts.append(Document(place, records[-1]["text"]))
  if not texts:
    raise ValueError(f"captions {patterns!r} have no line.")
  found = [name for name in _OWNERS if name in records[0]]
  if found not in ([], ["label"], ["example", "split"]):
    raise ValueError(
      f"{texts[0].name} has {', '.join(found)}, but a caption is of a label, "
      "of an example with its split, or says nothing."
    )
  for text, record in zip(texts, records, strict=True):
    if found != [name for name in _OWNERS if name in record]:
      raise ValueError(
        f"{text.name} and {texts[0].name} do not say in the same way whose "
        f"they are: the second has {', '.join(found) or 'none'} of "
        f"{', '.join(_OWNERS)}."
      )
  return texts, {name: [each[name] for each in records] for name in found}


def _record(line: str, place: str) -> dict[str, Any]:
  try:
    record = json.loads(line)
  except json.JSONDecodeError as error:
    raise ValueError(f"{place} is not JSON: {error}.") from error
  if not isinstance(record, dict) or not isinstance(record.get("text"), str):
    raise ValueError(f"{place} is no object with a string in text.")
  for name in ("label", "example"):
    value = record.get(name, 0)
    if type(value) is not int or value < 0:
      raise ValueError(f"{place} has {name}={value!r}; it must be an int >= 0.")
  return record
