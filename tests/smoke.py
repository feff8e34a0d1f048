"""Marks a cover of the tests as smoke: of every file the first that is cheap.

A plugin of pytest, loaded by conftest.py. So every package has some, and a new
file needs no list. Tests that say more than the first are marked by hand.
"""

import pytest

# The newest jax is tested without the extras that some of these need.
LEFT_OUT = ("slow", "kill", "compile", "parity")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
  covered = set()
  for item in items:
    if item.path in covered:
      continue
    if not any(item.get_closest_marker(name) for name in LEFT_OUT):
      item.add_marker("smoke")
      covered.add(item.path)
