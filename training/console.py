"""What a run says to the person who started it."""

import jax


def say(text: str) -> None:
  """Prints on the first process only."""
  if jax.process_index() == 0:
    print(text, flush=True)
