"""Sparse methods: what each step runs, and the two branches as two rows."""

import functools
import inspect
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import generation
from attention import scales
from generation import methods, upscaling
from generation.methods.scale_dit import small_image
from models import attends, decoding
from models.attends.full import full
from models.attends.inward_window import inward_window
from models.attends.masked import masked
from models.diffusion_transformer import DiffusionTransformer
from models.dimr import DiMR
from tasks import diffusion_sampling

MODEL = DiffusionTransformer(
  sample_shape=(2, 4, 4),
  channels=1,
  patch_size=(1, 2, 2),
  width=16,
  depth=2,
  heads=2,
  num_classes=3,
  label_tokens=2,
  conditioning="cross",
  position_encoding="rotary",
  implementation="xla",
)
IMAGES = MODEL.clone(sample_shape=(4, 4), patch_size=(2, 2), depth=1)


@functools.cache
def drawn(model):
  """Parameters without the zeros that hide what is behind them."""
  shapes = jax.eval_shape(
    functools.partial(model.init, **model.example_inputs()), jax.random.key(0)
  )
  rng = np.random.default_rng(0)
  draw = lambda leaf: jnp.asarray(0.4 * rng.standard_normal(leaf.shape), "f4")
  return jax.tree.map(draw, shapes)


def inputs(*shape, seed=0):
  rng = np.random.default_rng(seed)
  x = jnp.asarray(rng.standard_normal((2, *shape, 1)), jnp.float32)
  return x, jnp.full(2, 400.0), jnp.array([[0, 1], [2, 3]])


def apply(model, *arguments, state=None):
  variables = drawn(MODEL) | ({attends.STATE: state} if state else {})
  # Operation by operation it takes ten times as long.
  out, state = _jitted(decoding.hashable(model), variables, *arguments)
  return np.asarray(out), state.get(attends.STATE)


@functools.partial(jax.jit, static_argnums=0)
def _jitted(model, variables, *arguments):
  return model.apply(variables, *arguments, mutable=[attends.STATE])


def _two_rows(monkeypatch):
  """FreeSwim's step as the paper has it: the batch twice, windows first."""

  def both(x):
    return x[: len(x) // 2], x[len(x) // 2 :]

  def rows(module, q, k, v, layout):
    (q0, q1), (k0, k1), (v0, v1) = map(both, (q, k, v))
    scale = scales.entropy(2 * 4, 4, q.shape[-1])
    first = inward_window(module, q0, k0, v0, layout)
    second = masked(module, q1, k1, v1, None, scale=scale)
    return jnp.concatenate([first, second])

  def crossed(module, q, k, v, layout):
    out = full(module, *(both(x)[1] for x in (q, k, v)), layout)
    return jnp.concatenate([out, out])

  monkeypatch.setitem(attends.ATTENDS, "two_rows", rows)
  monkeypatch.setitem(attends.ATTENDS, "two_rows_crossed", crossed)
  return MODEL.clone(attend="two_rows", cross_attend="two_rows_crossed")


def test_the_dual_path_is_two_rows_of_a_batch(monkeypatch):
  x, time, label = inputs(2, 8, 8)
  model = _two_rows(monkeypatch)
  twice = [jnp.concatenate([a, a]) for a in (x, time, label)]
  expected, _ = apply(model, *twice)
  dual, _ = methods.create("freeswim", MODEL, 4, {}).models
  out, _ = apply(dual, x, time, label)
  np.testing.assert_allclose(out, expected[:2], atol=1e-5)
  full_rows, _ = apply(dual.guide, x, time, label)
  np.testing.assert_allclose(full_rows, expected[2:], atol=1e-5)


def test_a_cached_step_takes_the_cross_attention_of_before():
  x, time, label = inputs(2, 8, 8)
  dual, cached = methods.create("freeswim", MODEL, 4, {}).models
  out, state = apply(dual, x, time, label)
  again, kept = apply(cached, x, time, label, state=state)
  np.testing.assert_allclose(again, out, atol=1e-5)
  y = inputs(2, 8, 8, seed=1)[0]
  moved, kept = apply(cached, y, time, label, state=state)
  jax.tree.map(np.testing.assert_array_equal, kept, state)
  fresh, _ = apply(dual, y, time, label)
  alone = methods.create("freeswim", MODEL, 4, {"override": False}).models[0]
  windows, _ = apply(alone, y, time, label)
  assert np.abs(moved - fresh).max() > 1e-3
  assert np.abs(windows - fresh).max() > 1e-3


def test_without_override_and_with_full_windows_rows_are_the_same():
  """Section 8 (vi): at the trained size a window is the whole frame."""
  x, time, label = inputs(2, 4, 4)
  options = {"override": False}
  (alone,) = methods.create("freeswim", MODEL, 4, options).models
  dual, _ = methods.create("freeswim", MODEL, 4, {}).models
  guide, _ = apply(dual.guide, x, time, label)
  np.testing.assert_allclose(apply(alone, x, time, label)[0], guide, atol=1e-6)
  np.testing.assert_allclose(apply(dual, x, time, label)[0], guide, atol=1e-6)
  off = {"override": False, "scale_by": "constant"}
  (plain,) = methods.create("freeswim", MODEL, 4, off).models
  np.testing.assert_allclose(
    apply(plain, x, time, label)[0], apply(MODEL, x, time, label)[0], atol=1e-6
  )


@pytest.mark.parametrize("cached_unconditional", [True, False])
def test_freeswim_samples_with_guidance(cached_unconditional):
  """The loop, against steps by hand with the model of each."""
  x, _, label = inputs(2, 8, 8)
  options = {"period": 3, "cached_unconditional": cached_unconditional}
  changed = methods.create("freeswim", MODEL, 4, options)
  assert changed.which == (0, 1, 1, 0)
  path = generation.flow()
  denoisers = [
    generation.create_denoiser(model, drawn(MODEL), label=label, guidance=2.0)
    for model in changed.models
  ]
  made = generation.sample(
    denoisers, x, path, steps=4, solver="euler", which=changed.which
  )
  times, state = path.times(4), {}
  both = jnp.concatenate([label, jnp.full_like(label, 3)])
  for n, which in enumerate(changed.which):
    out, state = apply(
      changed.models[which],
      jnp.concatenate([x, x]),
      jnp.full(4, float(times[n])),
      both,
      state=state,
    )
    given, none = np.split(out, 2)
    velocity = none + 2.0 * (given - none)
    x = x + velocity * (times[n + 1] - times[n]) / 1000
  np.testing.assert_allclose(made, x, atol=1e-4)


def test_radial_and_naive_begin_dense():
  first = {"dense_steps": 2, "block_size": 2}
  for name in ("radial", "naive"):
    options = {**first, "dense_layers": 1}
    dense, sparse = methods.create(name, MODEL, 5, options).models
    assert methods.create(name, MODEL, 5, options).which == (0, 0, 1, 1, 1)
    assert (dense.attend, sparse.attend) == ("full", name)
    assert sparse.dense_layers == 1
    x, time, label = inputs(2, 4, 4)
    options = {**first, "dense_layers": 2}
    of_all = methods.create(name, MODEL, 5, options).models[1]
    np.testing.assert_array_equal(
      apply(of_all, x, time, label)[0], apply(dense, x, time, label)[0]
    )


def test_a_small_image_guides_all_steps():
  x, _, label = inputs(8, 8)
  small = inputs(4, 4, seed=2)[0]
  path, options = generation.flow(), {"window": 2, "scale": 2}
  condition = {"label": label, "guidance": 1.5}
  changed = methods.create("scale_dit", IMAGES, 2, options)
  denoise = generation.create_denoiser(
    changed.models[0], drawn(IMAGES), **condition
  )

  def begin(*sides):
    return diffusion_sampling._noise(
      0, np.arange(len(x)), (*sides, x.shape[-1])
    )

  def sample(image, x=x):
    state = small_image(IMAGES, drawn(IMAGES), image, **options, **condition)
    return generation.sample(denoise, x, path, steps=2, state=state)

  made, other = sample(small), sample(-small)
  assert np.isfinite(made).all()
  assert np.abs(made - other).max() > 1e-3
  # A program makes it first, of the noise of its own size.
  given = {"label": np.asarray(label)}
  draw = functools.partial(
    diffusion_sampling.samples,
    IMAGES,
    drawn(IMAGES),
    path,
    given,
    rows=len(x),
    steps=2,
    guidance=1.5,
    batch_size=1,
  )
  asked = {"method": "scale_dit", "method_options": {"window": 2, "scale": 2}}
  counted = []

  def count(items, total):
    counted.extend(range(total))
    return items

  whole = draw(size=(8, 8), progress=count, **asked)
  assert len(counted) == 2 * 2 * len(x)
  image = jnp.asarray(draw(size=(4, 4)))
  np.testing.assert_allclose(whole, sample(image, begin(8, 8)), atol=1e-5)
  with pytest.raises(ValueError, match=r"size=\(6, 7\) must be multiples of 2"):
    draw(size=(6, 7), **asked)
  # Windows of all tokens and no small image are the model itself.
  (whole,) = methods.create("scale_dit", IMAGES, 2, {"window": 2}).models
  y, time, label = inputs(4, 4)
  out = [
    _jitted(decoding.hashable(model), drawn(IMAGES), y, time, label)[0]
    for model in (whole, IMAGES)
  ]
  np.testing.assert_allclose(*out, atol=1e-5)


def test_the_docs_have_each_method_with_its_options():
  page = pathlib.Path(__file__).parents[2] / "docs" / "diffusion.md"
  _, _, table = page.read_text().partition("| method | what becomes")
  rows = re.findall(r"^\| `(\w+)` \|.*?\|([^|]*)\|$", table, re.MULTILINE)
  told = {name: set(re.findall(r"`(\w+)`", options)) for name, options in rows}
  known = {
    name: set(list(inspect.signature(method).parameters)[2:])
    for name, method in methods.METHODS.items()
    if name != "full"
  }
  assert told == known


def test_last_times_and_noisy():
  path = generation.flow()
  times = upscaling.last_times(path, 50, 0.7)
  np.testing.assert_array_equal(times, path.times(50)[15:])
  assert upscaling.sides_times((8, 3, 4), 2) == (8, 6, 8)
  small = jnp.arange(8.0).reshape(1, 2, 2, 2, 1)
  noise = jnp.ones((1, 2, 4, 4, 1))
  x = upscaling.noisy(small, noise, path, 250.0)
  large = np.asarray(jax.image.resize(small, noise.shape, "linear"))
  np.testing.assert_allclose(x, 0.75 * large + 0.25, atol=1e-6)
  # Frames are no side that grows.
  np.testing.assert_allclose(large.mean((2, 3)), np.mean(small, (2, 3)))


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda: methods.create(
        "freeswim", MODEL.clone(conditioning="adaptive"), 4, {}
      ),
      "conditioning is 'adaptive'",
    ),
    (
      lambda: methods.create("freeswim", MODEL, 4, {"period": 0}),
      "period is 0",
    ),
    (
      lambda: methods.create("freeswim", MODEL, 4, {"period": math.nan}),
      "period is nan; it must be a whole number",
    ),
    (
      lambda: methods.create("freeswim", MODEL, 4, {"override": "no"}),
      "override is 'no'; it must be True or False",
    ),
    (
      lambda: methods.create("re_ttention", MODEL, 9, {"full_steps": 2.5}),
      "full_steps is 2.5; it must be a whole number",
    ),
    (
      lambda: methods.create("scale_dit", IMAGES, 4, {"scale": -2}),
      "scale is -2; it must be at least 0",
    ),
    (
      lambda: methods.create("scale_dit", IMAGES, 4, {"window": 4, "scale": 3}),
      "window is 4; .* a multiple of scale=3",
    ),
    (lambda: methods.create("full", MODEL, 0, {}), "steps is 0; it must be"),
    (
      lambda: methods.create("radial", DiMR(), 4, {}),
      "the model is a DiMR, which has no field 'attend'",
    ),
    (
      lambda: methods.create("entropy_scale", DiMR(), 4, {}),
      "the model is a DiMR, which has no field 'mixer'",
    ),
    # Where nothing would come of it.
    (
      lambda: methods.create("naive", MODEL.clone(mixer="linfusion"), 4, {}),
      "mixer is 'linfusion', .* attend='naive' would change nothing",
    ),
    (
      lambda: methods.create(
        "linfusion", MODEL.clone(mixer="linfusion"), 4, {}
      ),
      "mixer is 'linfusion' already",
    ),
    (
      lambda: diffusion_sampling.samples(
        MODEL,
        drawn(MODEL),
        generation.flow(),
        {"label": np.array([[0, 1]])},
        rows=1,
        steps=2,
        method="freeswim",
        method_options={"cached_unconditional": False},
      ),
      "guidance is 1, which has no half without a condition",
    ),
    (
      lambda: methods.create("radial", MODEL, 4, {"dense_steps": 5}),
      "dense_steps is 5; there are 4 steps",
    ),
    (
      lambda: methods.create(
        "scale_dit",
        IMAGES.clone(position_encoding="sincos"),
        4,
        {"scale": 2},
      ),
      "position_encoding is 'sincos'",
    ),
    (
      lambda: (
        methods.create("freeswim", MODEL, 4, {})
        .models[0]
        .apply(drawn(MODEL), *inputs(2, 4, 4))
      ),
      "mutable is",
    ),
    (
      lambda: upscaling.last_times(generation.flow(), 10, math.nan),
      "strength is nan; it must be a number",
    ),
    (
      lambda: upscaling.last_times(generation.flow(), 10, 0.05),
      "leaves 0 of 10 steps; it must be from 0.1 to 1",
    ),
    (
      lambda: upscaling.noisy(
        jnp.ones((1, 4, 4, 1)), jnp.ones((1, 2, 8, 1)), generation.flow(), 1.0
      ),
      "as large or larger along each axis",
    ),
  ],
)
def test_errors(call, message):
  with pytest.raises(ValueError, match=message):
    call()
