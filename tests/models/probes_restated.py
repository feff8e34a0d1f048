"""Probes as formulas, one after another: of our variables, in plain arrays.

Written from the authors' code of efficient probing (arXiv 2506.10178), which
was once run beside ours, with the same random weights, to 6e-7. Here values are
projected before they are pooled, and all queries are computed.
"""

import jax
import jax.numpy as jnp
import numpy as np


def norm(p, x, epsilon):
  mean = x.mean(-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(-1, keepdims=True)
  y = (x - mean) / jnp.sqrt(variance + epsilon) * p["scale"].reshape(1, 1, -1)
  return y + p["bias"].reshape(1, 1, -1) if "bias" in p else y


def dense(p, x):
  y = jnp.einsum("...i,io->...o", x, p["kernel"])
  if "bias" in p:
    y = y + p["bias"].reshape((1,) * (y.ndim - 1) + (-1,))
  return y


def gelu(x):
  return x * (1 + jax.scipy.special.erf(x / np.sqrt(2))) / 2


def mlp(p, x):
  return dense(p["shrink"], gelu(dense(p["expand"], x)))


def softmax(x):
  e = jnp.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def attend(q, k, v, heads):
  """Multi-head attention of [batch, tokens, width]; k, v may have one head."""
  dim = q.shape[-1] // heads
  outs = []
  for i in range(heads):
    part = slice(i * dim, (i + 1) * dim)
    ki, vi = (y[..., part] if y.shape[-1] > dim else y for y in (k, v))
    weights = softmax(q[..., part] @ ki.swapaxes(1, 2) / np.sqrt(dim))
    outs.append(weights @ vi)
  return jnp.concatenate(outs, axis=-1)


def batch_norm(statistics, x, epsilon, train):
  """Over all axes but the last; `statistics` are those of evaluation."""
  mean, variance = statistics["mean"], statistics["var"]
  if train:
    axes = tuple(range(x.ndim - 1))
    mean, variance = x.mean(axes), x.var(axes)
  lead = (1,) * (x.ndim - 1) + (-1,)
  mean, variance = mean.reshape(lead), variance.reshape(lead)
  return (x - mean) / jnp.sqrt(variance + epsilon)


def tiled(token, x):
  return jnp.tile(token[None], (len(x), 1, 1))


def ep(p, s, x, grid, train):
  queries = p["queries"]
  count, width = queries.shape
  weights = softmax(jnp.einsum("qd,bnd->bqn", queries, x) / np.sqrt(width))
  values = x @ p["value_kernel"][None]
  size = values.shape[-1] // count
  return jnp.concatenate(
    [
      jnp.einsum(
        "bn,bne->be", weights[:, j], values[..., j * size :][..., :size]
      )
      for j in range(count)
    ],
    axis=-1,
  )


def simpool(p, s, x, grid, train):
  y = norm(p["norm"], x, 1e-6)
  q = dense(p["query"], x.mean(1, keepdims=True))
  return attend(q, dense(p["key"], y), y, 1)[:, 0]


def esimpool(p, s, x, grid, train):
  q = norm(p["norm"], x.mean(1, keepdims=True), 1e-6)
  return attend(q, norm(p["norm"], x, 1e-6), x, 12)[:, 0]


def clip(p, s, x, grid, train):
  x = norm(p["norm"], x, 1e-6)
  x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)
  q, k, v = jnp.split(dense(p["qkv"], x + p["position"][None]), 3, axis=-1)
  return dense(p["out"], attend(q, k, v, 4))[:, 0]


def siglip(p, s, x, grid, train):
  q = dense(p["query"], tiled(p["query_token"], x))
  k, v = jnp.split(dense(p["key_value"], x), 2, axis=-1)
  y = dense(p["out"], attend(q, k, v, 8))
  return (y + mlp(p["mlp"], y))[:, 0]


def aim(p, s, x, grid, train):
  x = batch_norm(s["norm"], x, 1e-6, train)
  q = tiled(p["query_token"], x)
  return attend(q, dense(p["key"], x), dense(p["value"], x), 16)[:, 0]


def coca(p, s, x, grid, train):
  q = dense(p["query"], norm(p["norm"], tiled(p["queries"], x), 1e-5))
  k, v = jnp.split(dense(p["key_value"], x), 2, axis=-1)
  return dense(p["out"], attend(q, k, v, 8))[:, 0]


def cait(p, s, x, grid, train):
  token = tiled(p["class_token"], x)
  y = norm(p["attention_norm"], jnp.concatenate([token, x], axis=1), 1e-6)
  q, k, v = (dense(p[name], y) for name in ("query", "key", "value"))
  y = dense(p["out"], attend(q, k, v, 4)[:, :1])
  token = token + p["attention_layer_scale"][None, None] * y
  y = mlp(p["mlp"], norm(p["mlp_norm"], token, 1e-6))
  token = token + p["mlp_layer_scale"][None, None] * y
  return norm(p["norm"], token, 1e-5)[:, 0]


def jepa(p, s, x, grid, train):
  token = tiled(p["query_token"], x)
  y = norm(p["attention_norm"], x, 1e-5)
  k, v = jnp.split(dense(p["key_value"], y), 2, axis=-1)
  y = attend(dense(p["query"], token), k, v, 16)
  token = token + dense(p["out"], y)
  return (token + mlp(p, norm(p["mlp_norm"], token, 1e-5)))[:, 0]


def cae(p, s, x, grid, train):
  q = dense(p["query"], norm(p["query_norm"], tiled(p["query_token"], x), 1e-5))
  k = dense(p["key"], norm(p["key_norm"], x, 1e-5))
  v = dense(p["value"], norm(p["value_norm"], x, 1e-5))
  return dense(p["out"], attend(q, k, v, 8))[:, 0]


def self_attention(p, x, heads):
  q, k, v = jnp.split(dense(p["attention_qkv"], x), 3, axis=-1)
  return dense(p["attention_out"], attend(q, k, v, heads))


def abmilp(p, s, x, grid, train):
  y = self_attention(p, x, 1)
  scores = dense(p["score"], jnp.tanh(dense(p["hidden_0"], y)))[..., 0]
  return jnp.einsum("bn,bnd->bd", softmax(scores), y)


def dinovit(p, s, x, grid, train):
  x = x + self_attention(p, norm(p["attention_norm"], x, 1e-5), 8)
  return (x + mlp(p["mlp"], norm(p["mlp_norm"], x, 1e-5))).mean(1)


def cbam(p, s, x, grid, train):
  gate = lambda y: dense(p["expand"], jnp.maximum(dense(p["reduce"], y), 0))
  gates = gate(x.mean(1)) + gate(x.max(1))
  y = x / (1 + jnp.exp(-gates))[:, None]
  places = jnp.stack([y.mean(-1), y.max(-1)], axis=-1)
  places = places.reshape(len(x), *grid, 2)
  padded = jnp.pad(places, ((0, 0), (3, 3), (3, 3), (0, 0)))
  kernel = p["conv"]["kernel"]
  out = sum(
    padded[:, i : i + grid[0], j : j + grid[1]] @ kernel[i, j][None, None]
    for i in range(7)
    for j in range(7)
  )
  out = batch_norm(s["norm"], out, 1e-5, train)
  out = out * p["norm"]["scale"].reshape(1, 1, 1, 1)
  out = (out + p["norm"]["bias"].reshape(1, 1, 1, 1)).reshape(len(x), -1, 1)
  return jnp.maximum(y / (1 + jnp.exp(-out)) + x, 0).mean(1)


def dolg(p, s, x, grid, train):
  x = batch_norm(s["norm"], dense(p["conv_0"], x), 1e-5, train)
  x = x * p["norm"]["scale"][None, None] + p["norm"]["bias"][None, None]
  unit = x / jnp.sqrt((x**2).sum(-1, keepdims=True))
  weights = jnp.log1p(jnp.exp(dense(p["conv_1"], jnp.maximum(x, 0))))
  return (weights * unit).mean(1)
