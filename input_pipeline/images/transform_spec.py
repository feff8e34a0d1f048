"""Transforms written as strings, such as "random_resized_crop|flip()".

Strings are what a shell overrides most easily:
`--config.data.train_transform='affine(rotate=15)|flip'`.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from input_pipeline import call_spec
from input_pipeline.images import augment, steps
from input_pipeline.stream import Example


def create_transform(
  spec: str,
  *,
  image_size: int,
  images: Sequence[str] = ("image",),
  label_maps: Sequence[str] = (),
) -> Callable[[Example, np.random.Generator], Example]:
  """Makes one transform of operations joined by "|", from left to right.

  What moves pixels moves those of all images and label maps alike, by the same
  draws; label maps, whose numbers are names, are never interpolated. What
  changes values changes the first of `images` only.

  Args:
    spec: names of `augment.OPERATIONS` with options in Python's syntax. Only
      literals are understood, and a bare word is a string: `method=bilinear`.
    image_size: the `size` of operations that are given none, in pixels.
    images: which arrays of an example are images.
    label_maps: which are maps of labels, uint8 `[height, width, 1]`.

  Returns:
    A function of an example, a dictionary, and a random generator that returns
    the example with other images, uint8 `[height, width, channels]`. They may
    be `decode.EncodedImage` before. It raises `ValueError` where they differ in
    size.

  Raises:
    ValueError: for anything else, with the operations or options there are.
  """
  sequence = [
    _create_step(call, image_size, images, label_maps)
    for call in call_spec.parse(spec, "resize(256)|center_crop")
  ]
  names = (*images, *label_maps)

  def apply(example: Example, rng: np.random.Generator) -> Example:
    changed = functools.reduce(lambda x, step: step(x, rng), sequence, example)
    return steps.decode_all(changed, names)

  return apply


def _create_step(
  call: call_spec.Call,
  image_size: int,
  images: Sequence[str],
  label_maps: Sequence[str],
) -> steps.Step:
  """The operation that a call names, on all that it acts on."""
  name = call.name
  if name not in augment.OPERATIONS:
    raise ValueError(
      f"{name!r} is no operation; there are {', '.join(augment.OPERATIONS)}."
    )
  names = (*images, *label_maps)
  if name in augment.SINGLE and len(names) > 1:
    raise ValueError(
      f"{name!r} moves pixels and changes their values in one, so it is for"
      f" single images, not for {', '.join(names)}."
    )
  operation, size = augment.OPERATIONS[name], {"size": image_size}
  transform = call.make(operation, defaults=size)
  if name not in augment.GEOMETRIC:
    return steps.Step({images[0]: transform})
  unmixed = call.make(operation, defaults=size, overrides={"method": "nearest"})
  return steps.Step(
    dict.fromkeys(images, transform) | dict.fromkeys(label_maps, unmixed)
  )
