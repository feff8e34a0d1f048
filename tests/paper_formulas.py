"""The attention of papers, as they write it: NumPy, float64, no library code.

FORMULAS has one entry for each row of the table in docs/attention.md: a
function of the names that the page makes. QUERY and KEY are positions, in
arrays that broadcast to [queries, keys].
"""

import math
from types import SimpleNamespace

import jax
import numpy as np

from tests.attention import tree_oracle

N = 24
QUERY, KEY = np.arange(N)[:, None], np.arange(N)[None, :]
CAUSAL = KEY <= QUERY
ALL = np.ones((N, N), bool)


def scores(q, k, scale=None):
  """scale q k^T, [batch, heads, queries, keys]."""
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  return scale * np.einsum("bihd,bjhd->bhij", q, _repeat(k, q.shape[2]))


def softmax(s, visible=ALL, extra=0.0):
  """exp(s) / (extra + sum exp(s)) over the keys that are visible."""
  weights = np.where(visible, np.exp(s), 0)
  return weights / (extra + weights.sum(axis=-1, keepdims=True))


def mix(weights, v):
  return np.einsum("bhij,bjhd->bihd", weights, _repeat(v, weights.shape[1]))


def _repeat(x, heads):
  """Head h of the queries uses head h * few // heads of these."""
  return x[:, :, np.arange(heads) * x.shape[2] // heads]


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def _unit(x):
  return x / np.sqrt((x**2).sum(axis=-1, keepdims=True))


def _gated(a, logits):
  return _sigmoid(logits) * mix(softmax(scores(a.q, a.k)), a.v)


def _softplus(a, power=None):
  seen = QUERY + 1
  s = math.log(8) * np.log(seen) * scores(_unit(a.q), _unit(a.k), 1.0)
  weights = np.where(CAUSAL, np.log1p(np.exp(s)), 0)
  weights /= weights.sum(axis=-1, keepdims=True) + 1e-8
  if power is not None:
    above = seen * weights - np.where(seen <= 3, 0, 1)
    weights = np.maximum(above, 0) ** power
    weights /= weights.sum(axis=-1, keepdims=True) + 1e-8
  return mix(weights, a.v)


def _affine(a):
  alpha = a.alpha.transpose(0, 2, 1)[..., None]
  mean = a.alpha_mean[:, None, None]
  weights = alpha * softmax(scores(a.q, a.k), CAUSAL) + (mean - alpha) / N
  return mix(np.where(CAUSAL, weights, 0), a.v)


def _alibi(a):
  slopes = np.array([2 ** (-8 * (h + 1) / 4) for h in range(4)])[:, None, None]
  return mix(softmax(scores(a.q, a.k) - slopes * (QUERY - KEY), CAUSAL), a.v)


def _distances(a):
  place = np.array([(row, column) for row in range(6) for column in range(4)])
  square = ((place[:, None] - place[None, :]) ** 2).sum(axis=-1)
  weight = a.alpha.transpose(0, 2, 1)[..., None]
  return mix(softmax(scores(a.q, a.k) - weight * square), a.v)


def _soft_cap(a):
  s = 50 * np.tanh(scores(a.q, a.k) / 50)
  return mix(softmax(s, CAUSAL & (QUERY - KEY <= 6)), a.v)


def _masked(visible, scale=None):
  return lambda a: mix(softmax(scores(a.q, a.k, scale), visible), a.v)


def _freeswim(frames=2, height=4, width=3, r=1):
  seen = np.zeros((frames, height, width) * 2, bool)
  for _, h, w, _, y, x in np.ndindex(seen.shape):
    lower = (
      h - r - max(0, h + r - height + 1),
      w - r - max(0, w + r - width + 1),
    )
    upper = h + r + max(0, r - h), w + r + max(0, r - w)
    if lower[0] <= y <= upper[0] and lower[1] <= x <= upper[1]:
      seen[:, h, w, :, y, x] = True
  return seen.reshape(N, N)


def _radial(frames=6, s=4):
  seen = np.zeros((frames, s, frames, s), bool)
  for i, k, j, place in np.ndindex(seen.shape):
    d = abs(i - j)
    band = 2 ** int(math.log2(max(d, 1)))
    near = band <= s and abs(k - place) + 1 <= s / band
    same = d % math.ceil(band / s) == 0 and k == place
    seen[i, k, j, place] = near or same or j == 0
  return seen.reshape(N, N)


def _reshaped(a):
  """The window gets what it had of the full step, and that step's rest."""
  near = abs(QUERY - KEY) <= 2
  full = softmax(scores(a.k, a.q))
  share = np.where(near, full, 0).sum(axis=-1, keepdims=True)
  weights = share * softmax(scores(a.q, a.k), near)
  return mix(np.where(near, weights, full), a.v)


def _top_blocks(a):
  q, k, v = a.q[:, -1:], a.k[:, :, :2], a.v[:, :, :2]
  s = scores(q, k)
  visible = np.zeros(s.shape, bool)
  for b, group in np.ndindex(2, 2):
    heads = slice(2 * group, 2 * group + 2)
    of_block = s[b, heads, 0].mean(axis=0).reshape(6, 4).mean(axis=-1)
    for block in np.argsort(of_block)[-2:]:
      visible[b, heads, :, 4 * block : 4 * block + 4] = True
  return mix(softmax(s, visible), v)


def _pyramid(a):
  out = np.zeros(a.q.shape)
  for i in range(N):
    keys, values, logs = [], [], []
    for block, level in enumerate(a.levels[i // 4]):
      for first in range(4 * block, 4 * block + 4, level) if level else ():
        part = slice(first, first + level)
        keys.append(a.k[:, part].mean(axis=1))
        values.append(a.v[:, part].mean(axis=1))
        logs.append(math.log(level))
    s = scores(a.q[:, i : i + 1], np.stack(keys, axis=1)) + np.array(logs)
    out[:, i : i + 1] = mix(softmax(s, True), np.stack(values, axis=1))
  return out


def _neighbours(a):
  visible = np.array([17, 24])[:, None, None, None] > KEY
  return mix(softmax(scores(a.q, a.k) + a.cosines, visible), a.v)


def _over_layers(a):
  mean_square = (a.hidden**2).mean(axis=-1, keepdims=True)
  s = scores(a.layer_query, a.hidden / np.sqrt(mean_square + 1e-6), 1.0)
  return mix(softmax(s, True), a.hidden)


def _probing(a):
  s = np.einsum("bhd,bjd->bhj", a.probes[:, 0], a.patches) * 32**-0.5
  return mix(softmax(s[:, :, None], True), a.patch_values)


def _channels(a):
  out = np.zeros((2, 8, 4, N))
  for b, h in np.ndindex(2, 4):
    q, k, v = (x[b, :, h].T for x in (a.q, a.k, a.v))
    s = a.temperature[h] * _unit(q) @ _unit(k).T
    out[b, :, h] = softmax(s, True) @ v
  return out


def _windows(a, grid):
  """Attention among the pixels with the same window, pixel by pixel."""
  y, x = np.arange(144) // 12, np.arange(144) % 12
  window, place = ((y // 4, x // 4), (y % 4, x % 4))
  if grid:
    window, place = ((y % 3, x % 3), (y // 3, x // 3))
  same = np.logical_and(*(w[:, None] == w[None, :] for w in window))
  offsets = [p[None, :] - p[:, None] + 3 for p in place]
  q, k, v = (z.reshape(1, 144, 4, 8) for z in (a.image_q, a.image_k, a.image_v))
  bias = a.window_table[:, *(np.clip(offset, 0, 6) for offset in offsets)]
  return mix(softmax(scores(q, k) + bias, same), v).reshape(a.image_q.shape)


def _halo(a, bias=False, block=4, halo=1):
  """Keys beyond the edge are zeros and take part in the softmax."""
  side = block + 2 * halo
  padding = ((0, 0), (halo, halo), (halo, halo), (0, 0), (0, 0))
  k, v = (np.pad(z, padding)[0] for z in (a.image_k, a.image_v))
  out = np.zeros(a.image_q.shape)
  for y, x in np.ndindex(12, 12):
    top, left = y // block * block, x // block * block
    q = a.image_q[0, y, x]
    s = np.einsum("hd,ijhd->hij", q, k[top : top + side, left : left + side])
    s *= 8**-0.5
    if bias:
      up, left_of = block - 1 - y % block, block - 1 - x % block
      s += a.halo_table[:, up : up + side, left_of : left_of + side]
    for i in range(0 if bias else side):
      s[:, i] += (q @ a.row_table[i - y % block + side - 1])[:, None]
      s[:, :, i] += (q @ a.column_table[i - x % block + side - 1])[:, None]
    weights = softmax(s.reshape(4, -1), True)
    values = v[top : top + side, left : left + side].reshape(-1, 4, 8)
    out[0, y, x] = np.einsum("hk,khd->hd", weights, values)
  return out


def _linear(a, phi, epsilon=0.0, visible=ALL, key_gate=1.0, value_gate=1.0):
  """sum_j w_ij v_j / (sum_j w_ij + epsilon), w_ij = phi(q_i) . phi(k_j)."""
  weights = scores(phi(a.q), phi(a.k) * key_gate, 1.0) * visible
  weights = weights / (weights.sum(axis=-1, keepdims=True) + epsilon)
  return mix(weights, a.v * value_gate)


def _recurrent(a, decay, strength=None):
  """M = (I - b k k^T) Diag(e^decay) M + b k v^T; without b, M + k v^T."""
  out, decay = np.zeros(a.v.shape), np.broadcast_to(decay, a.q.shape)
  for b, h in np.ndindex(a.v.shape[0], a.v.shape[2]):
    memory = np.zeros((8, 8))
    for t in range(N):
      k, v = a.k[b, t, h], a.v[b, t, h]
      memory = np.exp(decay[b, t, h])[:, None] * memory
      if strength is None:
        memory += np.outer(k, v)
      else:
        k = _unit(k)
        memory += strength[0, t, h] * np.outer(k, v - memory.T @ k)
      out[b, t, h] = memory.T @ a.q[b, t, h]
  return out


def _flow(a, e=1e-6):
  q, k = _sigmoid(a.q), _sigmoid(a.k)

  def total(x):
    return x.sum(axis=1, keepdims=True) + e

  incoming = 1 / ((q + e) * total(k)).sum(axis=-1, keepdims=True)
  outgoing = 1 / ((k + e) * total(q)).sum(axis=-1, keepdims=True)
  sink = ((q + e) * total(k * outgoing)).sum(axis=-1, keepdims=True)
  source = ((k + e) * total(q * incoming)).sum(axis=-1, keepdims=True)
  competition = np.exp(np.clip(source, -1, 1))
  competition *= N / competition.sum(axis=1, keepdims=True)
  flow = mix(scores(q * incoming, k, 1.0), a.v * competition)
  return _sigmoid(sink) * flow


def _on_tree(a):
  tree = tree_oracle.nested([a.sentences[0], a.paragraphs[0]])
  s = scores(a.q, a.k)
  theta = [[tree_oracle.weights(tree, head, True) for head in row] for row in s]
  return mix(np.array(theta), a.v)


def _relu(x):
  return np.maximum(x, 0) + 1e-6


def _taylor(a):
  s = np.einsum("bihd,bjhd->bhij", a.q, a.k) / math.sqrt(8)
  weights = np.where(CAUSAL, 1 + s + s**2 / 2, 0)
  return mix(weights / weights.sum(axis=-1, keepdims=True), a.v)


FORMULAS = {
  "Attention Is All You Need (1706.03762), decoder": _masked(CAUSAL),
  "Grouped queries (2305.13245)": lambda a: mix(
    softmax(scores(a.q, a.k[:, :, :2])), a.v[:, :, :2]
  ),
  "DiffQKV (2501.13629): fewer key than value heads": lambda a: mix(
    softmax(scores(a.q, a.k[:, :, :1]), CAUSAL), a.v[:, :, :2]
  ),
  "Gated attention (2505.06708), G1 elementwise": lambda a: _gated(
    a, a.gate_logits
  ),
  "Gated attention (2505.06708), G1 headwise": lambda a: _gated(
    a, a.gate_logits[..., :1]
  ),
  "GPT-OSS: a learned sink": lambda a: mix(
    softmax(scores(a.q, a.k), CAUSAL, np.exp(a.sink)[:, None, None]), a.v
  ),
  "LSSA (2501.13428)": _softplus,
  "LSSAR (2501.13428), p = 15": lambda a: _softplus(a, 15),
  "Sigmoid attention (2409.04431)": lambda a: mix(
    _sigmoid(scores(a.q, a.k) - math.log(N)), a.v
  ),
  "Affine-scaled attention (2602.23057), N the length": _affine,
  "ALiBi (2108.12409)": _alibi,
  "FlashBias (2505.12044), ALiBi": _alibi,
  "FlashBias (2505.12044), weighted distances": _distances,
  "FlashBias (2505.12044), a trained table": lambda a: mix(
    softmax(scores(a.q, a.k) + a.smooth_bias), a.v
  ),
  "Gemma 2 (2408.00118), local layers": _soft_cap,
  "Prefix language model (1910.10683)": _masked(CAUSAL | (KEY < 6)),
  "Based (2402.18668), windows with a window_size of 8": _masked(
    CAUSAL & (KEY >= QUERY - 4)
  ),
  "Flux attention (2604.07394), sparse branch: 4 sinks, window 6": _masked(
    CAUSAL & ((KEY < 4) | (QUERY - KEY < 6))
  ),
  "Entropy scale for other sizes (2306.08645)": _masked(
    ALL, math.sqrt(math.log(24, 8) / 8)
  ),
  "FreeSwim (2511.14712): 2 frames of 4 x 3": _masked(
    _freeswim(), math.sqrt(math.log(3120, 1560) / 8)
  ),
  "Scale-DiT (2510.16325): windows of 3 x 3 among the tokens of high "
  "resolution": _masked(
    (abs(QUERY // 6 - KEY // 6) <= 1) & (abs(QUERY % 6 - KEY % 6) <= 1)
  ),
  "MaxViT (2204.01697), block attention": lambda a: _windows(a, False),
  "MaxViT (2204.01697), grid attention": lambda a: _windows(a, True),
  "HaloNet (2103.12731)": _halo,
  "HAT (2205.04437): overlapping windows": lambda a: _halo(a, bias=True),
  "LINA (2601.22630): division": lambda a: _linear(a, _relu, N * 1e-6),
  "LINA (2601.22630): its gates": lambda a: _linear(
    a,
    _relu,
    N * 1e-6,
    key_gate=1 + a.key_gate[..., None] / 8,
    value_gate=a.value_gate[..., None],
  ),
  "LinFusion (2409.02097)": lambda a: _linear(
    a, lambda x: np.where(x > 0, x + 1, np.exp(x)), N * 1e-4
  ),
  "Flowformer (2202.06258)": _flow,
  "Hierarchical self-attention (2509.15448) with a token's own score: "
  "sentences in paragraphs": _on_tree,
  "Based (2402.18668): Taylor features": _taylor,
  "RetNet (2307.08621): a decay for each head": lambda a: _recurrent(
    a, np.log(1 - 0.5 ** np.arange(5, 9))[:, None]
  ),
  "Gated linear attention (2312.06635): a decay for each feature": (
    lambda a: _recurrent(a, a.feature_forget)
  ),
  "DeltaNet (2406.06484)": lambda a: _recurrent(a, 0.0, a.strength),
  "Gated DeltaNet (2412.06464)": lambda a: _recurrent(
    a, a.forget[..., None], a.strength
  ),
  "Kimi Linear (2510.26692): a decay for each feature": (
    lambda a: _recurrent(a, a.feature_forget, a.strength)
  ),
  "Radial attention (2506.19852), equation 4: 6 frames of 4": _masked(
    _radial()
  ),
  "Re-ttention (2505.22918), a sparse step": _reshaped,
  "Kinetics (2506.05333), given the chosen blocks": _top_blocks,
  "PSA (2512.04025), given the levels": _pyramid,
  "EScAIP (2410.24169), v1: neighbours of an atom": _neighbours,
  "Attention residuals (2603.15031): a softmax over earlier layers": (
    _over_layers
  ),
  "Efficient probing (2506.10178)": _probing,
  "Reducing the transformer to a minimum (2410.13732): keys are queries": (
    lambda a: mix(softmax(scores(a.q, a.q)), a.v)
  ),
  "Restormer (2111.09881): attention between channels": _channels,
}


def expected(paper, names):
  """Returns what the paper's formula makes of the arrays in `names`."""
  arrays = {
    name: np.asarray(value, np.int64 if name == "levels" else np.float64)
    for name, value in names.items()
    if isinstance(value, np.ndarray | jax.Array)
  }
  return FORMULAS[paper](SimpleNamespace(**arrays))
