"""Restormer, a prompt and a scan stated once more, in PyTorch.

Written from the formulas of their papers, with the names of their public codes.
What has no public code (the block of two paths, the prompt block) is restated
from our docstrings, so that it is no more than a second opinion there.
"""

from tests import parity_helper


def create(model):
  """Returns the module for a model of ours, or skips without torch."""
  torch = parity_helper.import_torch()
  nn = torch.nn
  f = nn.functional

  def conv(into, out, side=1, **options):
    return nn.Conv2d(into, out, side, 1, side // 2, bias=False, **options)

  class Norm(nn.Module):
    """Of the channels of [batch, channels, height, width]."""

    def __init__(self, width):
      super().__init__()
      self.body = nn.LayerNorm(width, eps=1e-5)

    def forward(self, x):
      return self.body(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

  class Attention(nn.Module):
    def __init__(self, width, heads, names=(("qkv", 3),)):
      super().__init__()
      self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
      self.names, self.heads = [name for name, _ in names], heads
      for name, count in names:
        n = count * width
        setattr(self, name, conv(width, n))
        setattr(self, f"{name}_dwconv", conv(n, n, 3, groups=n))
      self.project_out = conv(width, width)

    def forward(self, *images):
      made = [
        getattr(self, f"{name}_dwconv")(getattr(self, name)(x))
        for name, x in zip(self.names, images, strict=True)
      ]
      q, k, v = torch.cat(made, 1).chunk(3, 1)
      out = []
      heads = (x.chunk(self.heads, 1) for x in (q, k, v))
      for head, (q, k, v) in enumerate(zip(*heads, strict=True)):
        q, k, shape = q.flatten(2), k.flatten(2), v.shape
        q = q / q.norm(dim=2, keepdim=True).clamp_min(1e-12)
        k = k / k.norm(dim=2, keepdim=True).clamp_min(1e-12)
        scores = torch.einsum("bcn,ben->bce", q, k) * self.temperature[head]
        out.append((scores.softmax(2) @ v.flatten(2)).reshape(shape))
      return self.project_out(torch.cat(out, 1))

  class FeedForward(nn.Module):
    def __init__(self, width, expansion):
      super().__init__()
      n = int(width * expansion)
      self.project_in = conv(width, 2 * n)
      self.dwconv = conv(2 * n, 2 * n, 3, groups=2 * n)
      self.project_out = conv(n, width)

    def forward(self, x):
      a, b = self.dwconv(self.project_in(x)).chunk(2, 1)
      return self.project_out(f.gelu(a) * b)

  class Scan(nn.Module):
    """SS2D, one place after the other."""

    def __init__(self, width, expansion, states):
      super().__init__()
      d, rank = expansion * width, -(-width // 16)
      self.rank, self.states = rank, states
      self.in_proj = nn.Linear(width, 2 * d, bias=False)
      self.conv2d = nn.Conv2d(d, d, 3, 1, 1, groups=d)
      self.x_proj_weight = nn.Parameter(torch.zeros(4, rank + 2 * states, d))
      self.dt_projs_weight = nn.Parameter(torch.zeros(4, d, rank))
      self.dt_projs_bias = nn.Parameter(torch.zeros(4, d))
      self.A_logs = nn.Parameter(torch.zeros(4 * d, states))
      self.Ds = nn.Parameter(torch.zeros(4 * d))
      self.out_norm = nn.LayerNorm(d)
      self.out_proj = nn.Linear(d, width, bias=False)

    def forward(self, u):
      x, z = self.in_proj(u.permute(0, 2, 3, 1)).chunk(2, -1)
      x = f.silu(self.conv2d(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
      batch, height, width, d = x.shape
      order = [(i, j) for i in range(height) for j in range(width)]
      columns = [(i, j) for j in range(width) for i in range(height)]
      orders = (order, columns, order[::-1], columns[::-1])
      total = torch.zeros_like(x)
      for way, places in enumerate(orders):
        own = slice(way * d, (way + 1) * d)
        a, skip = -self.A_logs[own].exp(), self.Ds[own]
        h = x.new_zeros(batch, d, self.states)
        rows = {}
        for i, j in places:
          at = x[:, i, j]
          low, b, c = (at @ self.x_proj_weight[way].T).split(
            [self.rank, self.states, self.states], -1
          )
          dt = low @ self.dt_projs_weight[way].T + self.dt_projs_bias[way]
          dt = f.softplus(dt)[..., None]
          h = (dt * a).exp() * h + dt * at[..., None] * b[:, None]
          rows[i, j] = (h * c[:, None]).sum(-1) + skip * at
        total = total + torch.stack(
          [torch.stack([rows[i, j] for j in range(width)], 1)
           for i in range(height)], 1
        )  # fmt: skip
      out = self.out_proj(self.out_norm(total) * f.silu(z))
      return out.permute(0, 3, 1, 2)

  class Block(nn.Module):
    def __init__(self, width, heads, expansion, scan=None):
      super().__init__()
      self.norm1, self.norm2 = Norm(width), Norm(width)
      self.attn = Attention(width, heads)
      self.ffn = FeedForward(width, expansion)
      if scan is not None:
        self.scan = Scan(width, *scan)
        self.fuse = conv(2 * width, width)
      self.scanned = scan is not None

    def forward(self, x):
      u = self.norm1(x)
      y = self.attn(u)
      if self.scanned:
        y = self.fuse(torch.cat([y, self.scan(u)], 1))
      x = x + y
      return x + self.ffn(self.norm2(x))

  class Prompt(nn.Module):
    def __init__(self, into, width, side, length):
      super().__init__()
      shape = (1, length, width, side, side)
      self.prompt_param = nn.Parameter(torch.rand(shape))
      self.linear_layer = nn.Linear(into, length)
      self.conv3x3 = conv(width, width, 3)

    def forward(self, x):
      weights = self.linear_layer(x.mean((2, 3))).softmax(1)
      prompt = torch.einsum("bl,lchw->bchw", weights, self.prompt_param[0])
      prompt = f.interpolate(prompt, x.shape[2:], mode="bilinear")
      return self.conv3x3(prompt)

  class PromptBlock(nn.Module):
    def __init__(self, into, width, side, length, heads):
      super().__init__()
      self.prompt = Prompt(into, width, side, length)
      self.project = conv(width, into)
      self.norm = Norm(into)
      self.gate = nn.Conv2d(2 * into, 1, 1)
      self.attn = Attention(into, heads, (("q", 1), ("kv", 2)))

    def forward(self, x):
      prompt, u = self.project(self.prompt(x)), self.norm(x)
      gate = self.gate(torch.cat([u, prompt], 1)).sigmoid()
      return x + gate * self.attn(u, prompt)

  class Resized(nn.Module):
    def __init__(self, into, out, shuffle):
      super().__init__()
      self.body = nn.Sequential(conv(into, out, 3), shuffle)

    def forward(self, x):
      return self.body(x)

  class Net(nn.Module):
    def __init__(self):
      super().__init__()
      self.last = len(model.depths) - 1
      self.prompted = bool(model.prompt_widths)
      widths = [model.width * 2**level for level in range(self.last + 1)]

      def level(number, width):
        scan = (model.scan_expansion, model.scan_states)
        return nn.Sequential(
          *(
            Block(
              width,
              model.heads[number],
              model.expansion,
              scan if number in model.scan_levels else None,
            )
            for _ in range(model.depths[number])
          )
        )

      self.patch_embed = nn.Module()
      self.patch_embed.proj = conv(3, model.width, 3)
      for i, width in enumerate(widths[:-1]):
        n = i + 1
        behind = 2 * width if i == 0 else width
        setattr(self, f"encoder_level{n}", level(i, width))
        setattr(self, f"decoder_level{n}", level(i, behind))
        down = Resized(width, width // 2, nn.PixelUnshuffle(2))
        setattr(self, f"down{n}_{n + 1}", down)
        above = 2 * width
        up = Resized(above, 2 * above, nn.PixelShuffle(2))
        setattr(self, f"up{n + 1}_{n}", up)
        if i:
          setattr(self, f"reduce_chan_level{n}", conv(2 * width, width))
      self.latent = level(self.last, widths[-1])
      if self.prompted:
        for i, width in enumerate(widths):
          block = PromptBlock(
            width,
            model.prompt_widths[i],
            model.prompt_sides[i],
            model.prompt_length,
            model.prompt_heads,
          )
          setattr(self, f"prompt{i + 1}", block)
      end = 2 * model.width
      self.refinement = nn.Sequential(
        *(
          Block(end, model.heads[0], model.expansion)
          for _ in range(model.refinement_depth)
        )
      )
      self.output = conv(end, 3, 3)

    def forward(self, image):
      x, kept = self.patch_embed.proj(image), []
      for n in range(1, self.last + 1):
        kept.append(self._of("encoder_level", n)(x))
        x = self._of("down", f"{n}_{n + 1}")(kept[-1])
      x = self._prompt(self.last + 1, self.latent(x))
      for n in reversed(range(1, self.last + 1)):
        x = self._of("up", f"{n + 1}_{n}")(x)
        x = torch.cat([x, self._prompt(n, kept[n - 1])], 1)
        if n > 1:
          x = self._of("reduce_chan_level", n)(x)
        x = self._of("decoder_level", n)(x)
      x = self.output(self.refinement(x)) + image
      return x.permute(0, 2, 3, 1)

    def _of(self, name, number):
      return getattr(self, f"{name}{number}")

    def _prompt(self, n, x):
      return self._of("prompt", n)(x) if self.prompted else x

  return Net()
