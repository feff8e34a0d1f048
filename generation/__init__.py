"""Sampling by diffusion: from noise to data along a path, and back.

It knows arrays and functions that predict, and neither task nor data: a path
(`paths`), a denoiser (`denoiser`), a solver (`solvers`) and the loop over steps
(`sampler`). What changes attention while sampling is a method (`methods`).
"""

from generation.denoiser import Denoise, Denoiser, create_denoiser
from generation.paths import Path, ddpm, flow
from generation.sampler import invert, sample
from generation.solvers import SOLVERS

__all__ = [
  "SOLVERS",
  "Denoise",
  "Denoiser",
  "Path",
  "create_denoiser",
  "ddpm",
  "flow",
  "invert",
  "sample",
]
