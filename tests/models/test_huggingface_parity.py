"""Language models of the hub against transformers' own code."""

import functools

import jax
import numpy as np
import pytest

from models import huggingface, pretrained, taps
from tests import parity_helper
from tests.models import transformers_oracle as oracle

pytestmark = pytest.mark.parity


def _load(folder, model, **overrides):
  model.save_pretrained(folder, max_shard_size="30KB")
  assert (folder / "model.safetensors.index.json").exists()
  return pretrained.from_huggingface(folder, **overrides)


def _their_gradients(model, logits, direction):
  torch = parity_helper.import_torch()
  (logits * torch.from_numpy(direction)).sum().backward()
  return {
    name: parameter.grad.numpy() for name, parameter in model.named_parameters()
  }


def _our_gradients(model, variables, naming, tokens, direction, **options):
  @jax.jit
  def run(variables, tokens, options):
    def loss(variables):
      logits = model.apply(variables, tokens, **options)
      return (logits * direction).sum(), logits

    return jax.grad(loss, has_aux=True)(variables)

  gradients, logits = run(variables, tokens, options)
  weight_map = naming.weight_map(model)
  tensors = pretrained.to_tensors(gradients, model, weight_map=weight_map)
  return np.asarray(logits), tensors


@pytest.mark.parametrize("case", oracle.CASES)
def test_logits_and_gradients(case, tmp_path):
  torch = parity_helper.import_torch()
  case = oracle.CASES[case]
  theirs = case.model()
  model, variables = _load(tmp_path, theirs)
  tokens, positions = oracle.batch()
  real = positions >= 0
  ours, own = {"positions": positions}, {}
  if model.token_types:
    ours["token_types"] = tokens % model.token_types
    own["token_type_ids"] = torch.from_numpy(ours["token_types"]).long()
  expected = oracle.run(theirs, tokens, positions, **own).logits
  rng = np.random.default_rng(2)
  direction = rng.standard_normal(expected.shape, np.float32) * real[..., None]
  expected_gradients = _their_gradients(theirs, expected, direction)
  expected = expected.detach().numpy()
  naming = huggingface.ARCHITECTURES[case.family].naming
  logits, gradients = _our_gradients(
    model, variables, naming, tokens, direction, **ours
  )
  assert expected[real].std() > 0.5
  np.testing.assert_allclose(logits[real], expected[real], atol=1e-4)
  assert gradients.keys() == expected_gradients.keys()
  for name, value in expected_gradients.items():
    norm = np.linalg.norm(value)
    error = np.linalg.norm(gradients[name] - value)
    if name.endswith(".self.key.bias"):
      # Without rotary positions it adds the same to all scores of a query.
      assert max(norm, error) < 1e-3, name
    else:
      assert norm > 0.1, name
      assert error < 1e-3 * norm, name


@pytest.mark.parametrize(
  "case", [name for name, case in oracle.CASES.items() if case.different]
)
def test_what_a_case_is_there_for_matters(case):
  """Or the comparison would hold without it."""
  case = oracle.CASES[case]
  tokens, positions = oracle.batch()
  real = positions >= 0
  logits = [
    oracle.run(case.model(**options), tokens, positions).logits[real]
    for options in ({}, *case.different)
  ]
  for different, options in zip(logits[1:], case.different, strict=True):
    assert (different - logits[0]).abs().max() > 0.1, options


def test_attention_maps(tmp_path):
  case = oracle.CASES["gemma2"]
  theirs = case.model()
  model, variables = _load(tmp_path, theirs)
  tokens, positions = oracle.batch()
  expected = oracle.run(theirs, tokens, positions, output_attentions=True)
  expected = expected.attentions
  read = functools.partial(taps.read, model, names=["*/attention_weights"])
  _, maps = jax.jit(read)(variables, tokens, positions=positions)
  assert len(expected) == len(maps) == model.depth
  for i, theirs in enumerate(expected):
    ours = np.asarray(maps[f"layer_{i}/mixer/attention_weights"])
    for row, padding in enumerate(oracle.PADDING):
      real = (row, slice(None), slice(padding, None), slice(padding, None))
      np.testing.assert_allclose(
        ours[real], theirs.detach().numpy()[real], atol=1e-5
      )
