"""DiT stated once more, in PyTorch, from the paper and its public code.

Names of parameters are those of the public checkpoints, so that a model is
filled through our map of weights. Positions are written pair by pair and
attention with all its weights: neither the order of sums nor a layout is ours.
"""

import math

import numpy as np

from tests import parity_helper


def table(rows, columns, width):
  """The frozen table [rows * columns, width], number by number."""
  quarter = width // 4
  out = np.zeros((rows, columns, width))
  for row in range(rows):
    for column in range(columns):
      for i in range(quarter):
        frequency = 1 / 10000 ** (i / quarter)
        out[row, column, i] = math.sin(column * frequency)
        out[row, column, quarter + i] = math.cos(column * frequency)
        out[row, column, 2 * quarter + i] = math.sin(row * frequency)
        out[row, column, 3 * quarter + i] = math.cos(row * frequency)
  return out.reshape(rows * columns, width).astype(np.float32)


def create(model):
  """Returns the module for a model of ours with adaptive conditioning."""
  torch = parity_helper.import_torch()
  nn, width, heads = torch.nn, model.width, model.heads
  hidden, patch = int(width * model.mlp_ratio), model.patch_size[0]
  outputs = model.channels * (1 + model.learned_variance)

  class Attention(nn.Module):
    def __init__(self):
      super().__init__()
      self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
      b, n, _ = x.shape
      q, k, v = (
        part.view(b, n, heads, width // heads).transpose(1, 2)
        for part in self.qkv(x).chunk(3, dim=-1)
      )
      weights = q @ k.transpose(-1, -2) / math.sqrt(width // heads)
      out = weights.softmax(-1) @ v
      return self.proj(out.transpose(1, 2).reshape(b, n, width))

  class Mlp(nn.Module):
    def __init__(self):
      super().__init__()
      self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
      h = self.fc1(x)
      cubic = math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)
      return self.fc2(0.5 * h * (1 + torch.tanh(cubic)))

  def norm(x):
    x = x - x.mean(-1, keepdim=True)
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-6)

  def adaptive(count):
    return nn.Sequential(nn.SiLU(), nn.Linear(width, count * width))

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      self.attn, self.mlp = Attention(), Mlp()
      self.adaLN_modulation = adaptive(6)

    def forward(self, x, c):
      parts = self.adaLN_modulation(c)[:, None].chunk(6, dim=-1)
      for branch, (shift, scale, gate) in (
        (self.attn, parts[:3]),
        (self.mlp, parts[3:]),
      ):
        x = x + gate * branch(norm(x) * (1 + scale) + shift)
      return x

  class Final(nn.Module):
    def __init__(self):
      super().__init__()
      self.linear = nn.Linear(width, patch * patch * outputs)
      self.adaLN_modulation = adaptive(2)

    def forward(self, x, c):
      shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
      return self.linear(norm(x) * (1 + scale) + shift)

  class Dit(nn.Module):
    def __init__(self):
      super().__init__()
      embed = nn.Conv2d(model.channels, width, patch, patch)
      self.x_embedder = nn.ModuleDict({"proj": embed})
      layers = nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width)
      self.t_embedder = nn.ModuleDict({"mlp": nn.Sequential(*layers)})
      embed = nn.Embedding(model.num_classes + 1, width)
      self.y_embedder = nn.ModuleDict({"embedding_table": embed})
      self.blocks = nn.ModuleList(Block() for _ in range(model.depth))
      self.final_layer = Final()

    def forward(self, x, t, y):
      x = self.x_embedder["proj"](x)
      rows, columns = x.shape[2:]
      x = x.flatten(2).transpose(1, 2)
      x = x + torch.from_numpy(table(rows, columns, width)).to(x.dtype)
      angles = t[:, None] * 10000 ** (-torch.arange(128, dtype=t.dtype) / 128)
      time = torch.cat([angles.cos(), angles.sin()], dim=-1)
      c = self.t_embedder["mlp"](time)
      c = c + self.y_embedder["embedding_table"](y)
      for block in self.blocks:
        x = block(x, c)
      x = self.final_layer(x, c)
      out = torch.zeros(len(x), outputs, rows * patch, columns * patch)
      for n in range(rows * columns):
        row, column = patch * (n // columns), patch * (n % columns)
        square = x[:, n].view(-1, patch, patch, outputs).permute(0, 3, 1, 2)
        out[:, :, row : row + patch, column : column + patch] = square
      return out

  return Dit()
