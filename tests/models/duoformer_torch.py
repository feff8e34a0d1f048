"""DuoFormer stated once more, in PyTorch, from the paper and timm's parts."""

import functools

from tests import parity_helper


def create(model, trunk_options):
  """Returns the module for a model of ours; its names are our weight map's."""
  torch, timm = parity_helper.import_timm()
  from timm.models.vision_transformer import Attention, Block

  nn = torch.nn
  width, heads, stages = model.width, model.heads, model.stages
  scale_token = model.scale_token
  norm_layer = functools.partial(nn.LayerNorm, eps=1e-6)

  def block():
    return Block(width, heads, 4.0, qkv_bias=True, norm_layer=norm_layer)

  class Layer(nn.Module):
    def __init__(self):
      super().__init__()
      self.attn = Attention(width, heads, qkv_bias=True)

    def forward(self, x):
      return self.attn(x)

  def empty(*shape):
    return nn.Parameter(torch.zeros(shape))

  class ChannelToken(nn.Module):
    def __init__(self, c):
      super().__init__()
      self.shrink_0_0 = nn.Conv2d(c[0], c[0], 3, 2, 1)
      self.shrink_0_1 = nn.Conv2d(c[0], c[0], 3, 2, 1)
      self.shrink_1_0 = nn.Conv2d(c[1], c[1], 3, 2, 1)
      for i in range(4):
        fuse = nn.Module()
        fuse.conv = nn.Conv2d(width if i else sum(c), width, 3, 1, 1)
        fuse.norm = nn.BatchNorm2d(width)
        setattr(self, f"fuse_{i}", fuse)

    def forward(self, x0, x1, x2, x3):
      pool = functools.partial(nn.functional.max_pool2d, kernel_size=2)
      x0 = pool(self.shrink_0_1(self.shrink_0_0(x0)))
      x = torch.cat([x0, pool(self.shrink_1_0(x1)), pool(x2), x3], 1)
      for i in range(4):
        fuse = getattr(self, f"fuse_{i}")
        x = torch.relu(fuse.norm(fuse.conv(x)))
      return x.flatten(2).transpose(1, 2)[:, :, None]

  class DuoFormer(nn.Module):
    def __init__(self):
      super().__init__()
      self.trunk = timm.create_model(
        model.backbone,
        features_only=True,
        out_indices=(1, 2, 3, 4),
        **trunk_options,
      )
      channels = self.trunk.feature_info.channels()
      tokens = nn.Module()
      for stage in stages:
        projection = nn.Conv2d(channels[stage], width, 1)
        setattr(tokens, f"projection_{stage}", projection)
      length = sum(4 ** (3 - s) for s in stages) + (scale_token != "none")
      tokens.position = empty(length, width)
      if scale_token == "random":
        tokens.scale_token = empty(width)
      if scale_token == "channel":
        tokens.channel_token = ChannelToken(channels)
      self.scale_tokens = tokens
      self.scale_block = nn.ModuleList(
        block() for _ in range(model.scale_depth)
      )
      self.patch_tokens = nn.Module()
      self.patch_tokens.class_token = empty(width)
      self.patch_tokens.position = empty(
        1 + (model.image_size // 32) ** 2, width
      )
      make = {"vit": block, "attn_only": Layer}[model.patch_block]
      self.patch_layer = nn.ModuleList(make() for _ in range(model.patch_depth))
      self.head = nn.Module()
      self.head.norm = norm_layer(width)
      self.head.logits = nn.Linear(width, model.num_classes)

    def forward(self, x):
      maps = self.trunk(x)
      tokens = [self._tokens(maps[s], s) for s in stages]
      batch, patches = tokens[0].shape[:2]
      if scale_token == "random":
        token = self.scale_tokens.scale_token
        tokens.insert(0, token.expand(batch, patches, 1, width))
      if scale_token == "channel":
        tokens.insert(0, self.scale_tokens.channel_token(*maps))
      x = torch.cat(tokens, 2) + self.scale_tokens.position
      x = x.flatten(0, 1)
      for layer in self.scale_block:
        x = layer(x)
      x = x.mean(1) if scale_token == "none" else x[:, 0]
      token = self.patch_tokens.class_token.expand(batch, 1, width)
      x = torch.cat([token, x.reshape(batch, patches, width)], 1)
      x = x + self.patch_tokens.position
      for layer in self.patch_layer:
        x = layer(x)
      x = x[:, 0]
      return self.head.logits(
        self.head.norm(x) if model.apply_final_norm else x
      )

    def _tokens(self, x, stage):
      """Reads the pixels of each patch one by one, as an index would."""
      x = getattr(self.scale_tokens, f"projection_{stage}")(x)
      side = 2 ** (3 - stage)
      steps = [(i, j) for i in range(side) for j in range(side)]
      if model.released and stage == 2:
        steps = [(i, j) for j, i in steps]
      pixels = [x[:, :, i::side, j::side].flatten(2) for i, j in steps]
      return torch.stack(pixels, 2).permute(0, 3, 2, 1)

  return DuoFormer()
