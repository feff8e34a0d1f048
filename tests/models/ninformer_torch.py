"""NiNformer stated once more, in PyTorch, from its sheet.

Its parameters have the names of the released file, by numbers.
"""

from tests import parity_helper


def create(model):
  """Returns the module for a model of ours; its names are our weight map's."""
  torch = parity_helper.import_torch()
  nn = torch.nn
  tokens = (model.image_size // model.patch_size) ** 2
  width, hidden = model.width, model.hidden_width

  class Within(nn.Module):
    """What has layers under other names than its own."""

    def __init__(self, **modules):
      super().__init__()
      for name, module in modules.items():
        self.add_module(name, module)

  def feed_forward(inputs, hidden):
    first, second = nn.Linear(inputs, hidden), nn.Linear(hidden, inputs)
    layers = (first, nn.GELU(), nn.Identity(), second)
    return Within(net=nn.Sequential(*layers))

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      along_tokens = feed_forward(tokens, model.token_hidden)
      mixer = Within(
        token_mix=nn.ModuleList([norm(), nn.Identity(), along_tokens]),
        channel_mix=nn.ModuleList([norm(), feed_forward(width, hidden)]),
      )
      self.norm = norm()
      self.mgu = Within(proj=nn.Linear(width, width), Mixer=mixer)
      self.ffn = feed_forward(width, hidden)

    def forward(self, x):
      u, mixer = self.norm(x), self.mgu.Mixer
      token_norm, _, along_tokens = mixer.token_mix
      channel_norm, along_channels = mixer.channel_mix
      gate = u + along_tokens.net(token_norm(u).mT).mT
      gate = gate + along_channels.net(channel_norm(gate))
      x = x + self.mgu.proj(u) * gate
      return x + self.ffn.net(self.norm(x))

  def norm():
    return nn.LayerNorm(width, eps=1e-5)

  class NiNformer(nn.Module):
    def __init__(self):
      super().__init__()
      side = model.patch_size
      self.patcher = nn.Conv2d(3, width, side, stride=side)
      self.model = nn.Sequential(*(Block() for _ in range(model.depth)))
      self.classifier = nn.Linear(width, model.num_classes)

    def forward(self, x):
      x = self.patcher(x).flatten(2).transpose(1, 2)
      return self.classifier(self.model(x).mean(1))

  return NiNformer()
