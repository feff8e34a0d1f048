"""EScAIP's first version in PyTorch and float64, one structure at a time.

Written from the fact sheet: neighbours by loops, bond orders by Legendre
polynomials of angles (the addition theorem) and not by spherical harmonics,
attention by `torch.nn.functional.multi_head_attention_forward`.
"""

import numpy as np

from tests import parity_helper

torch = parity_helper.import_torch()
functional = torch.nn.functional


def predict(params, numbers, positions, model):
  """Returns the energy and the direct forces of one structure.

  Args:
    params: of our model, nested, tensors.
    numbers: int [A], no padding.
    positions: tensor [A, 3].
    model: ours, for its fields.
  """
  graph = _graph(positions.detach().numpy(), model)
  seen = _told(graph, positions, model)
  numbers = torch.from_numpy(np.asarray(numbers, np.int64))
  nodes, edges = _input(params["input"], numbers, graph, seen)
  node_read = [_readout(params["readout_node_0"], nodes)]
  edge_read = [_readout(params["readout_edge_0"], edges)]
  for i in range(model.depth):
    nodes, edges = _block(
      params[f"block_{i}"], nodes, edges, numbers, graph, seen, model
    )
    node_read.append(_readout(params[f"readout_node_{i + 1}"], nodes))
    edge_read.append(_readout(params[f"readout_edge_{i + 1}"], edges))
  nodes = _projection(params["project_node"], node_read)
  edges = _projection(params["project_edge"], edge_read)
  of_atoms = _output(params["energy"], nodes)[:, 0]
  energy = of_atoms.mean() if model.energy_reduce == "mean" else of_atoms.sum()
  vectors = _output(params["force_vector"], edges) * seen["direction"]
  total = (vectors * graph["mask"][..., None]).sum(1)
  return energy, _output(params["force_scale"], nodes) * total


def _graph(positions, model):
  """Neighbour lists with -1 made 0, and which places are filled."""
  count = len(positions)
  places = max(min(model.max_neighbors, count - 1), 1)
  index = np.zeros((count, places), np.int64)
  mask = np.zeros((count, places), bool)
  real = np.zeros((count, places), bool)
  for i in range(count):
    near = []
    for j in range(count):
      distance = np.linalg.norm(positions[i] - positions[j])
      if j != i and distance <= model.cutoff:
        near.append((distance, j))
    near = sorted(near)[:places]
    for place, (_, j) in enumerate(near):
      index[i, place], mask[i, place], real[i, place] = j, True, True
    if not near:
      index[i, 0], mask[i, 0] = i, True
  tensors = {"index": index, "mask": mask, "real": real}
  return {name: torch.from_numpy(x) for name, x in tensors.items()}


def _told(graph, positions, model):
  """Gaussians of distances, directions, bond orders, cosines of angles."""
  count, places = graph["index"].shape
  zero = torch.zeros((), dtype=torch.float64)
  basis = torch.zeros(count, places, model.basis_size, dtype=torch.float64)
  direction = torch.zeros(count, places, 3, dtype=torch.float64)
  order = torch.zeros(count, model.degrees, dtype=torch.float64)
  centres = torch.linspace(0, model.cutoff, model.basis_size).double()
  sigma = 2 * model.cutoff / (model.basis_size - 1)
  for i in range(count):
    own = []
    for place in range(places):
      if graph["real"][i, place]:
        # From the atom to its neighbour, and its sign changed.
        vector = positions[graph["index"][i, place]] - positions[i]
        distance = torch.sqrt((vector**2).sum())
        direction[i, place] = -vector / distance
        basis[i, place] = torch.exp(
          -((distance - centres) ** 2) / (2 * sigma**2)
        )
        own.append(vector / distance)
    for degree in range(model.degrees if own else 0):
      polynomial = np.polynomial.legendre.leg2poly([0] * degree + [1])
      total = zero
      for a in own:
        for b in own:
          cosine = (a * b).sum()
          for power, factor in enumerate(polynomial):
            total = total + float(factor) * cosine**power
      order[i, degree] = torch.sqrt((2 * degree + 1) * total) / len(own)
  cosines = torch.einsum("ijx,ikx->ijk", direction, direction)
  return {
    "basis": basis,
    "direction": direction,
    "order": order,
    "cosines": cosines,
  }


def _dense(p, x):
  return x @ p["kernel"] + p.get("bias", 0.0)


def _activated(p, x):
  return functional.gelu(_dense(p, x))


def _ffn(p, x):
  return _dense(p["shrink"], _activated(p["expand"], x))


def _rms(p, x):
  mean_square = (x**2).mean(-1, keepdim=True) + float(np.finfo(np.float32).eps)
  return x / torch.sqrt(mean_square) * p["scale"]


def _both(source, target, graph):
  """Features of the source and of the target of each edge."""
  index = graph["index"]
  return source[index], target[:, None].expand(*index.shape, target.shape[-1])


def _edge_inputs(p, numbers, graph, seen):
  orders = [
    _activated(p[f"{end}_order"]["dense"], seen["order"])
    for end in ("source", "target")
  ]
  atoms = [
    p[f"{end}_atom"]["embedding"][numbers] for end in ("source", "target")
  ]
  source_order, target_order = _both(*orders, graph)
  source_atom, target_atom = _both(*atoms, graph)
  told = [
    _activated(p["distance"]["dense"], seen["basis"]),
    source_order,
    source_atom,
    target_order,
    target_atom,
  ]
  return _activated(p["join"], torch.cat(told, -1))


def _mean(x, graph):
  mask = graph["mask"].double()
  return (x * mask[..., None]).sum(1) / (mask.sum(1, keepdim=True) + 1e-5)


def _input(p, numbers, graph, seen):
  h = _edge_inputs(p["inputs"], numbers, graph, seen)
  edges = h + _ffn(p["ffn"], _rms(p["norm"], h))
  nodes = _mean(edges, graph)
  return _rms(p["out_node_norm"], nodes), _rms(p["out_edge_norm"], edges)


def _block(p, nodes, edges, numbers, graph, seen, model):
  normed = _rms(p["attention_norm"], nodes)
  told = _edge_inputs(p["inputs"], numbers, graph, seen)
  pairs = torch.cat(_both(normed, normed, graph), -1)
  between = _activated(p["nodes"], pairs)
  message = _activated(p["message"], torch.cat([told, between], -1))
  out = _attention(p["attention"], message, graph, seen, model)
  nodes = nodes + _mean(out, graph)
  edges = edges + out
  nodes_in = _rms(p["ffn_node_norm"], nodes)
  edges_in = _rms(p["ffn_edge_norm"], edges)
  return (
    nodes + _ffn(p["node_ffn"], nodes_in),
    edges + _ffn(p["edge_ffn"], edges_in),
  )


def _attention(p, message, graph, seen, model):
  count, places, width = message.shape
  minus = torch.zeros(count, 1, places, dtype=torch.float64)
  minus[~graph["mask"][:, None]] = -float("inf")
  bias = minus + p["angle_scale"] * seen["cosines"]
  sequence = message.transpose(0, 1)
  out, _ = functional.multi_head_attention_forward(
    sequence,
    sequence,
    sequence,
    width,
    model.heads,
    p["qkv"]["kernel"].T,
    p["qkv"]["bias"],
    None,
    None,
    False,
    0.0,
    p["out"]["kernel"].T,
    p["out"]["bias"],
    need_weights=False,
    attn_mask=bias.repeat_interleave(model.heads, 0),
  )
  return out.transpose(0, 1)


def _readout(p, x):
  return x + _ffn(p["ffn"], _rms(p["norm"], x))


def _projection(p, readouts):
  x = _rms(p["norm"], torch.cat(readouts, -1))
  return _rms(p["out_norm"], _activated(p["join"]["dense"], x))


def _output(p, x):
  return _dense(p["out"], x + _ffn(p["ffn"], x))
