"""Operations of a storage that may not answer, done again after a while."""

import errno
import random
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from absl import logging

Result = TypeVar("Result")

# Seconds before the second try; each later one waits twice as long, in all
# about two minutes for the default of tries.
FIRST_WAIT = 1.0
LONGEST_WAIT = 64.0
TRIES = 8

# A network or a server that is away. A full disk, a missing file or a wrong
# permission does not heal by waiting, and is not among them.
_TRANSIENT_ERRNOS = frozenset(
  (
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EINTR,
    errno.EIO,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    errno.EPIPE,
    errno.EREMOTEIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
  )
)
_TRANSIENT_HTTP = frozenset((408, 429, 500, 502, 503, 504))
# How gRPC, TensorStore and TensorFlow begin such errors.
_TRANSIENT_TEXT = re.compile(
  r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|"
  r"(HTTP|status)[^0-9]{0,20}(408|429|500|502|503|504))\b"
)


def is_transient(error: BaseException | None) -> bool:
  """Whether the same operation may succeed later.

  Knows system errors by their number, errors of HTTP by the status that the
  libraries of the clouds keep in one of a few places, and what TensorStore says
  as text. The cause of an error counts as well.
  """
  seen = []
  while error is not None and error not in seen:
    if _is_transient_itself(error):
      return True
    seen.append(error)
    error = error.__cause__ or error.__context__
  return False


def _is_transient_itself(error: BaseException) -> bool:
  if isinstance(error, OSError) and error.errno is not None:
    return error.errno in _TRANSIENT_ERRNOS
  if isinstance(error, TimeoutError | ConnectionError):
    return True
  status = _http_status(error)
  if status is not None:
    return status in _TRANSIENT_HTTP
  return bool(_TRANSIENT_TEXT.search(str(error)))


def _http_status(error: BaseException) -> int | None:
  """As gcsfs, aiohttp, requests, google.api_core and botocore keep it."""
  response = getattr(error, "response", None)
  if isinstance(response, dict):
    response = response.get("ResponseMetadata", {})
    candidates = [response.get("HTTPStatusCode")]
  else:
    candidates = [
      getattr(holder, name, None)
      for holder in (error, response)
      for name in ("status_code", "status", "code")
    ]
  for candidate in candidates:
    text = str(candidate)
    if text.isdecimal() and 100 <= int(text) < 600:
      return int(text)
  return None


def retry(
  operation: Callable[..., Result], *arguments: Any, what: str
) -> Result:
  """Calls `operation(*arguments)`, again after transient errors.

  The waits double, with some chance so that the hosts of a pod do not all come
  back at once. What is not transient is raised at once, and a transient error
  after the last try.

  Args:
    operation: may be called again from the start after it failed.
    *arguments: of it.
    what: it does, for the log, as "writing runs/a/config.json".

  Returns:
    What it returned.
  """
  wait = FIRST_WAIT
  for tried in range(1, TRIES + 1):
    try:
      return operation(*arguments)
    except Exception as error:
      if tried == TRIES or not is_transient(error):
        raise
      logging.warning(
        "%s failed (try %d of %d), again in %.0f s: %s: %s",
        what,
        tried,
        TRIES,
        wait,
        type(error).__name__,
        error,
      )
    time.sleep(wait * random.uniform(0.75, 1.25))
    wait = min(2 * wait, LONGEST_WAIT)
  raise AssertionError("the last try returns or raises")
