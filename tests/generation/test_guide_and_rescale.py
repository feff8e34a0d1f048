"""What docs of the paper's code say of its parts, and finite differences."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import generation
from generation import guide_and_rescale
from generation.guide_and_rescale import GuidedDenoiser, Guider, Preset
from models import taps
from models.dimr import DiMR
from tests.generation import toy

SOURCE, TARGET = np.array([0, 1]), np.array([2, 3])
GUIDERS = (
  Guider((guide_and_rescale.SELF_ATTENTION,), 3e3),
  Guider(("block_1/hidden_state",), 5.0, "absolute"),
  Guider(("block_0/hidden_state",), 2.5, condition="target"),
)
TIMES = np.array([900.0, 400.0, -1.0])


def guided(path, dtype=jnp.float32, guiders=GUIDERS, bounds=(0.33, 3.0)):
  """A denoiser with made-up latents, [3, 2, 6, 3]."""
  model, variables = toy.create(dtype)
  latents = np.random.default_rng(0).normal(size=(3, 2, 6, 3))
  return GuidedDenoiser(
    generation.create_denoiser(model, variables, label=TARGET, guidance=7.5),
    generation.create_denoiser(model, variables, label=SOURCE),
    jnp.asarray(latents, dtype),
    jnp.asarray(TIMES, jnp.float32),
    jnp.asarray(bounds, dtype),
    guiders,
    path,
  )


def near(denoise, place, dtype=jnp.float32):
  apart = 0.3 * np.random.default_rng(1).normal(size=(2, 6, 3))
  return denoise.latents[place] + jnp.asarray(apart, dtype)


# Piece by piece they take ten times as long.
terms = jax.jit(lambda denoise, *args: denoise.terms(*args)[0])


@functools.partial(jax.jit, static_argnames="names")
def model_at(denoise, x, time, label, names=()):
  inner = denoise.source
  return taps.read(
    inner.model,
    inner.variables,
    x,
    jnp.full(len(x), time, jnp.float32),
    label,
    names=names,
  )


def energy(denoise, x, time, reference):
  """The energy of each image, as section 3.3 of the paper's sheet has it."""
  maps = [f"block_{n}/attention/attention_weights" for n in (0, 1)]
  states = ["block_0/hidden_state", "block_1/hidden_state"]
  names = (*maps, *states)
  read = lambda y, label: {
    name: np.asarray(value)
    for name, value in model_at(denoise, y, time, label, names)[1].items()
  }
  now, target, then = (
    read(x, SOURCE),
    read(x, TARGET),
    read(reference, SOURCE),
  )
  mean = lambda values: values.reshape(2, -1).mean(axis=1)
  attention = sum(mean((now[name] - then[name]) ** 2) for name in maps)
  kept = mean(abs(now[states[1]] - then[states[1]]))
  style = mean((target[states[0]] - then[states[0]]) ** 2)
  return 3e3 * attention + 5.0 * kept + 2.5 * style


def test_gradient_is_that_of_finite_differences():
  with jax.enable_x64(True):
    denoise = guided(generation.ddpm(), jnp.float64)
    x = near(denoise, 1, jnp.float64)
    _, gradient, _, total = terms(denoise, x, 400.0, {})
    of = lambda y: energy(denoise, y, 400.0, denoise.latents[1])
    np.testing.assert_allclose(total, of(x), rtol=1e-9)
    for place in ((0, 0), (3, 2), (5, 1)):
      step = np.zeros(x.shape)
      step[(slice(None), *place)] = 1e-6
      slope = (of(x + step) - of(x - step)) / 2e-6
      np.testing.assert_allclose(
        gradient[(slice(None), *place)], slope, rtol=1e-5
      )


def test_nothing_where_the_latent_is_the_reference():
  """E = 0 and G = 0, r = 1, of what compares under the source's condition."""
  denoise = guided(generation.ddpm(), guiders=GUIDERS[:2])
  x = denoise.latents[1].at[1].add(0.1)
  step = terms(denoise, x, 400.0, {})
  assert step.energy[0] == 0
  assert step.factor[0] == 1
  np.testing.assert_array_equal(step.gradient[0], np.zeros((6, 3)))
  assert step.energy[1] > 0
  assert np.abs(step.gradient[1]).max() > 0
  # What compares the target's features goes on.
  denoise = guided(generation.ddpm())
  assert terms(denoise, x, 400.0, {}).energy[0] > 0


@pytest.mark.parametrize("make", [generation.ddpm, generation.flow])
@pytest.mark.parametrize("bounds", [(0.33, 3.0), (1.5, 1.5), (0.0, 1e-3)])
def test_step_adds_r_times_the_gradient(make, bounds):
  """With a plus, without sigma, to the noise that guidance predicts."""
  path = make()
  denoise = guided(path, bounds=bounds)
  time = jnp.float32(400.0)
  x = near(denoise, 1)
  prediction, _ = jax.jit(lambda d, *args: d(*args))(denoise, x, time, {})
  given, none = (
    path.noise(model_at(denoise, x, time, label)[0], x, time)
    for label in (TARGET, np.array([4, 4]))
  )
  step = 7.5 * np.asarray(given - none)
  gradient = np.asarray(terms(denoise, x, time, {}).gradient)
  norm = lambda values: np.sqrt((values**2).sum(axis=(1, 2), keepdims=True))
  ratio = norm(gradient) / norm(step)
  factor = np.clip(ratio, *bounds) / ratio
  expected = none + step + factor * gradient
  np.testing.assert_allclose(
    path.noise(prediction, x, time), expected, rtol=2e-4, atol=2e-4
  )


def test_each_image_by_itself():
  denoise = guided(generation.ddpm())
  x = near(denoise, 1)
  both = terms(denoise, x, 400.0, {})
  other = terms(denoise, x.at[0].add(1.0), 400.0, {})
  np.testing.assert_allclose(both.gradient[1], other.gradient[1], rtol=1e-4)
  np.testing.assert_allclose(both.factor[1], other.factor[1], rtol=1e-4)


def test_rescale():
  """In bounds nothing changes; beyond them the ratio is the bound."""
  rng = np.random.default_rng(0)
  gradient, guidance = np.exp(3 * rng.normal(size=(2, 500)))
  low, high = 0.33, 3.0
  factor = np.asarray(
    guide_and_rescale.rescale(
      jnp.asarray(gradient), jnp.asarray(guidance), low, high
    )
  )
  ratio = gradient / guidance
  after = factor * ratio
  assert (after > low - 1e-5).all()
  assert (after < high + 1e-5).all()
  inside = (ratio > low) & (ratio < high)
  assert 0.1 < inside.mean() < 0.9
  np.testing.assert_allclose(factor[inside], 1, rtol=1e-6)
  one = guide_and_rescale.rescale(
    jnp.asarray(gradient), jnp.asarray(guidance), 1.5, 1.5
  )
  np.testing.assert_allclose(one * ratio, 1.5, rtol=1e-5)


@pytest.mark.parametrize(
  ("gradient", "guidance", "bounds", "expected"),
  [
    (0.0, 2.0, (0.33, 3.0), 1.0),
    (0.0, 0.0, (1.5, 1.5), 1.0),
    # A ratio of 1 is taken.
    (5.0, 0.0, (0.33, 3.0), 1.0),
    (5.0, 0.0, (1.5, 1.5), 1.5),
    (0.1, 1.0, (0.33, 3.0), 3.3),
    (6.0, 1.0, (0.33, 3.0), 0.5),
    (5.0, 1.0, (0.0, 0.0), 0.0),
  ],
)
def test_rescale_at_its_edges(gradient, guidance, bounds, expected):
  factor = guide_and_rescale.rescale(
    jnp.float32([gradient]), jnp.float32([guidance]), *bounds
  )
  np.testing.assert_allclose(factor, [expected], rtol=1e-6)


@pytest.mark.parametrize("make", [generation.ddpm, generation.flow])
def test_without_scales_it_is_guidance_bit_for_bit(make):
  path = make()
  model, variables = toy.create()
  x = jax.random.normal(jax.random.key(0), (2, 6, 3))
  nothing = tuple(dataclasses.replace(g, scale=0.0) for g in GUIDERS)
  edited, latents = guide_and_rescale.edit(
    model,
    variables,
    x,
    path,
    source={"label": SOURCE},
    target={"label": TARGET},
    preset=Preset(nothing, 0.6, (0.33, 3.0)),
    steps=5,
  )
  plain = generation.sample(
    generation.create_denoiser(model, variables, label=TARGET, guidance=7.5),
    latents[0],
    path,
    steps=5,
  )
  np.testing.assert_array_equal(edited, plain)
  guided_one, _ = guide_and_rescale.edit(
    model,
    variables,
    x,
    path,
    source={"label": SOURCE},
    target={"label": TARGET},
    preset=Preset(GUIDERS, 0.6, (0.33, 3.0)),
    steps=5,
  )
  assert np.isfinite(guided_one).all()
  assert np.abs(guided_one - edited).max() > 1e-3


def test_presets_are_the_published_ones():
  local, style = guide_and_rescale.presets(12).values()
  assert [(g.scale, g.distance, g.condition) for g in local.guiders] == [
    (3e5, "square", "source"),
    (500, "absolute", "source"),
  ]
  assert [(g.scale, g.distance, g.condition) for g in style.guiders] == [
    (1e5, "square", "source"),
    (2.5, "square", "target"),
  ]
  assert (local.bounds, style.bounds) == ((0.33, 3), (1.5, 1.5))
  assert (local.active * 50, style.active * 50) == (30, 25)
  assert local.guiders[1].names == ("block_11/hidden_state",)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"preset": "global"}, "preset is 'global'; it must be one of local"),
    ({"guidance": 1.0}, "guidance=1 leaves no difference"),
    ({"preset": Preset((), 0.5, (0, 1))}, "leaves nothing to compare"),
    (
      {"preset": Preset(GUIDERS, 1.5, (0, 1))},
      "active is 1.5; it must be a share",
    ),
    ({"preset": Preset(GUIDERS, 0.5, (2, 1))}, r"bounds=\(2, 1\) must be"),
  ],
)
def test_refuses(options, message):
  model, variables = toy.create()
  x = jnp.zeros((2, 6, 3))
  given = {"source": {"label": SOURCE}, "target": {"label": TARGET}}
  with pytest.raises(ValueError, match=message):
    guide_and_rescale.edit(
      model, variables, x, generation.flow(), **given, **options
    )


def test_refuses_guiders():
  with pytest.raises(ValueError, match="distance is 'cosine'; it must be"):
    Guider(("x",), 1.0, "cosine")
  with pytest.raises(ValueError, match="condition is 'none'; it must be"):
    Guider(("x",), 1.0, condition="none")
  with pytest.raises(ValueError, match="scale is nan; it must be a number"):
    Guider(("x",), float("nan"))
  with pytest.raises(ValueError, match="names is 'x'; it must be a tuple"):
    Guider("x", 1.0)


def test_presets_name_the_states_of_a_transformer():
  with pytest.raises(ValueError, match="the model is a DiMR, whose hidden"):
    guide_and_rescale.check(DiMR(), "local", 2.0)
  own = Preset(GUIDERS[:1], 0.5, (0.0, np.inf))
  assert guide_and_rescale.check(DiMR(), own, 2.0) is own
