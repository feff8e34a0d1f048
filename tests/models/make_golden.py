"""Makes golden/maxvit_tiny_224.npz: `python -m tests.models.make_golden`.

The logits are timm's, for weights and an image drawn by numpy from seeds.
"""

import pathlib

import numpy as np

import models
from models import pretrained
from tests import parity_helper

PATH = pathlib.Path(__file__).parent / "golden" / "maxvit_tiny_224.npz"
NAME = "maxvit_tiny_tf_224"
CLASSES = 100


def inputs():
  model = models.create(NAME, num_classes=CLASSES)
  variables = parity_helper.random_variables(model, seed=3)
  return model, variables, parity_helper.random_images(1, 224, seed=4)


def timm_logits():
  _, timm = parity_helper.import_timm()
  model, variables, images = inputs()
  theirs = timm.create_model(NAME, num_classes=CLASSES).eval()
  parity_helper.fill(theirs, pretrained.to_tensors(variables, model))
  return parity_helper.timm_logits(theirs, images)


if __name__ == "__main__":
  np.savez(PATH, logits=timm_logits())
