"""PyTorch's versions of the cases of `benchmarks.gpu_cases`.

SDPA is `torch.nn.functional.scaled_dot_product_attention`, which picks among
its own kernels; FlexAttention is compiled. Both get the layout they like best,
[batch, heads, length, dim], and windows are cut and put back as timm does it,
since that is part of the computation.
"""

from collections.abc import Callable

from benchmarks.gpu_cases import Case


def import_torch():
  """Returns torch if it is installed and sees a GPU, otherwise None."""
  try:
    import torch
  except (ImportError, OSError):
    return None
  return torch if torch.cuda.is_available() else None


def peers(torch, case: Case) -> dict[str, tuple[Callable, list]]:
  """Returns for each peer a function and the tensors it takes."""
  if case.family == "window":
    return {"torch SDPA": (_window(torch, case), _tensors(torch, case))}
  if case.family != "flash":
    return {}
  tensors = _tensors(torch, case)
  tensors[:3] = [
    x.transpose(1, 2).contiguous().detach().requires_grad_()
    for x in tensors[:3]
  ]
  found = {"torch FlexAttention": (_flex(torch, case), tensors)}
  if case.kernel in ("plain", "causal", "dense_bias"):
    found["torch SDPA"] = (_sdpa(torch, case), tensors)
  return found


def _tensors(torch, case: Case) -> list:
  dtypes = {"bfloat16": torch.bfloat16, "float32": torch.float32}
  return [
    torch.randn(
      x.shape, dtype=dtypes[str(x.dtype)], device="cuda", requires_grad=True
    )
    for x in case.arrays
  ]


def _sdpa(torch, case: Case) -> Callable:
  def run(q, k, v, bias=None):
    return torch.nn.functional.scaled_dot_product_attention(
      q, k, v, attn_mask=bias, is_causal=case.sizes["causal"]
    )

  return run


def _window(torch, case: Case) -> Callable:
  batch, height, width, heads, dim = case.arrays[0].shape
  side, grid = case.sizes["window"], case.sizes["grid"]
  rows, columns = height // side, width // side

  def cut(x):
    # [B, H, W, h, d] -> [B * windows, h, tokens, d]
    if grid:
      x = x.view(batch, side, rows, side, columns, heads, dim)
      x = x.permute(0, 2, 4, 5, 1, 3, 6)
    else:
      x = x.view(batch, rows, side, columns, side, heads, dim)
      x = x.permute(0, 1, 3, 5, 2, 4, 6)
    return x.reshape(-1, heads, side**2, dim)

  def run(q, k, v, bias):
    out = torch.nn.functional.scaled_dot_product_attention(
      cut(q), cut(k), cut(v), attn_mask=bias[None].to(q.dtype)
    )
    out = out.view(batch, rows, columns, heads, side, side, dim)
    order = (0, 4, 1, 5, 2, 3, 6) if grid else (0, 1, 4, 2, 5, 3, 6)
    return out.permute(*order).reshape(batch, height, width, heads, dim)

  return run


def _flex(torch, case: Case) -> Callable:
  from torch.nn.attention import flex_attention as flex

  compiled = torch.compile(flex.flex_attention)
  length = case.arrays[0].shape[1]
  window = case.sizes["window"]

  def visible(batch, head, q, k):
    return (q >= k) if window is None else (q >= k) & (q - k <= window)

  block_mask = None
  if case.sizes["causal"]:
    block_mask = flex.create_block_mask(
      visible, None, None, length, length, device="cuda"
    )

  def run(q, k, v, *arrays):
    def modify(score, batch, head, i, j):
      match case.kernel:
        case "dense_bias":
          return score + arrays[0][0, head, i, j]
        case "alibi" | "factored_bias":
          return score + arrays[0][head] * (j - i)
        case "soft_cap":
          return 50.0 * torch.tanh(score / 50.0)
      return score

    return compiled(q, k, v, score_mod=modify, block_mask=block_mask)

  return run
