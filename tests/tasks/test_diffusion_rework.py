"""Edited and enlarged samples are those of the functions themselves."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import generation
from generation import c_upscale, guide_and_rescale
from models.diffusion_transformer import DiffusionTransformer
from tasks import diffusion_sampling, image_decoding
from tasks.diffusion_rework import Rework

PATH = generation.flow()
PIXELS = types.SimpleNamespace(latent_shape=None)


@functools.cache
def start():
  model = DiffusionTransformer(
    sample_shape=(4, 4),
    channels=1,
    patch_size=(2, 2),
    width=8,
    depth=1,
    heads=1,
    num_classes=5,
    conditioning="cross",
    position_encoding="rotary",
  )
  variables = jax.jit(model.init)(jax.random.key(0), **model.example_inputs())
  rng = np.random.default_rng(0)
  draw = lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype)
  return model, jax.tree.map(draw, variables)


def draw(tmp_path, **options):
  """The picture of three samples of classes 0 and 3."""
  model, variables = start()
  diffusion_sampling.draw(
    model,
    variables,
    PATH,
    image_decoding.create(model, variables, PIXELS),
    sampling={"steps": 4, "guidance": 2.0, "solver": "ddim"},
    classes="0,3",
    num_samples=3,
    out=str(tmp_path / "grid.png"),
    **options,
  )
  return np.asarray(Image.open(tmp_path / "grid.png")).astype(int)


def pixels(x):
  return np.round(127.5 * (1 + np.clip(np.asarray(x), -1, 1)))


@pytest.mark.slow  # It samples, edits and enlarges, each a program.
def test_edits_and_larger_ones(tmp_path):
  """Of what was made, each with its class, and in their order."""
  model, variables = start()
  label = np.array([0, 3]).repeat(3)
  target = np.array([1, 2]).repeat(3)
  made = diffusion_sampling.samples(
    model, variables, PATH, {"label": label}, rows=6, steps=4, guidance=2.0
  )
  edited, _ = guide_and_rescale.edit(
    model,
    variables,
    jnp.asarray(made),
    PATH,
    source={"label": label},
    target={"label": target},
    preset="style",
    steps=4,
    guidance=3.0,
  )
  larger = c_upscale.upscale(
    model,
    variables,
    edited,
    PATH,
    condition={"label": target},
    key=jax.random.fold_in(jax.random.key(0), 0),
    steps=4,
    guidance=2.0,
    start=0.8,
    gate=False,
  )
  shown = draw(
    tmp_path,
    edit="1,2",
    edit_options="preset=style,guidance=3.0",
    upscale=2,
    upscale_options="gate=False,start=0.8",
  )
  # 8 x 8 pixels, each 8 wide, with a gap of 2.
  assert shown.shape == (2 + 2 * 66, 2 + 3 * 66)
  places = np.arange(8) * 8 + 4
  for n, image in enumerate(pixels(larger[..., 0])):
    row, column = divmod(n, 3)
    seen = shown[np.ix_(2 + 66 * row + places, 2 + 66 * column + places)]
    assert abs(seen - image).max() <= 1


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"edit": "7"}, "there is no class 7"),
    ({"edit": "1,2,3"}, "has 3 classes for 2 rows: one for all, or one for"),
    ({"edit_options": "preset=style"}, "is of something that is not asked for"),
    ({"edit": "1", "edit_options": "steps=2"}, "no option in edit_options"),
    ({"upscale": 0}, "upscale is 0; it must be at least 1"),
    ({"upscale": 2, "upscale_options": "mix=1"}, "no option in upscale_option"),
    ({"upscale": 2, "size": "8x8"}, "of samples of the trained size"),
    ({"edit": "1", "edit_options": "preset=all"}, "preset is 'all'; .* local"),
    ({"edit": "1", "edit_options": "guidance=1"}, "guidance=1 leaves no"),
    ({"edit": "1", "edit_options": "guidance=all"}, "guidance is 'all'; it"),
    ({"edit": "1", "edit_options": "style"}, "edit_options='style' is not"),
    ({"upscale": 2, "upscale_options": "start=2"}, "start is 2; .* a share"),
    ({"upscale": 2, "upscale_options": "start=0.01"}, "leaves no step of"),
    ({"upscale": 2, "upscale_options": "gate=no"}, "gate is 'no'; it must be"),
    ({"upscale": 2, "upscale_options": "overlap=2"}, "overlap is 2; it must"),
  ],
)
def test_refuses_before_any_sample(tmp_path, options, message):
  def progress(items, total):
    pytest.fail("a step was done")

  with pytest.raises(ValueError, match=message):
    draw(tmp_path, progress=progress, **options)


def test_texts_are_not_edited():
  texts = {"text": np.zeros((1, 2, 3))}
  with pytest.raises(ValueError, match="and these are texts"):
    Rework(None, PATH, texts, steps=4, guidance=2.0, edit="1")
