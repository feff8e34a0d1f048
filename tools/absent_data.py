"""What a config's task has to know of data that are not here."""

import contextlib
import dataclasses
from typing import Any

import ml_collections

import models
import tasks
from input_pipeline import features, images, latents, restoration, text, visual
from models import lina_layers

# Classes, examples to train on and to evaluate of what is no part of this
# repository, by the name that TensorFlow Datasets has.
IMAGES = {
  "cifar10": (10, 50_000, 10_000),
  "cifar100": (100, 50_000, 10_000),
  "imagenet2012": (1000, 1_281_167, 50_000),
  "imagenet21k": (21_841, 14_197_122, 50_000),
  "svhn_cropped": (10, 73_257, 26_032),
}
# Tokens of tiny Shakespeare, the text of nanoGPT's example.
_CHARACTERS = 65
# Decides over nothing that is compiled.
_EXAMPLES = 1_000_000


def info(
  config: ml_collections.ConfigDict,
  *,
  num_classes: int = 0,
  vocabulary_size: int = 0,
) -> Any:
  """What `dataset_info` of the task's room would say, with all examples.

  Args:
    config: of a run.
    num_classes: of images whose data set is not known here.
    vocabulary_size: of a tokeniser that is not here; 0 has that of the
      published model, or else of the config's tokeniser.

  Raises:
    ValueError: for data that are neither known nor here.
  """
  room = tasks.find(config.task).room
  if room is images or (room is features and not config.data.features):
    return _images(config.data, num_classes)
  if room is latents:
    return _latents(config, num_classes)
  if room is visual:
    return _visual(config, num_classes)
  if room is restoration:
    return _restoration(config.data)
  if room is text:
    return _text(config, vocabulary_size)
  return room.dataset_info(config.data)


def _images(data, num_classes) -> images.DatasetInfo:
  name = data.name.split("/")[0].split(":")[0]
  if name not in IMAGES and not num_classes:
    # Those that are embedded.
    found = images.dataset_info(data)
    if found.num_train_examples is None:
      count = images.num_train_examples(data)
      found = dataclasses.replace(found, num_train_examples=count)
    return found
  classes, train, evaluate = IMAGES.get(name, (0, _EXAMPLES, _EXAMPLES))
  classes = num_classes or len(data.classes) or classes
  return images.DatasetInfo(
    num_eval_examples=evaluate,
    class_names=tuple(map(str, range(classes))),
    num_train_examples=train,
  )


def _latents(config, num_classes) -> latents.DatasetInfo:
  """Latents of the shape that the model takes, or pixels if it is theirs."""
  model = models.create(**config.model.to_dict())
  p, (rows, columns) = model.patch_size, model.grid
  shape = (rows * p, columns * p, model.token_dim // p**2)
  if not config.data.latents and not num_classes and not model.text_width:
    try:
      found = latents.dataset_info(config.data)
    except ValueError:
      found = None
    if found is not None and found.image_shape == shape:
      count = latents.num_train_examples(config.data)
      return dataclasses.replace(found, num_train_examples=count)
  classes, train, evaluate = IMAGES["imagenet2012"]
  texts = (lina_layers.MAX_TEXT, model.text_width) if model.text_width else None
  return latents.DatasetInfo(
    num_eval_examples=evaluate,
    class_names=tuple(map(str, range(num_classes or classes))),
    image_shape=(8 * shape[0], 8 * shape[1], 3),
    latent_shape=shape,
    text_shape=texts,
    num_train_examples=train,
  )


def _visual(config, num_classes) -> visual.DatasetInfo:
  """Latents of the shape that the model has by itself, or what is embedded."""
  if not config.data.latents and not num_classes:
    # Those that are embedded.
    with contextlib.suppress(ValueError):
      found = visual.dataset_info(config.data)
      count = visual.num_train_examples(config.data)
      return dataclasses.replace(found, num_train_examples=count)
  fields = models.fields(config.model.name)
  sides, channels = (fields[n][1] for n in ("sample_shape", "channels"))
  classes, train, evaluate = IMAGES["imagenet2012"]
  return visual.DatasetInfo(
    num_eval_examples=evaluate,
    class_names=tuple(map(str, range(num_classes or classes))),
    image_shape=(*(8 * side for side in sides), 3),
    latent_shape=(*sides, channels),
    num_train_examples=train,
  )


def _restoration(data) -> restoration.DatasetInfo:
  """Pairs of the config's sizes, as many as there are if they are here."""
  with contextlib.suppress(ValueError):
    found = restoration.dataset_info(data)
    count = restoration.num_train_examples(data)
    return dataclasses.replace(found, num_train_examples=count)
  return restoration.DatasetInfo(
    num_eval_examples=_EXAMPLES,
    scale=data.scale,
    patch_size=data.patch_size,
    degradations=(),
    num_train_examples=_EXAMPLES,
  )


def _text(config, vocabulary_size) -> text.TextInfo:
  name = config.data.tokenizer
  tokenizer = None
  if not vocabulary_size and name == "characters":
    vocabulary_size = _CHARACTERS
  if not vocabulary_size and name == "bytes":
    # Of a published model, whose tokeniser the user brings.
    own, plain = (
      models.fields(model)["vocabulary_size"][1]
      for model in (config.model.name, "transformer")
    )
    vocabulary_size = 0 if own == plain else own
  if not vocabulary_size:
    tokenizer = text.tokenizer_info(config.data).tokenizer
    vocabulary_size = tokenizer.vocabulary_size
  return text.TextInfo(
    vocabulary_size=vocabulary_size,
    tokenizer=tokenizer,
    num_eval_examples=_EXAMPLES,
    num_train_examples=_EXAMPLES,
  )
