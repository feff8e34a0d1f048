"""Flowformer's vision model stated once more, in PyTorch, from the sheet."""

from tests import parity_helper


def create(model):
  """Returns the module for a model of ours; its names are our weight map's."""
  torch = parity_helper.import_torch()
  nn = torch.nn

  class Attention(nn.Module):
    def __init__(self, width):
      super().__init__()
      self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
      batch, n, width = x.shape
      heads = self.qkv(x).view(batch, n, 3, model.heads, -1)
      q, k, v = heads.permute(2, 0, 3, 1, 4)  # [B, heads, N, dim] each
      if model.attention == "softmax":
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        out = scores.softmax(-1) @ v
      else:
        out = self.flow(q.sigmoid(), k.sigmoid(), v, n)
      return self.proj(out.transpose(1, 2).reshape(batch, n, width))

    def flow(self, q, k, v, n):
      e, outer = 1e-6, model.outer_epsilon

      def product(x, terms):
        total = terms.sum(2, keepdim=True)
        return ((x + e) * (total + e)).sum(-1, keepdim=True) + outer

      incoming, outgoing = 1 / product(q, k), 1 / product(k, q)
      a, b = product(q, k * outgoing), product(k, q * incoming)
      b = b.clamp(-model.clip, model.clip) if model.clip else b
      memory = k.transpose(2, 3) @ (v * b.softmax(2) * n)
      return (q @ memory) * incoming * a.sigmoid()

  class Block(nn.Module):
    def __init__(self, width):
      super().__init__()
      self.norm1 = nn.LayerNorm(width, eps=1e-6)
      self.norm2 = nn.LayerNorm(width, eps=1e-6)
      self.attn, self.mlp = Attention(width), nn.Module()
      hidden = model.expansion * width
      self.mlp.fc1 = nn.Linear(width, hidden)
      self.mlp.fc2 = nn.Linear(hidden, width)
      self.gamma = nn.Parameter(torch.zeros(width))

    def forward(self, x):
      x = x + self.attn(self.norm1(x))
      y = nn.functional.gelu(self.mlp.fc1(self.norm2(x)))
      return x + self.gamma * self.mlp.fc2(y)

  class Flowformer(nn.Module):
    def __init__(self):
      super().__init__()
      widths = (3, *model.widths)
      side = model.image_size // 4
      self.pos_embed = nn.Parameter(torch.zeros(1, side**2, widths[1]))
      self.patch_embed, self.blocks = nn.ModuleList(), nn.ModuleList()
      for i, depth in enumerate(model.depths):
        patch, size = nn.Module(), 2 if i else 4
        patch.proj = nn.Conv2d(widths[i], widths[i + 1], size, size)
        self.patch_embed.append(patch)
        blocks = [Block(widths[i + 1]) for _ in range(depth)]
        self.blocks.append(nn.Sequential(*blocks))
      self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
      self.head = nn.Linear(widths[-1], model.num_classes)

    def forward(self, x):
      for i, blocks in enumerate(self.blocks):
        x = self.patch_embed[i].proj(x)
        batch, width, rows, columns = x.shape
        x = x.flatten(2).transpose(1, 2)
        x = blocks(x if i else x + self.pos_embed)
        x = x.transpose(1, 2).reshape(batch, width, rows, columns)
      x = self.norm(x.flatten(2).transpose(1, 2))
      return self.head(x.mean(1))

  return Flowformer()
