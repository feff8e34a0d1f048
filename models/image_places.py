"""Where the image of a row stands among the tokens of its text.

A row of a model of images and text is the text with the tokens of one image put
in before the token `start`: 0 has the image first, 2 has two tokens before it.
Rows of a batch may have it at different places. What edits and analyses know of
it is the value SPAN of the model, and nothing else.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# A tap of the model and an entry of its cache: the positions of the first image
# token and of what follows the last one, int32 [batch, 2]; (0, 0) for none.
SPAN = "image_span"
# One for all rows, known before the program runs; or int32 [batch].
Start = int | jax.Array


def checked(start: Start, tokens: jax.Array) -> Start:
  """Returns where images stand, an int or int32 [batch].

  Args:
    start: before which token; an integer for all rows, or integers [batch].
    tokens: of the text, [batch, length, ...].

  Raises:
    ValueError: if it has another shape or dtype or, as far as that is known
      before the program runs, is not from 0 to length.
  """
  batch, length = tokens.shape[:2]
  given = jnp.asarray(start)
  check_form(given, batch)
  if not isinstance(given, jax.core.Tracer):
    values = np.asarray(start)
    if ((values < 0) | (values > length)).any():
      raise ValueError(
        f"image_start is {values.tolist()}; it must be from 0, the image "
        f"first, to length={length}, the image behind the text"
      )
  if isinstance(start, int):
    return start
  return jnp.broadcast_to(given.astype(jnp.int32), (batch,))


def check_form(start: jax.Array | np.ndarray, batch: int) -> None:
  """Raises a ValueError unless it is an integer, or integers [batch]."""
  is_integer = jnp.issubdtype(start.dtype, jnp.integer)
  if not is_integer or start.shape not in ((), (batch,)):
    raise ValueError(
      f"image_start is {start.dtype} of shape {start.shape}; it must be an "
      f"integer, or integers [batch] = ({batch},)"
    )


def joined(text: jax.Array, image: jax.Array, start: Start) -> jax.Array:
  """Puts image tokens into texts.

  Args:
    text: [batch, length, channels].
    image: [batch, image tokens, channels].
    start: see `checked`.

  Returns:
    [batch, length + image tokens, channels].
  """
  if isinstance(start, int):
    return jnp.concatenate([text[:, :start], image, text[:, start:]], axis=1)
  count = image.shape[1]
  both = jnp.concatenate([image, text], axis=1)
  place = jnp.arange(both.shape[1])[None]
  begin = start[:, None]
  before = jnp.where(place < begin, count + place, place)
  inside = (place >= begin) & (place < begin + count)
  return _taken(both, jnp.where(inside, place - begin, before))


def text_of(x: jax.Array, start: Start, count: int) -> jax.Array:
  """What a row [batch, length + count, channels] has at its text."""
  if isinstance(start, int):
    return jnp.concatenate([x[:, :start], x[:, start + count :]], axis=1)
  place = jnp.arange(x.shape[1] - count)[None]
  return _taken(x, jnp.where(place < start[:, None], place, place + count))


def image_of(x: jax.Array, start: Start, count: int) -> jax.Array:
  """What a row [batch, length + count, channels] has at its image."""
  if isinstance(start, int):
    return x[:, start : start + count]
  return _taken(x, start[:, None] + jnp.arange(count)[None])


def span(
  start: Start, count: int, batch: int, positions: jax.Array | None = None
) -> jax.Array:
  """The value SPAN of rows.

  Args:
    start: see `checked`.
    count: of image tokens.
    batch: number of rows.
    positions: of whole rows, int32 [batch, length + count], going up by one in
      the image; 0, 1, 2, ... if None.
  """
  first = jnp.broadcast_to(jnp.asarray(start, jnp.int32), (batch,))[:, None]
  if positions is not None:
    first = jnp.take_along_axis(positions.astype(jnp.int32), first, axis=1)
  return jnp.concatenate([first, first + count], axis=1)


def within(positions: jax.Array, span: jax.Array) -> jax.Array:
  """Which tokens are of the image, bool [batch, length].

  Args:
    positions: of tokens, int32 [batch or 1, length].
    span: the value SPAN.
  """
  return (positions >= span[:, :1]) & (positions < span[:, 1:])


def from_placeholders(
  rows: Sequence[Sequence[int]], image_token: int
) -> tuple[list[list[int]], np.ndarray]:
  """Texts without the tokens that stand for their images, and where those were.

  So tokenizers write images: one placeholder, "<image>", or as many as the
  image has tokens, one behind another.

  Args:
    rows: tokens of each row, of any lengths.
    image_token: the placeholder, `image_token_index` of LLaVA's config.json.

  Returns:
    (texts, image_start): the rest of each row, and int32 [rows], how many
    tokens of it are before the image.

  Raises:
    ValueError: if a row has no placeholder, or some at two places.
  """
  texts, starts = [], []
  for i, row in enumerate(rows):
    row = np.asarray(row)
    at = np.flatnonzero(row == image_token)
    if not len(at) or at[-1] - at[0] + 1 != len(at):
      raise ValueError(
        f"rows[{i}] has image_token={image_token} at {at.tolist()}; it must "
        "have one, or several one behind another: one image"
      )
    texts.append(np.delete(row, at).tolist())
    starts.append(at[0])
  return texts, np.array(starts, np.int32)


def _taken(x: jax.Array, places: jax.Array) -> jax.Array:
  return jnp.take_along_axis(x, places[..., None], axis=1)
