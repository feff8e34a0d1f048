"""Models in Flax Linen: `create` makes one by name, `list` gives the names."""

from models.registry import create, fields, image_size, kind
from models.registry import list_models as list

__all__ = ["create", "fields", "image_size", "kind", "list"]
