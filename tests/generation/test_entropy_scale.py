"""The entropy scale while sampling: by hand, and nothing where N is T."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generation import methods
from models import decoding
from models.diffusion_transformer import DiffusionTransformer
from tests.models.diffusion_small import randomised

MODEL = DiffusionTransformer(
  sample_shape=(4, 6),
  channels=2,
  width=16,
  depth=1,
  heads=2,
  num_classes=3,
  conditioning="cross",
  position_encoding="rotary",
  implementation="xla",
)
# Each with a step of full attention, where it has such steps.
SPARSE = {
  "freeswim": {},
  "naive": {"dense_steps": 1},
  "psa": {"full_steps": 1},
  "radial": {"dense_steps": 1},
  "re_ttention": {"full_steps": 1},
  "scale_dit": {},
}


def _apply(model, variables, shape):
  return _jitted(decoding.hashable(model), variables, shape)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _jitted(model, variables, shape):
  x = jax.random.normal(jax.random.key(0), (2, *shape, 2))
  return model.apply(variables, x, jnp.full(2, 500.0), jnp.array([1, 3]))


def test_queries_are_longer_by_the_factor_where_there_are_more_tokens():
  """And of self-attention alone: what reads the classes stays as it is."""
  made = methods.create("entropy_scale", MODEL, 3, {})
  assert tuple(made.which) == (0, 0, 0)
  (model,) = made.models
  variables = randomised(MODEL)
  # Of 2 x 3 tokens in training 8 x 4 and 1 x 2 now.
  for shape in ((16, 8), (2, 4)):
    tokens = shape[0] * shape[1] // 4
    factor = np.sqrt(np.log(tokens) / np.log(6)).astype(np.float32)
    by_hand = jax.tree.map(jnp.copy, variables)
    query = by_hand["params"]["block_0"]["attention"]["query"]
    for name in query:
      query[name] *= factor
    got = _apply(model, variables, shape)
    np.testing.assert_allclose(got, _apply(MODEL, by_hand, shape), atol=2e-5)
    assert np.abs(got - _apply(MODEL, variables, shape)).max() > 1e-3


def test_no_bit_changes_at_the_size_of_training():
  (model,) = methods.create("entropy_scale", MODEL, 1, {}).models
  variables = randomised(MODEL)
  np.testing.assert_array_equal(
    _apply(model, variables, (4, 6)), _apply(MODEL, variables, (4, 6))
  )


def test_sparse_models_are_scaled_where_they_are_dense_too():
  """In the first steps, in the first layers, and where blocks are left out."""
  options = {"block_size": 2, "dense_steps": 1, "dense_layers": 1}
  options |= {"scale_by": "entropy", "density": 0.5}
  dense, sparse = methods.create("naive", MODEL, 3, options).models
  (scaled,) = methods.create("entropy_scale", MODEL, 3, {}).models
  assert dense == scaled
  # The model has one layer, and it is dense.
  variables = randomised(MODEL)
  np.testing.assert_array_equal(
    _apply(sparse, variables, (8, 8)), _apply(scaled, variables, (8, 8))
  )
  (again,) = methods.create(
    "entropy_scale",
    MODEL.clone(attend="naive", attend_options={"density": 0.5}),
    1,
    {},
  ).models
  assert again.attend == "naive"
  assert again.attend_options == {"density": 0.5, "scale_by": "entropy"}


def test_each_sparse_method_has_the_scale():
  video = MODEL.clone(sample_shape=(2, 4, 6), patch_size=(1, 2, 2))
  for name, options in SPARSE.items():
    made = methods.create(name, video, 2, {"scale_by": "entropy", **options})
    # FreeSwim's first has two parts.
    models = [
      getattr(model, part, model)
      for model in made.models
      for part in ("guide", "model")
    ]
    assert {m.attend_options["scale_by"] for m in models} == {"entropy"}


def test_models_without_scores():
  flow = MODEL.clone(attend="flow")
  with pytest.raises(ValueError, match=r"attend is 'flow', .* has no scores"):
    methods.create("entropy_scale", flow, 1, {})
  linear = MODEL.clone(mixer="linfusion")
  with pytest.raises(ValueError, match=r"mixer is 'linfusion', .* no scores"):
    methods.create("entropy_scale", linear, 1, {})
