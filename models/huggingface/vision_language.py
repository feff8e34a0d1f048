"""Fields of `VisionLanguage` for models of images and text of the hub."""

from collections.abc import Mapping
from typing import Any

from flax.core import FrozenDict

from models.huggingface import decoders
from models.huggingface.options import Options

# What transformers has for keys that a file leaves out, as LLaVA 1.5's does.
_LLAMA = {
  "vocab_size": 32000,
  "hidden_size": 4096,
  "intermediate_size": 11008,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "max_position_embeddings": 2048,
}
_CLIP = {
  "hidden_size": 1024,
  "intermediate_size": 4096,
  "num_hidden_layers": 24,
  "num_attention_heads": 16,
  "image_size": 336,
  "patch_size": 14,
}


def llava(options: Options) -> dict[str, Any]:
  """LLaVA 1.5 (2310.03744): CLIP's ViT, a perceptron and Llama.

  Features are of a layer before the ViT's last, without the class token. The
  ViT has the blocks after that layer too, as files do; nothing reads them.
  """
  options.expect(
    vision_feature_select_strategy="default",
    projector_hidden_act="gelu",
    multimodal_projector_bias=True,
  )
  # Which token a tokenizer writes for an image, and how often: it says where
  # images stand, `image_places.from_placeholders`, and is in no text of ours.
  options.drop("image_token_index", "image_token_id", "image_seq_length")
  layer = options.take("vision_feature_layer", -2)
  # Older files have it beside that of the text.
  tied = options.take("tie_word_embeddings", False)
  text = _within(options, "text_config", "llama", _LLAMA)
  fields = decoders.llama(text)
  text.note_unknown()
  vision = _clip(_within(options, "vision_config", "clip_vision_model", _CLIP))
  depth = vision["depth"]
  if not isinstance(layer, int) or not -depth - 1 <= layer <= depth:
    options.note(
      f"vision_feature_layer is {layer!r}; we have one layer of the "
      f"{depth} of the ViT, from {-depth - 1} to {depth}"
    )
    layer = 0
  return {
    **fields,
    "tied_head": fields["tied_head"] or tied,
    "vision": FrozenDict(vision),
    "vision_levels": (layer % (depth + 1),),
    "compression": 1,
  }


def _clip(options: Options) -> dict[str, Any]:
  """Fields of `PatchMixer` for the ViT of CLIP (2103.00020)."""
  options.expect(num_channels=3)
  # Of the text that it was trained beside, and of a fresh model.
  options.drop("projection_dim", "vocab_size", "initializer_factor")
  fields = {
    "width": options.take("hidden_size"),
    "depth": options.take("num_hidden_layers"),
    "heads": options.take("num_attention_heads"),
    "hidden_width": options.take("intermediate_size"),
    "image_size": options.take("image_size"),
    "patch_size": options.take("patch_size"),
    "epsilon": options.take("layer_norm_eps", 1e-5),
    "activation": options.choose(
      "hidden_act", {"gelu": "gelu", "quick_gelu": "quick_gelu"}, "quick_gelu"
    ),
    "class_token": True,
    "patch_bias": False,
    "embedding_norm": True,
  }
  options.note_unknown()
  return fields


def _within(
  options: Options, key: str, kind: str, defaults: Mapping[str, Any]
) -> Options:
  """The keys of a part, which has to be of a kind."""
  part = options.within(key, defaults)
  if part.kind not in (None, kind):
    options.note(f"{key}.model_type is {part.kind!r}; we have {kind!r} alone")
  return part
