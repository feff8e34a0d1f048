"""ELA and ULSAM stated once more, in PyTorch, from their sheets."""

from tests import parity_helper


def ela(channels, size, groups, norm_groups):
  """Returns the module, with parameters "conv" and "norm"."""
  torch = parity_helper.import_torch()

  class Gate(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.conv = torch.nn.Conv1d(
        channels, channels, size, padding=size // 2, groups=groups, bias=False
      )
      self.norm = torch.nn.GroupNorm(norm_groups, channels)

    def forward(self, x):
      gate = lambda strip: self.norm(self.conv(strip)).sigmoid()
      rows, columns = gate(x.mean(3)), gate(x.mean(2))
      return x * rows[:, :, :, None] * columns[:, :, None]

  return Gate()


def ulsam(channels, groups):
  """Returns the module, a list of subspaces with four layers each."""
  torch = parity_helper.import_torch()
  nn, size = torch.nn, channels // groups

  class Subspace(nn.Module):
    def __init__(self):
      super().__init__()
      self.depthwise = nn.Conv2d(size, size, 1, groups=size)
      self.depthwise_norm = nn.BatchNorm2d(size, momentum=0.9)
      self.point = nn.Conv2d(size, 1, 1)
      self.point_norm = nn.BatchNorm2d(1, momentum=0.9)
      self.pool = nn.MaxPool2d(3, stride=1, padding=1)

    def forward(self, x):
      y = self.pool(self.depthwise_norm(self.depthwise(x)).relu())
      scores = self.point_norm(self.point(y)).relu()
      weights = scores.flatten(1).softmax(-1).view_as(scores)
      return weights * x + x

  class Gate(nn.Module):
    def __init__(self):
      super().__init__()
      self.subspaces = nn.ModuleList(Subspace() for _ in range(groups))

    def forward(self, x):
      parts = zip(self.subspaces, x.chunk(groups, 1), strict=True)
      return torch.cat([subspace(part) for subspace, part in parts], 1)

  return Gate()
