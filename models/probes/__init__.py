"""Probes: what a classifier reads of a frozen trunk's tokens, by name.

Names are those of the code of efficient probing (arXiv 2506.10178). "cls" and
"gap", linear probing, read the class token and the mean of the others. All
others pool the tokens of the map; with "_all" behind the name the class token
is one of them, as for trunks that were trained by it.
"""

from models.probes.head import Head
from models.probes.names import LINEAR, POOLINGS, create, names
from models.probes.parts import Pooling

__all__ = ["LINEAR", "POOLINGS", "Head", "Pooling", "create", "names"]
