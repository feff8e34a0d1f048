"""LINA stated once more, in PyTorch, from the equations of the fact sheet.

Attention is written with all its weights, tokens by tokens, and images are
convolved as images, so that neither the order of sums nor a layout is ours.
"""

import math

from tests import parity_helper

QUERY_TIME = 256


def create(model):
  """Returns the module for a model of ours; its names are our weight map's."""
  torch = parity_helper.import_torch()
  nn, width = torch.nn, model.width
  heads, dim = model.heads, model.width // model.heads
  places = model.grid[0] * model.grid[1]
  patch = model.patch_size
  channels = model.token_dim // patch**2

  class Attention(nn.Module):
    def __init__(self, decoder):
      super().__init__()
      self.decoder = decoder
      self.two = model.normalizer == "subtraction"
      if self.two:
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
      else:
        self.qkv = nn.Linear(width, 3 * width)
      self.proj = nn.Linear(width, width)
      if decoder and model.convolution:
        self.dw_conv = nn.Conv2d(width, width, 5, padding=2, groups=width)
      tokens = model.queries + places
      gate = model.gate if decoder else "none"
      self.gate = gate
      one = lambda h=heads: nn.Parameter(torch.ones(1, h, tokens, 1))
      if gate == "shared":
        self.key_scale, self.value_scale = one(1), one(1)
      if gate in ("key_value", "key"):
        self.key_scale = one()
      if gate in ("key_value", "value", "split"):
        self.value_scale = one()
      if gate == "split":
        self.key_scale_gamma, self.key_scale_tau = one(), one()
      if gate == "data":
        self.key_gate = nn.Linear(width, heads)
        self.value_gate = nn.Linear(width, heads)

    def gates(self, x):
      """Of keys above, of values, of keys below the line."""
      if self.gate == "data":
        g, h = (
          torch.sigmoid(f(x)).pow(1 / 16).transpose(1, 2)[..., None]
          for f in (self.key_gate, self.value_gate)
        )
        return g, h, g
      h = getattr(self, "value_scale", 1.0)
      if self.gate == "split":
        return self.key_scale_gamma, h, self.key_scale_tau
      g = getattr(self, "key_scale", 1.0)
      return g, h, g

    def forward(self, x):
      batch, tokens, _ = x.shape
      parts = (
        [self.q(x), *self.kv(x).chunk(2, -1)]
        if self.two
        else self.qkv(x).chunk(3, -1)
      )
      q, k, v = (
        y.reshape(batch, tokens, heads, dim).transpose(1, 2) for y in parts
      )
      if model.attention == "softmax":
        out = torch.softmax(q @ k.mT / math.sqrt(dim), -1) @ v
      elif model.normalizer == "division":
        g, h, w = self.gates(x)
        q, k = torch.relu(q) + 1e-6, torch.relu(k) + 1e-6
        above = q @ (k * g).mT
        below = (q @ (k * w).mT).sum(-1, keepdim=True) + tokens * 1e-6
        out = (above / below) @ (v * h)
      else:
        g, h, _ = self.gates(x)
        # InLine: softmax's weights without exponential, made to sum to one.
        weights = torch.relu(q) @ (torch.relu(k) * g).mT / math.sqrt(dim)
        weights = weights - weights.mean(-1, keepdim=True) + 1
        out = weights @ (v * h) / tokens
      out = out.transpose(1, 2).reshape(batch, tokens, width)
      if self.decoder and model.convolution:
        image = x[:, model.queries :].mT.reshape(batch, width, *model.grid)
        image = self.dw_conv(image).flatten(2).mT
        out = torch.cat(
          [out[:, : model.queries], out[:, model.queries :] + image], 1
        )
      return self.proj(out)

  class Mlp(nn.Module):
    def __init__(self, inputs, hidden, function):
      super().__init__()
      self.fc1, self.fc2 = nn.Linear(inputs, hidden), nn.Linear(hidden, width)
      self.function = function

    def forward(self, x):
      return self.fc2(self.function(self.fc1(x)))

  class Block(nn.Module):
    def __init__(self, decoder):
      super().__init__()
      self.attn = Attention(decoder)
      self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
      self.mlp = Mlp(width, 4 * width, nn.functional.gelu)

    def forward(self, x):
      x = x + self.norm1(self.attn(x))
      return x + self.norm2(self.mlp(x))

  class Patches(nn.Module):
    def __init__(self, side):
      super().__init__()
      self.proj = nn.Conv2d(channels, width, side, side)

    def forward(self, latents):
      return self.proj(latents).flatten(2).mT

  class Tower(nn.Module):
    def __init__(self, side, plain, decoders):
      super().__init__()
      self.patch_embed = Patches(side)
      kinds = [False] * plain + [True] * decoders
      self.blocks = nn.ModuleList(Block(decoder) for decoder in kinds)
      self.norm = nn.LayerNorm(width)

  class Modulation(nn.Module):
    def __init__(self, count):
      super().__init__()
      self.proj, self.count = nn.Linear(width, count * width), count

    def forward(self, x, c):
      s, b, *g = self.proj(nn.functional.silu(c)).chunk(self.count, -1)
      mean = x.mean(-1, keepdim=True)
      variance = (x - mean).pow(2).mean(-1, keepdim=True)
      return (x - mean) / (variance + 1e-6).sqrt() * (1 + s) + b, g

  class FlowBlock(nn.Module):
    def __init__(self):
      super().__init__()
      self.norm1, self.norm2 = Modulation(3), nn.LayerNorm(width)
      self.proj = Mlp(width, width, nn.functional.silu)

    def forward(self, x, c):
      y, (g,) = self.norm1(x, c)
      return x + g * self.norm2(self.proj(y))

  class FlowHead(nn.Module):
    def __init__(self):
      super().__init__()
      self.patch_embed = Patches(patch)
      self.time_cond_embed = nn.Module()
      self.time_cond_embed.timestep_proj = Mlp(256, width, nn.functional.silu)
      self.time_cond_embed.condition_proj = Mlp(
        width, width, nn.functional.silu
      )
      self.blocks = nn.ModuleList(FlowBlock() for _ in range(model.flow_layers))
      self.norm = Modulation(2)
      self.head = nn.Linear(width, model.token_dim)

    def forward(self, latents, t, z):
      angles = t[..., None] * 1e4 ** (-torch.arange(128, dtype=t.dtype) / 128)
      time = torch.cat([angles.cos(), angles.sin()], -1)
      embed = self.time_cond_embed
      c = embed.condition_proj(z) + embed.timestep_proj(time)
      x = self.patch_embed(latents)
      for block in self.blocks:
        x = block(x, c)
      return self.head(self.norm(x, c)[0])

  def positions(rows, columns, like):
    f = 1e4 ** (-torch.arange(width // 4, dtype=like.dtype) / (width // 4))
    row = torch.arange(rows).repeat_interleave(columns)[:, None] * f
    column = torch.arange(columns).repeat(rows)[:, None] * f
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], -1)

  class Lina(nn.Module):
    def __init__(self):
      super().__init__()
      self.video_encoder = Tower(2 * patch, model.connector_layers, 0)
      self.image_encoder = Tower(
        patch, model.encoder_layers, model.decoder_layers
      )
      self.image_decoder = FlowHead()
      self.mask_embed = nn.Module()
      for name in ("bos_token", "mask_token"):
        self.mask_embed.register_parameter(
          name, nn.Parameter(torch.zeros(1, width))
        )
      self.video_pos_embed = nn.Module()
      self.video_pos_embed.norm = nn.LayerNorm(width)
      self.video_pos_embed.time_proj = nn.Sequential(
        nn.Linear(QUERY_TIME, width), nn.SiLU(), nn.Linear(width, width)
      )
      embed = nn.Module()
      embed.norm = nn.LayerNorm(width)
      if model.text_width:
        embed.proj = nn.Linear(model.text_width, width)
        embed.register_buffer("weight", torch.zeros(512, model.text_width))
        self.text_embed = embed
      else:
        rows = model.num_classes + 1
        embed.weight = nn.Parameter(torch.zeros(rows, width))
        self.label_embed = embed

    def condition(self, given):
      if model.text_width:
        x = self.text_embed.norm(self.text_embed.proj(given))
      else:
        x = self.label_embed.norm(self.label_embed.weight[given])[:, None]
      # Time zero: sines are 0, cosines are 1.
      time = torch.zeros(QUERY_TIME, dtype=x.dtype)
      time[QUERY_TIME // 2 :] = 1
      time = self.video_pos_embed.norm(self.video_pos_embed.time_proj(time))
      side = math.isqrt(model.queries)
      queries = self.mask_embed.bos_token + time + positions(side, side, x)
      count = x.shape[1]
      x = torch.cat([x, queries.expand(len(x), -1, -1)], 1)
      for block in self.video_encoder.blocks:
        x = block(x)
      return self.video_encoder.norm(x[:, count:])

    def encode_decode(self, c, latents, visible):
      """`visible` [batch, V] has no padding."""
      tower = self.image_encoder
      x = tower.patch_embed(latents)
      masked = torch.ones(x.shape[:2], dtype=torch.bool)
      masked.scatter_(1, visible, False)
      x = torch.where(masked[..., None], self.mask_embed.mask_token, x)
      x = x + positions(*model.grid, x)
      index = visible[..., None].expand(-1, -1, width)
      y = torch.cat([c, x.gather(1, index)], 1)
      for block in tower.blocks[: model.encoder_layers]:
        y = block(y)
      x = x.scatter(1, index, y[:, model.queries :])
      y = torch.cat([y[:, : model.queries], x], 1)
      for block in tower.blocks[model.encoder_layers :]:
        y = block(y)
      return tower.norm(y[:, model.queries :]), masked

    def tokens(self, latents):
      rows, columns = model.grid
      x = latents.reshape(-1, channels, rows, patch, columns, patch)
      return x.permute(0, 2, 4, 3, 5, 1).reshape(-1, places, model.token_dim)

    def loss(self, given, latents, visible, share, noise):
      """Of several draws of noise, [draws, ...] of `share` and `noise`.

      share: sigma [draws, batch, places]; noise: latents.
      """
      c = self.condition(given)
      z, masked = self.encode_decode(c, latents, visible)
      total = 0.0
      for sigma, e in zip(share, noise, strict=True):
        of_latents = sigma.reshape(-1, *model.grid)
        for axis in (1, 2):
          of_latents = of_latents.repeat_interleave(patch, axis)
        of_latents = of_latents[:, None]
        x_t = of_latents * e + (1 - of_latents) * latents
        velocity = self.image_decoder(x_t, 1000 * sigma, z)
        error = (velocity - self.tokens(e - latents)).pow(2).mean(-1)
        total = total + (error * masked).sum()
      return total / (len(share) * masked.sum() + 1e-5)

  return Lina()
