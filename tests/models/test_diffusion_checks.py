"""Fields and inputs that a diffusion transformer refuses."""

import jax
import jax.numpy as jnp
import pytest

from models.diffusion_transformer import DiffusionTransformer
from tests.models.diffusion_small import (
  CROSS,
  SMALL,
  inputs_of,
)

WRONG = {
  "width is 25": {"width": 25},
  r"sample_shape has sides \(6, 7\).* 8 in place of 7 along axis 1": {
    "sample_shape": (6, 7)
  },
  r"patch_size is \(2,\)": {"patch_size": (2,)},
  "no conditioning 'adaptiv'; did you mean adaptive": {
    "conditioning": "adaptiv"
  },
  "no position_encoding 'sin'": {"position_encoding": "sin"},
  "no mixer 'atention'; did you mean attention": {"mixer": "atention"},
  "no attend 'ful'; did you mean full": {"attend": "ful"},
  "no option of cross_attend='full' 'scales'; did you mean scale": {
    "cross_attend_options": {"scales": 1}
  },
  "no scale_by 'log'": {"attend_options": {"scale_by": "log"}},
  "dense_layers is 3; the model has 0 to 2": {"dense_layers": 3},
  "guided_channels is 4": {"guided_channels": 4},
  "text_width is 5, and conditioning='adaptive' reads no text": {
    "text_width": 5
  },
  "text_width is 5 and num_classes 5": {
    "conditioning": "cross",
    "text_width": 5,
  },
  "rotary' of 2 axes needs width / heads": {
    "position_encoding": "rotary",
    "heads": 12,
  },
}


@pytest.mark.parametrize("message", WRONG)
def test_fields_that_do_not_fit(message):
  model = DiffusionTransformer(**{**SMALL, **WRONG[message]})
  shape = 2, *model.sample_shape, 3
  args = jnp.zeros(shape), jnp.zeros((2,))
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(model.init, jax.random.key(0), *args)


WRONG_INPUTS = {
  r"x has shape \(2, 6, 8, 4\)": {"x": jnp.zeros((2, 6, 8, 4))},
  r"x has sides \(5, 8\); .* as 4 in place of 5 along axis 0": {
    "x": jnp.zeros((2, 5, 8, 3))
  },
  "time is int32": {"time": jnp.zeros((2,), jnp.int32)},
  r"label has shape \(2,\); the model needs \[2, 2\]": {
    "label": jnp.zeros((2,), jnp.int32)
  },
  "label has 6; they are 0 to 4, and 5 for no class": {
    "label": jnp.full((2, 2), 6)
  },
  "text is given, and text_width is 0": {"text": jnp.zeros((2, 1, 4))},
  "text_length is given without": {"text_length": jnp.zeros((2,), jnp.int32)},
}


@pytest.mark.parametrize("message", WRONG_INPUTS)
def test_inputs_that_do_not_fit(message):
  model = DiffusionTransformer(**CROSS)
  x, time, label = inputs_of(model)
  given = {"x": x, "time": time, "label": label, **WRONG_INPUTS[message]}
  with pytest.raises(ValueError, match=message):
    model.apply({"params": {}}, **given)
