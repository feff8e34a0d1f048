import jax
import ml_collections
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from training import placement, sharding


def create(**sizes):
  return sharding.create_mesh(ml_collections.ConfigDict(sizes))


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, "float32")


def place(leaf, mesh, rules=(), family_rules=()):
  places = placement.placements({"kernel": leaf}, mesh, rules, family_rules)
  return places["kernel"]


def test_fsdp_splits_the_largest_axis_that_divides():
  tree = {
    "kernel": shape(256, 512),
    "odd": shape(1023, 130),
    "prime": shape(127, 131),
    "small": shape(16),
  }
  of_four = placement.placements(tree, create(fsdp=4), (), ())
  assert {name: place.spec for name, place in of_four.items()} == {
    "kernel": PartitionSpec(None, "fsdp"),
    "odd": PartitionSpec(),
    "prime": PartitionSpec(),
    "small": PartitionSpec(),
  }
  assert of_four["prime"].missed == of_four["odd"].missed == ("fsdp",)
  assert of_four["small"].missed == ()
  of_two = placement.placements(tree, create(data=2, fsdp=2), (), ())
  assert of_two["odd"].spec == PartitionSpec(None, "fsdp")


@pytest.mark.parametrize(
  ("sizes", "axes", "expected"),
  [
    # The largest that is free.
    ((64, 256), (None, "model"), ("fsdp", "model")),
    ((64, 128, 256), (None, None, "model"), (None, "fsdp", "model")),
    # None is, so two share one.
    ((63, 512), (None, "model"), (None, ("model", "fsdp"))),
    ((512, 64), ("model", "whole"), (("model", "fsdp"),)),
    # The rule has it already, or wants what is free whole.
    ((256, 64), (("fsdp", "model"), None), (("fsdp", "model"),)),
    ((256, 64), ("model", "fsdp"), ("model", "fsdp")),
    ((256, 64), ("whole", "whole"), ()),
    # Too small to be worth it.
    ((16, 64), (None, "model"), (None, "model")),
  ],
)
def test_a_rule_and_fsdp_compose(sizes, axes, expected):
  mesh = create(fsdp=2, model=2)
  found = place(shape(*sizes), mesh, [("kernel", axes)])
  assert found == placement.Placement(PartitionSpec(*expected))
  there = NamedSharding(mesh, found.spec)
  array = jax.device_put(np.zeros(sizes, np.float32), there)
  assert array.sharding.spec == found.spec


def test_rules_apply_to_parameters_and_what_repeats_their_paths():
  leaf = {"ffn": {"expand": {"kernel": shape(64, 256)}}}
  tree = {"params": leaf, "opt_state": ({"mu": leaf},), "ema": leaf}
  found = placement.state_shardings(
    tree, create(fsdp=2, model=2), [("expand/kernel", (None, "model"))]
  )
  specs = [sharding.spec for sharding in jax.tree.leaves(found)]
  assert specs == [PartitionSpec("fsdp", "model")] * 3
  assert jax.tree.structure(found) == jax.tree.structure(tree)


@pytest.mark.parametrize(
  ("rules", "message"),
  [
    ([("kernal", (None, "model"))], "'kernal', which matches no .*are kernel"),
    ([("(", (None, "model"))], "not a regular expression"),
    ([("kernel",)], "not a pair"),
  ],
)
def test_a_rule_that_takes_nothing_is_an_error(rules, message):
  with pytest.raises(ValueError, match=f"sharding_rules.*{message}"):
    place(shape(64, 256), create(data=2, model=2), rules)


@pytest.mark.parametrize(
  "axes",
  [
    ("model",),
    (None, "tensor"),
    ("model", None),
    (None, ("data", "data")),
    ("whole", ("data", "tensor")),
  ],
)
def test_a_rule_that_does_not_fit_is_an_error(axes):
  with pytest.raises(
    ValueError, match=r"sharding_rules: 'kernel'.*\(63, 256\)"
  ):
    place(shape(63, 256), create(data=2, model=2), [("kernel", axes)])


def test_rules_of_a_family_give_way():
  mesh = create(data=2, model=2)
  family = [("head", ("model",)), ("kernel", ("model", None))]
  assert place(shape(64, 8), mesh, (), family).spec == PartitionSpec("model")
  missed = placement.Placement(PartitionSpec(), ("model",))
  # A size that does not divide, and axes of another number.
  assert place(shape(63, 8), mesh, (), family) == missed
  assert place(shape(64, 8, 2), mesh, (), family) == missed
  rules = [("kernel", (None, "model"))]
  found = place(shape(64, 8), mesh, rules, family)
  assert found.spec == PartitionSpec(None, "model")
  # Nothing is missed of what the mesh does not split.
  assert place(shape(63, 8), create(data=4), (), family).missed == ()


def test_what_is_said():
  mesh = create(fsdp=2, model=2)
  names = [f"k{i}" for i in range(5)]
  tree = {"wide": shape(64, 256), "scale": shape(8)}
  tree |= dict.fromkeys(names, shape(63, 2))
  places = placement.placements(
    tree, mesh, (), [("wide", (None, "model")), ("k.", ("model", None))]
  )
  split, missed = placement.describe(tree, mesh, places)
  assert split == (
    "parameters: 16,384 over fsdp and model (1 arrays), 638 on every device "
    "(6 arrays)"
  )
  assert missed == (
    "could not be split: k0 (63, 2) over model=2; k1 (63, 2) over model=2; "
    "k2 (63, 2) over model=2 and 2 more"
  )
  del tree["k0"], tree["k1"], tree["k2"], tree["k3"], tree["k4"]
  assert len(placement.describe(tree, mesh, places)) == 1


def test_bytes_of_one_device():
  mesh = create(fsdp=2, model=2)
  spread = NamedSharding(mesh, PartitionSpec("fsdp", "model"))
  whole = NamedSharding(mesh, PartitionSpec())
  tree = {
    "a": jax.ShapeDtypeStruct((4, 6), "bfloat16", sharding=spread),
    "b": jax.ShapeDtypeStruct((5,), "float32", sharding=whole),
    "key": jax.eval_shape(lambda: jax.random.key(0)).update(sharding=whole),
  }
  assert placement.bytes_per_device(tree) == 12 + 20 + 8
