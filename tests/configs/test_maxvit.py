"""MaxViT's recipes against table 12 of the paper, column by column."""

import pytest

from configs import maxvit
from tools import published

# Stochastic depth by size, RandAugment's M, mixup, loss, smoothing, epochs,
# batch, peak and last learning rate, warm-up, schedule, weight decay, EMA.
TABLE_12 = {
  "{}_224": (
    dict(tiny=0.2, small=0.3, base=0.4, large=0.6),
    (15, 0.8, "softmax", 0.1, 300, 4096),
    (3e-3, 1e-5, "10_000 steps", "cosine", 0.05, 0.0),
  ),
  "{}_384": (
    dict(tiny=0.2, small=0.3, base=0.4, large=0.6),
    (15, 0.8, "softmax", 0.1, 30, 512),
    (5e-5, None, "0 steps", "constant", 1e-8, 0.9999),
  ),
  "{}_224_in21k": (
    dict(base=0.3, large=0.4, xlarge=0.6),
    (5, 0.0, "sigmoid", 1e-4, 90, 4096),
    (1e-3, 1e-5, "5 epochs", "linear", 0.01, 0.0),
  ),
  "{}_384_in21k": (
    dict(base=0.4, large=0.5, xlarge=0.9),
    (15, 0.0, "softmax", 0.1, 30, 512),
    (5e-5, None, "0 steps", "constant", 1e-8, 0.9999),
  ),
}
CASES = [
  (pattern.format(size).replace("384", resolution), pattern, size)
  for pattern, (sizes, *_) in TABLE_12.items()
  for size in sizes
  for resolution in (("384", "512") if "384" in pattern else ("224",))
]


@pytest.mark.parametrize(("variant", "pattern", "size"), CASES)
def test_table_12(variant, pattern, size):
  config = maxvit.get_config(variant)
  depth, augmentation, optimizer = TABLE_12[pattern]
  magnitude, mixup, loss, smoothing, epochs, batch = augmentation
  assert config.model.stochastic_depth_rate == depth[size]
  transform = config.data.train_transform
  assert f"rand_augment(layers=2,magnitude={magnitude})" in transform
  assert ("crop" in transform) == ("224" in variant)
  assert ("crop" in config.data.eval_transform) == ("224" in variant)
  assert config.mixing.mixup_alpha == mixup
  assert config.mixing.cutmix_alpha == 0
  assert (config.loss.name, config.loss.label_smoothing) == (loss, smoothing)
  assert config.train_for == f"{epochs} epochs"
  assert config.batch_size == batch
  rate, last, warmup, schedule, decay, ema = optimizer
  assert config.optimizer.name == "adamw"
  assert config.optimizer.learning_rate == rate
  assert last is None or config.optimizer.final_learning_rate == last
  assert config.optimizer.warmup == warmup
  assert config.optimizer.schedule == schedule
  assert config.optimizer.weight_decay == decay
  # The official code's: all whose name contains bias, scale, gamma or beta.
  excluded = {"bias", "scale", "relative_bias_table"}
  assert excluded <= set(config.optimizer.decay_exclude)
  assert config.optimizer.clip_norm == 1.0
  assert config.ema.decay == ema


def test_pixels_of_pretrained_and_fine_tuned_models():
  assert maxvit.get_config("tiny_224").data.mean == (0.485, 0.456, 0.406)
  for variant in ("tiny_384", "base_224_in21k", "xlarge_512_in21k"):
    config = maxvit.get_config(variant)
    assert config.data.mean == config.data.std == (0.5, 0.5, 0.5)


def test_the_model_garden_s_runs():
  config = maxvit.get_config("tiny_224_garden")
  assert config.optimizer.learning_rate == 2e-3
  assert maxvit.get_config("large_224_garden").optimizer.learning_rate == 1e-3
  assert config.optimizer.clip_norm == config.optimizer.final_learning_rate == 0
  assert "exclude=('Cutout',)" in config.data.train_transform


def test_every_published_row_on_public_data_has_a_config():
  rows = published.rows("maxvit")
  for row in rows:
    assert bool(row.config) == ("jft" not in row.train_data), row
    if row.config:
      config = maxvit.get_config(row.config)
      assert config.model.name == row.model
      assert config.data.image_size == row.resolution
  assert len({row.config for row in rows}) > 30


def test_unknown_variants():
  with pytest.raises(ValueError, match="no variant 'huge_224'; it has digits"):
    maxvit.get_config("huge_224")
