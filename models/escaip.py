"""EScAIP: a potential that attends among the neighbours of each atom.

"The Importance of Being Scalable: Improving the Speed and Accuracy of Neural
Network Interatomic Potentials Across Chemical Domains" (arXiv 2410.24169), the
first version of the code (github.com/ASK-Berkeley/EScAIP), which the paper is
about; of the second only the gate of angles is here. Left out: the head of
stresses and periodic images, dropout of attention weights.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import atom_graphs, escaip_layers, registry
from models.potential_base import Potential, Prediction
from models.spherical_harmonics import spherical_harmonics

ANGLES = ("cosine", "frequency", "none")
MIXINGS = ("attention", "none")


class EScAIP(Potential):
  """Features of atoms and of edges, whose scalars no rotation changes.

  Each block makes a message of every edge, and lets those of one atom attend to
  each other. Readouts of the input and of all blocks give the energy, and with
  forces "direct" a vector to each edge, whose elements scale those of the
  edge's direction: that does not turn with the structure, by design.

  Attributes:
    width: channels of a feature, H.
    depth: blocks.
    heads: of the attention.
    basis_size: Gaussians of a distance.
    degrees: of bond orders, from 0 on.
    told_widths: channels that an edge is told of its distance, of the bond
      orders of an end, and of the atom of an end.
    angles: what attention is told of the angle between two neighbours:
      "cosine", added to the scores; "frequency", the gate of the second
      version, in this one ours; or "none".
    frequency_channels: of the gate, channels of a head for each degree.
    mixing: "attention"; or "none", a control of ours: a feed-forward layer of
      nearly as many parameters instead, which is message passing.
    dropout_rate: of features.
  """

  width: int = 512
  depth: int = 10
  heads: int = 8
  basis_size: int = 600
  degrees: int = 10
  told_widths: tuple[int, int, int] = (512, 64, 128)
  angles: str = "cosine"
  frequency_channels: tuple[int, ...] = (20, 10, 4, 10, 20)
  mixing: str = "attention"
  dropout_rate: float = 0.0

  def setup(self):
    self._check_fields()
    direct = self.forces == "direct"
    fields = escaip_layers.Fields(
      width=self.width,
      heads=self.heads,
      elements=self.elements,
      told_widths=self.told_widths,
      angles=self.angles,
      mixing=self.mixing,
      frequency_channels=self.frequency_channels,
      dropout_rate=self.dropout_rate,
      implementation="xla"
      if self.forces == "gradient"
      else self.implementation,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    block = escaip_layers.Block
    if self.remat:
      block = nn.remat(block, static_argnums=(4,))
    self.input = escaip_layers.Input(fields)
    # What the last block makes of edges is read by the head of forces only.
    self.block = [
      block(fields, direct or i + 1 < self.depth) for i in range(self.depth)
    ]
    kinds = ("node", "edge") if direct else ("node",)
    self.readout = {
      kind: [escaip_layers.Readout(fields) for _ in range(self.depth + 1)]
      for kind in kinds
    }
    self.project = {kind: escaip_layers.Projection(fields) for kind in kinds}
    self.energy = escaip_layers.Output(1, fields, gain=0.01)
    if direct:
      self.force_scale = escaip_layers.Output(1, fields)
      self.force_vector = escaip_layers.Output(3, fields)

  def _predict(
    self, numbers: jax.Array, positions: jax.Array, train: bool
  ) -> Prediction:
    present = numbers > 0
    seen = self._seen(numbers, positions)
    features = self._features(seen, train)
    of_atoms = self.energy(features["node"], train)[..., 0]
    energy = self._reduced(of_atoms, present)
    if self.forces != "direct":
      return Prediction(energy, None)
    # [B, A, M, 3] and [B, A, 1]
    vectors = self.force_vector(features["edge"], train) * seen.graph.direction
    filled = seen.graph.filled[..., None]
    total = jnp.where(filled, vectors, 0.0).sum(2)
    forces = self.force_scale(features["node"], train) * total
    return Prediction(energy, jnp.where(present[..., None], forces, 0.0))

  def _seen(
    self, numbers: jax.Array, positions: jax.Array
  ) -> escaip_layers.Seen:
    graph = atom_graphs.neighbors(
      positions,
      numbers > 0,
      cutoff=self.cutoff,
      max_neighbors=self.max_neighbors,
    )
    cosines = harmonics = None
    if self.angles == "cosine":
      cosines = atom_graphs.cosines(graph)
    elif self.angles == "frequency":
      harmonics = spherical_harmonics(
        graph.direction, len(self.frequency_channels)
      )
    return escaip_layers.Seen(
      graph=graph,
      numbers=numbers,
      basis=atom_graphs.radial_basis(graph, self.cutoff, self.basis_size),
      order=atom_graphs.bond_order(graph, self.degrees),
      cosines=cosines,
      harmonics=harmonics,
    )

  def _features(
    self, seen: escaip_layers.Seen, train: bool
  ) -> dict[str, jax.Array]:
    """What heads read, "node" [B, A, H] and "edge" [B, A, M, H]."""
    nodes, edges = self.input(seen, train)
    found = {"node": [nodes], "edge": [edges]}
    for block in self.block:
      nodes, edges = block(nodes, edges, seen, train)
      found["node"].append(nodes)
      found["edge"].append(edges)
    made = {}
    for kind, readouts in self.readout.items():
      read = [
        readout(x, train)
        for readout, x in zip(readouts, found[kind], strict=True)
      ]
      made[kind] = self.project[kind](read, train)
    return made

  def _check_fields(self) -> None:
    """Raises ValueError for fields that do not fit."""
    for field in ("width", "depth", "heads", "degrees"):
      if getattr(self, field) < 1:
        raise ValueError(
          f"{field} is {getattr(self, field)}; it must be 1 or more"
        )
    if min(self.told_widths) < 1:
      raise ValueError(
        f"told_widths is {self.told_widths}; each must be 1 or more"
      )
    if self.basis_size < 2:
      raise ValueError(f"basis_size is {self.basis_size}; it must be 2 or more")
    if self.width % self.heads:
      raise ValueError(
        f"heads is {self.heads}, which does not divide width {self.width}"
      )
    if self.angles not in ANGLES:
      raise registry.unknown("angles", self.angles, ANGLES)
    if self.mixing not in MIXINGS:
      raise registry.unknown("mixing", self.mixing, MIXINGS)
    dim, channels = self.width // self.heads, self.frequency_channels
    if self.angles == "frequency" and sum(channels) != dim:
      raise ValueError(
        f"frequency_channels is {channels}, in all {sum(channels)}; they must "
        f"be the {dim} channels of a head"
      )


KIND = "potential"
# The first version's configs, named after the data they were published for.
# What no parameter depends on is OC20's where the fact sheet has no other: 20
# neighbours within 12 angstroms.
VARIANTS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
  "escaip_oc20_s": (EScAIP, {}),
  "escaip_oc20_m": (EScAIP, {"depth": 8, "heads": 12, "width": 768}),
  "escaip_oc20_l": (EScAIP, {"heads": 16, "width": 1024}),
  "escaip_mptrj": (EScAIP, {"depth": 6, "heads": 16, "elements": 96}),
  "escaip_md22": (EScAIP, {"depth": 6, "width": 256, "cutoff": 6.0}),
  "escaip_spice": (EScAIP, {"depth": 6, "width": 128, "elements": 110}),
}
