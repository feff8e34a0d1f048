"""DiMR stated once more, in PyTorch, from section 3 of its fact sheet.

A function of the tensors of a file of its authors, by their names: heads one by
one, pixels placed one by one, whatever is not ours.
"""

import math

from tests import parity_helper


def predictions(tensors, x, n, y, heads):
  """What all stages predict.

  Args:
    tensors: {name: tensor}, of any floating dtype.
    x: [batch, channels, height, width].
    n: steps [batch], 1 to 1000.
    y: classes [batch].
    heads: of the transformer.
  """
  stages = 1 + max(int(name.split(".")[1]) for name in tensors)
  outputs, below = [], None
  for i in range(stages):
    prefix = f"stages.{i}."
    own = {
      name.removeprefix(prefix): tensor
      for name, tensor in tensors.items()
      if name.startswith(prefix)
    }
    stage = _Stage(own, 2 * n / 1000 - 1, heads, 2 ** (stages - 1 - i))
    output, below = stage.run(x, y, below)
    outputs.append(output)
  return outputs


class _Stage:
  """A stage, whose methods take and give channels last."""

  def __init__(self, tensors, tau, heads, patch_size):
    self.torch = parity_helper.import_torch()
    self.tensors, self.tau = tensors, tau
    self.heads, self.patch_size = heads, patch_size

  def run(self, x, y, below):
    conv = self.torch.nn.functional.conv2d
    x = conv(x, *self.pair("input_layer.1"), stride=self.patch_size)
    x = x.permute(0, 2, 3, 1)
    batch, height, width, d = x.shape
    places = self.tensors["input_layer.3.position_embeddings.weight"]
    # Of a square table.
    side = math.isqrt(len(places))
    x = x + places.reshape(side, side, d)[:height, :width]
    if below is not None:
      x = x + self.upsample(below, d)
    classes = self.tensors.get("class_embeds.weight")
    if classes is not None:
      tokens = x.reshape(batch, height * width, d)
      x = self.torch.cat([classes[y][:, None], tokens], 1)
    x, kept = self.blocks(x)
    if classes is not None:
      x, *kept = (t[:, 1:].reshape(batch, height, width, d) for t in (x, *kept))
    x = self.layer_norm("output_layer.0", x).permute(0, 3, 1, 2)
    out = conv(x, *self.pair("output_layer.2"), padding=1)
    return out, self.torch.cat(kept, -1)

  def blocks(self, x):
    count = 1 + max(
      int(name.split(".")[1])
      for name in self.tensors
      if name.startswith("blocks.")
    )
    kept, skips = [x], []
    for i in range(count):
      if i > count // 2:
        both = self.torch.cat([x, skips.pop()], -1)
        x = self.linear(f"skip_denses.{i - count // 2 - 1}", both)
      name = f"blocks.{i}"
      if f"{name}.block1.1.weight" in self.tensors:
        x = x + self.depthwise(f"{name}.block1.1", x)
      else:
        x = x + self.attention(f"{name}.block1", x)
      x = x + self.mlp(f"{name}.block2", x)
      kept.append(x)
      if i < count // 2:
        skips.append(x)
    return x, kept

  def attention(self, name, x):
    x = self.rms_norm(f"{name}.norm", x)
    d = x.shape[-1] // self.heads
    # All heads of queries, then of keys, then of values.
    parts = x @ self.tensors[f"{name}.query_key_value.weight"].T
    outs = []
    for h in range(self.heads):
      q, k, v = (
        parts[..., (i * self.heads + h) * d : (i * self.heads + h + 1) * d]
        for i in range(3)
      )
      outs.append(self.torch.softmax(q @ k.mT / math.sqrt(d), -1) @ v)
    return self.linear(f"{name}.dense", self.torch.cat(outs, -1))

  def depthwise(self, name, x):
    weight, bias = self.pair(name)
    out = self.torch.nn.functional.conv2d(
      x.permute(0, 3, 1, 2),
      weight,
      bias,
      padding=weight.shape[-1] // 2,
      groups=len(weight),
    )
    return out.permute(0, 2, 3, 1)

  def mlp(self, name, x):
    x = self.rms_norm(f"{name}.norm", x)
    a, b = self.linear(f"{name}.w0", x), self.linear(f"{name}.w1", x)
    gelu = a * (1 + self.torch.erf(a / math.sqrt(2))) / 2
    return self.linear(f"{name}.w2", gelu * b)

  def upsample(self, x, d):
    x = self.linear("upsample.1.kernel", self.layer_norm("upsample.0", x))
    batch, height, width, channels = x.shape
    r = math.isqrt(channels // d)
    out = x.new_zeros(batch, height * r, width * r, d)
    for i in range(r * r):
      out[:, i // r :: r, i % r :: r] = x[..., i * d : (i + 1) * d]
    return self.layer_norm("upsample.2", out)

  def layer_norm(self, name, x):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    x = (x - mean) / (variance + 1e-5).sqrt()
    return self.timed(f"{name}.weight", x) * x + self.timed(f"{name}.bias", x)

  def rms_norm(self, name, x):
    root = (x**2).sum(-1, keepdim=True).sqrt() / math.sqrt(x.shape[-1])
    return self.timed(f"{name}.scale", x) * x / (root + 1e-8)

  def timed(self, name, x):
    """A vector at the times of the rows, to multiply with `x`."""
    p0, p1, w, b = (
      self.tensors[f"{name}.{part}"]
      for part in ("param0", "param1", "nodecay_weight", "nodecay_bias")
    )
    s = self.torch.sigmoid((1 + w) * self.tau[:, None] + b)
    p = s * p0 + (1 - s) * p1
    return p.reshape(len(x), *(1,) * (x.ndim - 2), -1)

  def linear(self, name, x):
    weight, bias = self.pair(name)
    return x @ weight.T + bias

  def pair(self, name):
    return self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
