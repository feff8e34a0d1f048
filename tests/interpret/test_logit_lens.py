"""The last row of the lens is the model; the others are its head by hand."""

import jax
import numpy as np
import pytest

import interpret
from interpret import logit_lens
from tests.models import language


@pytest.mark.parametrize(
  "fields",
  [
    {
      "norm": "layer_norm",
      "scan_layers": True,
      "tied_head": False,
      "head_bias": True,
    },
    {"norm_placement": "post", "logit_soft_cap": 2.0},
  ],
)
def test_the_lens(fields):
  model = language.model(depth=2, **fields)
  variables = language.variables(model)
  tokens, positions, segments = language.packed()
  places = {"positions": positions, "segments": segments}
  found = jax.jit(lambda v: logit_lens.lens(model, v, tokens, **places).logits)(
    variables
  )
  names = ("embedded_state", "layer_0/hidden_state", "layer_1/hidden_state")
  out, values = jax.jit(
    lambda v: interpret.run(model, v, tokens, read=names, **places)
  )(variables)
  np.testing.assert_allclose(found[-1], out, atol=1e-5)
  params = variables["params"]
  state = np.asarray(values[names[1]])
  if "final_norm" in params:
    state = state - state.mean(-1, keepdims=True)
    mean_square = np.square(state).mean(-1, keepdims=True)
    state = state / np.sqrt(mean_square + model.norm_epsilon)
    norm = params["final_norm"]
    state = state * norm["scale"] + norm["bias"]
    head = params["head"]["logits"]
    expected = state @ head["kernel"] + head["bias"]
  else:
    expected = 2 * np.tanh(state @ params["embed"]["embedding"].T / 2)
  np.testing.assert_allclose(found[1], expected, atol=1e-4)
  assert np.abs(found[1] - found[2]).max() > 0.1


def test_what_a_lens_says():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(3, 2, 4, 7)).astype(np.float32)
  lens = logit_lens.Lens(("a", "b", "c"), jax.numpy.asarray(logits))
  tokens = rng.integers(0, 7, (2, 4))
  shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  probability, token = lens.top(2)
  np.testing.assert_array_equal(token[..., 0], logits.argmax(-1))
  np.testing.assert_allclose(
    probability, np.sort(shares, axis=-1)[..., :-3:-1], rtol=1e-5
  )
  logs, ranks = lens.log_probabilities(tokens), lens.ranks(tokens)
  for i, row, place in np.ndindex(3, 2, 4):
    own = shares[i, row, place, tokens[row, place]]
    assert logs[i, row, place] == pytest.approx(np.log(own), abs=1e-5)
    assert ranks[i, row, place] == (shares[i, row, place] > own).sum()


def test_the_last_positions_alone_and_errors():
  model = language.model()
  variables = language.variables(model)
  tokens = language.tokens()
  lens = logit_lens.lens(model, variables, tokens, last=2)
  assert lens.names == ("embedded_state", "layer_0/hidden_state")
  expected = model.apply(variables, tokens)[:, -2:]
  np.testing.assert_allclose(lens.logits[-1], expected, atol=1e-5)
  with pytest.raises(ValueError, match="last is 0"):
    logit_lens.lens(model, variables, tokens, last=0)
  other = language.model(residual="attention")
  with pytest.raises(ValueError, match="residual is 'attention'"):
    logit_lens.lens(other, variables, tokens)
