"""LLaVA of transformers, small and random: loaded, compared, differentiated."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import decoding, huggingface, image_places, pretrained
from models.vision_language import VisionLanguage
from tests import parity_helper

pytestmark = pytest.mark.parity
IMAGE, SEEN = 60, 9  # The token that stands for images, and how many.
CONFIG = {
  "image_token_index": IMAGE,
  "image_seq_length": SEEN,
  "vision_config": {
    "model_type": "clip_vision_model",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 12,
    "patch_size": 4,
  },
  "text_config": {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
  },
}


def _theirs(**vision):
  torch, module = parity_helper.import_transformers("llava")
  config = dict(CONFIG)
  config["vision_config"] = {**CONFIG["vision_config"], **vision}
  cls = module.LlavaForConditionalGeneration
  model = cls(cls.config_class(**config, attn_implementation="eager")).eval()
  rng = np.random.default_rng(0)
  with torch.no_grad():
    for name, parameter in sorted(model.named_parameters()):
      noise = rng.standard_normal(tuple(parameter.shape), np.float32)
      if parameter.ndim == 1:
        is_norm = "norm" in name and name.endswith("weight")
        value = 0.3 * noise + is_norm
      elif "embed" in name:
        value = 0.5 * noise
      else:
        value = noise / np.sqrt(np.prod(parameter.shape[1:]))
      parameter.copy_(torch.from_numpy(value.astype("f4")))
  return model


def _inputs():
  rng = np.random.default_rng(1)
  tokens = rng.integers(1, IMAGE, (2, 7), np.int32)
  return tokens, rng.standard_normal((2, 12, 12, 3), np.float32)


def _run(model, rows, images):
  """Logits of the text of rows with placeholders, [2, length, classes]."""
  torch = parity_helper.import_torch()
  pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  output = model(
    input_ids=torch.from_numpy(rows).long(),
    pixel_values=pixels.requires_grad_(),
  )
  text = torch.from_numpy(rows != IMAGE)
  return output.logits[text].reshape(2, -1, output.logits.shape[-1]), pixels


def _rows(tokens, starts):
  """Texts with the placeholders of an image in each, as processors have it."""
  placeholders = [IMAGE] * SEEN
  pairs = zip(tokens, starts, strict=True)
  return np.stack(
    [np.insert(row, [at] * SEEN, placeholders) for row, at in pairs]
  )


@pytest.fixture(scope="module")
def theirs():
  return _theirs()


@pytest.fixture(scope="module")
def loaded(theirs, tmp_path_factory):
  folder = tmp_path_factory.mktemp("llava")
  theirs.save_pretrained(folder, max_shard_size="30KB")
  return pretrained.from_huggingface(folder)


def test_logits_and_gradients(theirs, loaded):
  """Of a row that begins with its image, and one with four words before."""
  torch = parity_helper.import_torch()
  model, variables = loaded
  assert isinstance(model, VisionLanguage)
  tokens, images = _inputs()
  rows = _rows(tokens, (0, 4))
  expected, pixels = _run(theirs, rows, images)
  texts, places = image_places.from_placeholders(rows, IMAGE)
  np.testing.assert_array_equal(texts, tokens)
  direction = np.random.default_rng(2).standard_normal(
    tuple(expected.shape), np.float32
  )
  theirs.zero_grad()
  (expected * torch.from_numpy(direction)).sum().backward()

  @jax.jit
  def run(variables, images):
    def loss(variables, images):
      logits = model.apply(variables, tokens, images, places)
      return (logits * direction).sum(), logits

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables, images)

  (gradients, of_images), logits = run(variables, images)
  assert expected.std() > 0.5
  np.testing.assert_allclose(logits, expected.detach().numpy(), atol=1e-4)
  wanted = pixels.grad.numpy().transpose(0, 2, 3, 1)
  _close("images", of_images, wanted)

  naming = huggingface.ARCHITECTURES["llava"].naming
  weight_map = naming.weight_map(model)
  ours = pretrained.to_tensors(gradients, model, weight_map=weight_map)
  named = {
    name: np.zeros(tuple(p.shape)) if p.grad is None else p.grad.numpy()
    for name, p in theirs.named_parameters()
  }
  named, _ = naming.normalise(named, tied=False)
  assert ours.keys() == named.keys()
  for name, value in named.items():
    # The last block of the ViT is read by nobody.
    if ".encoder.layers.2." in name:
      assert not value.any()
      assert not ours[name].any()
    else:
      _close(name, ours[name], value)


def _close(name, ours, wanted):
  norm = np.linalg.norm(wanted)
  assert norm > 0.01, name
  assert np.linalg.norm(ours - wanted) < 1e-3 * norm, name


def test_generation_with_words_before_images(theirs, loaded):
  """What we say with a cache is the likeliest in one pass of theirs."""
  model, variables = loaded
  tokens, images = _inputs()
  rows = _rows(tokens, (4, 1))
  prompts, places = image_places.from_placeholders(rows, IMAGE)
  new = decoding.generate(
    model,
    variables,
    prompts,
    images=images,
    image_start=places,
    max_tokens=5,
  )
  whole = np.concatenate([rows, np.array(new)[:, :-1]], axis=1)
  expected, _ = _run(theirs, whole, images)
  said = expected.detach().numpy()[:, tokens.shape[1] - 1 :].argmax(-1)
  np.testing.assert_array_equal(said, new)


def test_what_is_unlike_other_vits_matters(theirs, loaded):
  """Or the comparison would hold without it."""
  model, variables = loaded
  tokens, images = _inputs()
  plain = model.apply(variables, tokens, images)
  for fields in (
    {"vision": {**model.vision, "activation": "gelu"}},
    {"vision_levels": (3,)},
  ):
    other = model.clone(**fields).apply(variables, tokens, images)
    assert abs(other - plain).max() > 1e-2, fields
  assert model.vision_levels == (2,)


def test_older_names_and_bfloat16(theirs, loaded, tmp_path):
  """Names as LLaVA 1.5's files have them, of the same tensors."""
  from safetensors import numpy as safetensors

  model, variables = loaded
  naming = huggingface.ARCHITECTURES["llava"].naming
  tensors = pretrained.to_tensors(
    variables, model, weight_map=naming.weight_map(model)
  )
  old = {}
  for name, tensor in tensors.items():
    name = name.replace("language_model.", "language_model.model.", 1)
    name = name.replace("lm_head.", "language_model.lm_head.", 1)
    name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    if ".qkv_proj" in name:
      for letter, part in zip("qkv", np.split(tensor, 3), strict=True):
        old[name.replace("qkv", letter)] = part.copy()
    else:
      old[name] = tensor
  safetensors.save_file(old, tmp_path / "model.safetensors")
  config = json.dumps({"model_type": "llava", **CONFIG})
  (tmp_path / "config.json").write_text(config)
  again, same = pretrained.from_huggingface(tmp_path, dtype="bfloat16")
  jax.tree.map(np.testing.assert_array_equal, same, variables)
  tokens, images = _inputs()
  expected = model.apply(variables, tokens, images)
  logits = again.apply(same, tokens, images)
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits, expected, atol=0.2)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"vision_feature_layer": [-2, -1]}, r"vision_feature_layer is \[-2, -1\]"),
    ({"vision_feature_layer": -5}, "from -4 to 3"),
    ({"vision_feature_select_strategy": "full"}, "we have 'default' alone"),
    ({"text_config": {"model_type": "opt"}}, "text_config.model_type is 'opt'"),
    ({"vision_config": {"hidden_act": "silu"}}, "vision_config.hidden_act is"),
    ({"projector_layers": 3}, "projector_layers is 3, a key that"),
  ],
)
def test_what_is_not_implemented_is_refused(changes, message):
  config = {"model_type": "llava", **CONFIG}
  for key, value in changes.items():
    within = isinstance(value, dict)
    config[key] = {**config[key], **value} if within else value
  with pytest.raises(ValueError, match=message):
    huggingface.fields(config)
