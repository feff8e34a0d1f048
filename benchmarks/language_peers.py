"""Language models of transformers, trained and decoded on a CPU or a GPU."""

from typing import Any

import numpy as np

from benchmarks import language_cases
from benchmarks.turns import Run
from tools import torch_imports

LEARNING_RATE, WEIGHT_DECAY, BETAS, CLIP = 1e-3, 0.1, (0.9, 0.99), 1.0


class Peer:
  """A model of transformers with random weights.

  Args:
    family: a key of `language_cases.FAMILIES`.
    size: of the model.
    threads: that PyTorch computes with.
  """

  def __init__(self, family: str, size: language_cases.Size, threads: int):
    self.torch, module = torch_imports.import_transformers(family)
    self.torch.set_num_threads(threads)
    self.torch.manual_seed(0)
    cls = getattr(module, language_cases.FAMILIES[family])
    config = cls.config_class(**language_cases.config(family, size))
    self.device = "cuda" if self.torch.cuda.is_available() else "cpu"
    self.model = cls(config).to(self.device)

  def parameters(self) -> int:
    """Returns the number of parameters."""
    return sum(p.numel() for p in self.model.parameters())

  def train(
    self, tokens: np.ndarray, targets: np.ndarray, compiled: bool
  ) -> Run:
    """Returns a function that takes one training step: AdamW, clipped."""
    torch, model = self.torch, self.model.train()
    tokens, targets = self._device(tokens), self._device(targets)
    optimizer = torch.optim.AdamW(
      model.parameters(),
      lr=LEARNING_RATE,
      betas=BETAS,
      weight_decay=WEIGHT_DECAY,
      fused=True,
    )

    def loss():
      logits = model(input_ids=tokens, use_cache=False).logits
      return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten()
      )

    loss = torch.compile(loss) if compiled else loss

    def run() -> None:
      optimizer.zero_grad(set_to_none=True)
      loss().backward()
      torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
      optimizer.step()
      self._wait()

    return run

  def decode(self, prompts: np.ndarray, count: int, compiled: bool) -> Run:
    """Returns a function that adds the `count` most probable tokens.

    Compiled, with the cache of fixed size that compiling needs.
    """
    from transformers import CompileConfig

    torch, model = self.torch, self.model.eval()
    prompts = self._device(prompts)
    options = {}
    if compiled:
      compiling = CompileConfig(mode="default")
      compiling._compile_all_devices = True
      options = {
        "cache_implementation": "static",
        "compile_config": compiling,
      }

    def run() -> None:
      with torch.inference_mode():
        model.generate(
          prompts,
          attention_mask=torch.ones_like(prompts),
          max_new_tokens=count,
          min_new_tokens=count,
          do_sample=False,
          pad_token_id=0,
          **options,
        )
      self._wait()

    return run

  def _device(self, array: np.ndarray) -> Any:
    return self.torch.tensor(array, dtype=self.torch.long, device=self.device)

  def _wait(self) -> None:
    if self.device == "cuda":
      self.torch.cuda.synchronize()
