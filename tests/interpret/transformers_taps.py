"""What is within a model of transformers, under our names of taps.

By its own outputs, forward hooks and, for what no module of it has, the
function that computes attention.
"""

from typing import Any, NamedTuple

import numpy as np

from tests import parity_helper


class Parts(NamedTuple):
  """Where a family has what taps name, within one of its layers.

  Attributes:
    layers: the list of layers in the model.
    mixer: the module of attention.
    out: its output projection.
    middle: what reads the stream between the branches.
    mlp: the feed-forward layer.
    shrink: its last dense layer.
    mixer_written: what gives what attention adds to the stream.
    mlp_written: likewise.
  """

  layers: str
  mixer: str
  out: str
  middle: str
  mlp: str
  shrink: str
  mixer_written: str
  mlp_written: str


PARTS = {
  "gpt2": Parts(
    "transformer.h",
    "attn",
    "attn.c_proj",
    "ln_2",
    "mlp",
    "mlp.c_proj",
    "attn",
    "mlp",
  ),
  "qwen3": Parts(
    "model.layers",
    "self_attn",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp",
    "mlp.down_proj",
    "self_attn",
    "mlp",
  ),
  "gemma2": Parts(
    "model.layers",
    "self_attn",
    "self_attn.o_proj",
    "pre_feedforward_layernorm",
    "mlp",
    "mlp.down_proj",
    "post_attention_layernorm",
    "post_feedforward_layernorm",
  ),
}


def read(case, model, run) -> dict[str, np.ndarray]:
  """Runs a model and returns its values by our names.

  Args:
    case: the `transformers_oracle.Case`.
    model: of transformers, with `attn_implementation="eager"`.
    run: calls it, given options of its call.
  """
  torch, module = parity_helper.import_transformers(case.family)
  parts = PARTS[case.family]
  layers = model.get_submodule(parts.layers)
  found, handles, attended = {}, [], []
  for i, layer in enumerate(layers):
    for name, path, before in (
      ("input_state", "", True),
      ("mixer/head_outputs", parts.out, True),
      ("mixer_output", parts.mixer_written, False),
      ("middle_state", parts.middle, True),
      ("mlp/hidden", parts.shrink, True),
      ("mlp_output", parts.mlp_written, False),
      ("hidden_state", "", False),
    ):
      hook = _keep(found, f"layer_{i}/{name}", before)
      own = layer.get_submodule(path)
      if before:
        handles.append(own.register_forward_pre_hook(hook, with_kwargs=True))
      else:
        handles.append(own.register_forward_hook(hook))
  attend = module.eager_attention_forward

  def listen(own, query, key, value, mask, **options):
    attended.append((query, key, value, mask, options))
    return attend(own, query, key, value, mask, **options)

  module.eager_attention_forward = listen
  try:
    with torch.no_grad():
      out = run(output_attentions=True, output_hidden_states=True)
  finally:
    module.eager_attention_forward = attend
    for handle in handles:
      handle.remove()
  assert len(out.attentions) == len(attended) == len(layers)
  assert len(out.hidden_states) == len(layers) + 1
  found["embedded_state"] = out.hidden_states[0]
  found["final_state"] = out.hidden_states[-1]
  found["logits"] = out.logits
  for i, weights in enumerate(out.attentions):
    name = f"layer_{i}/mixer"
    found[f"{name}/attention_weights"] = weights
    query, key, value = attended[i][:3]
    for part, heads in (("queries", query), ("keys", key), ("values", value)):
      found[f"{name}/{part}"] = heads.transpose(1, 2)
    found[f"{name}/attention_scores"] = _scores(torch, *attended[i])
    outputs = found[f"{name}/head_outputs"]
    shape = (*outputs.shape[:2], query.shape[1], -1)
    found[f"{name}/head_outputs"] = outputs.reshape(shape)
    # Twice, from what a layer is given and from what the model says.
    state = out.hidden_states[i].numpy()
    np.testing.assert_array_equal(found[f"layer_{i}/input_state"], state)
  return {name: value.numpy().copy() for name, value in found.items()}


def _keep(found, name, before):
  """Makes a hook that keeps the first input or output of a module."""

  def hook(_, given, last):
    value = (given or [last["hidden_states"]]) if before else last
    found[name] = value[0] if isinstance(value, (list, tuple)) else value

  return hook


def _scores(torch, query, key, value, mask, options: dict[str, Any]):
  """Scores before the softmax: scaled, capped, -inf where hidden."""
  del value
  key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
  scores = query @ key.transpose(2, 3)
  scores = scores * (options.get("scaling") or query.shape[-1] ** -0.5)
  if cap := options.get("softcap"):
    scores = cap * torch.tanh(scores / cap)
  return scores.masked_fill(mask[..., : key.shape[2]] < -1e30, -torch.inf)
