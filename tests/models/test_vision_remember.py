"""Vision Remember's block against TokenPacker's path, written with torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import taps
from models.vision_remember import VisionRemember

torch = pytest.importorskip("torch")
WIDTH, HEADS, HIDDEN, LEVELS = 8, 2, 6, 3


def _block(**fields):
  return VisionRemember(width=WIDTH, heads=HEADS, **fields)


def _inputs(grid=(2, 3), r=2):
  rng = np.random.default_rng(0)
  h = rng.normal(size=(2, *grid, HIDDEN)).astype(np.float32)
  fine = (grid[0] * r, grid[1] * r)
  features = rng.normal(size=(2, *fine, LEVELS * WIDTH)).astype(np.float32)
  return h, features


@pytest.fixture(scope="module")
def variables():
  made = jax.jit(_block().init)(jax.random.key(0), *_inputs())
  rng = np.random.default_rng(1)
  draw = lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.5, x.dtype)
  return {"begun": made, "random": jax.tree.map(draw, made)}


def test_begins_as_the_identity(variables):
  h, features = _inputs()
  for region in ("local", "global"):
    out = _block(region=region).apply(variables["begun"], h, features)
    np.testing.assert_array_equal(out, h)


def _token_packer(params, h, features, r):
  """The released code's order: projections, norms, torch's own attention."""
  p = jax.tree.map(lambda x: torch.tensor(np.array(x)), params)
  functional = torch.nn.functional

  def dense(x, name):
    return x @ p[name]["kernel"] + p[name].get("bias", torch.zeros(()))

  def perceptron(x, name):
    hidden = functional.gelu(dense(x, f"{name}_expand"))
    return dense(hidden, f"{name}_shrink")

  def norm(x, name):
    scale, bias = p[f"{name}_norm"]["scale"], p[f"{name}_norm"]["bias"]
    return functional.layer_norm(x, (WIDTH,), scale, bias, eps=1e-6)

  heads = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
  names = ("query_heads", "key_heads", "value_heads")
  state = {
    "in_proj_weight": torch.cat([p[name]["kernel"].T for name in names]),
    "in_proj_bias": torch.cat([p[name]["bias"] for name in names]),
    "out_proj.weight": p["out"]["kernel"].T,
    "out_proj.bias": p["out"]["bias"],
  }
  heads.load_state_dict(state)
  h, features = torch.tensor(h), torch.tensor(features)
  q = norm(dense(h, "query"), "query")
  k = norm(perceptron(features, "key"), "key")
  v = norm(perceptron(features, "value"), "value")
  out = h.clone()
  for a in range(h.shape[1]):
    for b in range(h.shape[2]):
      cell = (slice(None), slice(r * a, r * a + r), slice(r * b, r * b + r))
      keys, values = (x[cell].reshape(len(h), r * r, WIDTH) for x in (k, v))
      seen, _ = heads(q[:, a, b][:, None], keys, values)
      out[:, a, b] += perceptron(seen[:, 0], "project")
  return out.detach().numpy()


@pytest.mark.parametrize("r", [2, 3])
def test_equals_token_packers_path(variables, r):
  h, features = _inputs(r=r)
  expected = _token_packer(variables["random"]["params"], h, features, r)
  out = _block().apply(variables["random"], h, features)
  np.testing.assert_allclose(out, expected, atol=1e-5)


def test_global_sees_all_and_local_its_cell(variables):
  h, features = _inputs()
  changed = features.copy()
  changed[:, 2:, :2] += 1.0  # The cell of token (1, 0).
  for region, moved in (("local", 1), ("global", 6)):
    block = _block(region=region)
    before, after = (
      block.apply(variables["random"], h, x) for x in (features, changed)
    )
    different = (abs(before - after) > 1e-6).any((0, 3))
    assert different.sum() == moved
    assert different[1, 0]


@pytest.mark.parametrize("region", ["local", "global"])
def test_the_open_map_gives_the_same(variables, region):
  block = _block(region=region)
  args = (variables["random"], *_inputs())
  out, read = taps.read(block, *args, names=["attention_weights"])
  np.testing.assert_allclose(out, block.apply(*args), atol=1e-6)
  (weights,) = read.values()
  total = weights.sum((1, 2)) if region == "local" else weights.sum((2, 3))
  np.testing.assert_allclose(total, 6.0, rtol=1e-5)


def test_a_cell_of_one_key_and_global_attention_of_one_agree(variables):
  h, features = _inputs(grid=(1, 1), r=2)
  out, other = (
    _block(region=region).apply(variables["random"], h, features)
    for region in ("local", "global")
  )
  np.testing.assert_allclose(out, other, atol=1e-5)


def test_errors():
  h, features = _inputs()
  with pytest.raises(ValueError, match="no region 'lokal'; did you mean"):
    _block(region="lokal").init(jax.random.key(0), h, features)
  with pytest.raises(ValueError, match="heads is 3, which does not divide"):
    VisionRemember(width=8, heads=3).init(jax.random.key(0), h, features)
