"""Energies and forces of structures of atoms.

  python train.py --config=configs/potentials.py --workdir=runs/potentials

Variants, on clusters of 8 to 13 atoms that are made up of a seed:
- `clusters` (the default): EScAIP with a head of forces; it trains in two
  minutes on two cores.
- `clusters_gradient`: forces are the slope of the energy.

--config.data.potential=morse is another potential, and
--config.data.options.three_body=0.5 adds an energy of triples, of which pairs
of atoms know nothing.
"""

import ml_collections

from configs import common

VARIANTS = ("clusters", "clusters_gradient")


def get_config(variant: str = "clusters") -> ml_collections.ConfigDict:
  """The config of a variant.

  Raises:
    ValueError: if there is no such variant.
  """
  common.check_variant("potentials", variant, VARIANTS)
  config = common.get_config("potentials")
  config.data.options.three_body = 0.0
  # Of the recipe for MD22, the other data of molecules without a boundary, but
  # of a size that suits so small a job. Energies are sums here.
  config.model.update(dict(width=64, depth=2, heads=4, elements=20))
  config.model.update(dict(cutoff=5.0, max_neighbors=12, basis_size=64))
  config.model.told_widths = (64, 16, 16)
  config.model.energy_reduce = "sum"
  config.model.forces = "direct"
  if variant == "clusters_gradient":
    config.model.forces = "gradient"
  config.batch_size = 16
  config.eval_batch_size = 100
  common.schedule(config, steps=600, every=300, rates=(1e-3, 1e-5))
  config.optimizer.clip_norm = 10.0
  config.optimizer.weight_decay = 0.01
  # As the paper's code: norms, embeddings and biases do not decay.
  config.optimizer.decay_exclude = ("scale", "bias", "embedding")
  return config
