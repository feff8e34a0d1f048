"""Tests, and what they share.

torch-fidelity installs a package of this name. A folder without this file would
come after it.
"""
