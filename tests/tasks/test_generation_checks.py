import pytest

from input_pipeline import latents
from models.lina import Lina
from tasks import generation_checks


@pytest.mark.parametrize(
  ("text_shape", "message"),
  [
    ((512, 8), None),
    ((513, 8), "data.text='a.npz' has texts of 513 tokens.* takes 512"),
    ((4, 9), "model.text_width=8 does not fit data.text='a.npz'.* needs 9"),
    (None, "model.text_width=8 does not fit"),
  ],
)
def test_texts(text_shape, message):
  data = latents.default_config()
  data.text = "a.npz"
  info = latents.DatasetInfo(
    num_eval_examples=1,
    class_names=("a",),
    image_shape=(8, 8, 1),
    latent_shape=(4, 4, 2),
    text_shape=text_shape,
  )
  model = Lina(grid=(4, 4), token_dim=2, text_width=8)
  if message is None:
    generation_checks.check_data(data, info, model)
    return
  with pytest.raises(ValueError, match=message):
    generation_checks.check_data(data, info, model)
