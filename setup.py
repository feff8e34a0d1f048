"""Installs Foveal: `pip install -e .`, with extras for what not all need."""

from pathlib import Path

from setuptools import find_packages, setup

# Of the repository; empty until somebody publishes it. The notebooks clone it.
URL = ""
PARITY = [
  "diffusers>=0.42,<0.43",
  "huggingface_hub>=0.30",
  "pycocotools>=2.0.8",
  "safetensors>=0.5",
  "spandrel>=0.4.2,<0.5",
  "timm>=1.0.31",
  # The version that the comparisons were made with; a later one may bring
  # gigabytes for a GPU.
  "torch==2.13.0",
  "torch-fidelity>=0.4,<0.5",
  "transformers>=5.24,<6",
]
# Compilers for chips that are not here; no driver and no toolkit.
COMPILE = [
  "libtpu>=0.0.52",
  "jax-cuda13-plugin==0.10.2; python_version < '3.12'",
  "jax-cuda13-plugin>=0.12,<0.13; python_version >= '3.12'",
]
# Scikit-image's files are most of the photographs; its code is a test's oracle.
PHOTOGRAPHS = ["scikit-image>=0.25"]
TEST = [
  *PHOTOGRAPHS,
  "beartype>=0.22",
  "hypothesis>=6.100",
  "ipykernel>=6.29",
  "nbclient>=0.10",
  "nbformat>=5.10",
  "pytest>=8.4",
  "pytest-xdist>=3.6",
  "ruff>=0.14",
  "safetensors>=0.5",
]

setup(
  name="foveal",
  version="0.1.0",
  description="Research codebase for attention in JAX and Flax",
  long_description=Path("README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  url=URL,
  python_requires=">=3.11,<3.14",
  packages=find_packages(exclude=["tests*", "benchmarks*"]),
  package_data={"tools.published": ["*.csv"]},
  py_modules=["train", "eval", "sample"],
  install_requires=[
    "absl-py>=2.1",
    "etils[epath]>=1.10",
    "flax>=0.12",
    "grain>=0.2.15",
    # tensorflow-datasets imports it without declaring it.
    "importlib_resources>=6",
    "jax>=0.10.2,<0.13",
    "jaxtyping>=0.3",
    "matplotlib>=3.9",
    "ml_collections>=1.1",
    "numpy>=2",
    "opencv-python-headless>=4.10",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.11.30",
    "pillow>=11",
    "scikit-learn>=1.5",
    "scipy>=1.14",
    "simplejpeg>=1.8",
    "tensorboardX>=2.6.2",
    "tensorflow-datasets>=4.9.9",
    "tokenizers>=0.22",
    "tqdm>=4.66",
  ],
  extras_require={
    "test": TEST,
    "parity": PARITY,
    "hub": ["huggingface_hub>=0.30", "safetensors>=0.5"],
    "compile": COMPILE,
    "photographs": PHOTOGRAPHS,
    "prepare": ["tensorflow>=2.20"],
    "colab": ["ipykernel>=6.29"],
  },
)
