import jax
import ml_collections
import pytest
from jax.sharding import PartitionSpec

from training import sharding


def create(data=-1, fsdp=1, model=1):
  return of_sizes(data=data, fsdp=fsdp, model=model)


def of_sizes(**sizes):
  return sharding.create_mesh(ml_collections.ConfigDict(sizes))


@pytest.mark.parametrize(
  ("sizes", "expected"),
  [((-1, 1, 1), (4, 1, 1)), ((2, -1, 1), (2, 2, 1)), ((1, 2, 2), (1, 2, 2))],
)
def test_sizes(sizes, expected):
  mesh = create(*sizes)
  assert mesh.axis_names == sharding.AXES
  assert tuple(mesh.shape.values()) == (1, *expected[:2], 1, expected[2])


def test_a_batch_is_split_over_all_axes_but_two():
  assert sharding.batch_parts(of_sizes(slice=2, data=2)) == 4
  assert sharding.batch_parts(of_sizes(sequence=2, fsdp=2)) == 2
  assert sharding.batch_parts(of_sizes(sequence=2, model=2)) == 1


@pytest.mark.parametrize(
  "sizes",
  [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (8, 1, 1), (0, 1, 4), (-1, 0, 1)],
)
def test_sizes_that_do_not_fit_are_an_error(sizes):
  with pytest.raises(ValueError, match=r"mesh=.*must multiply to 4"):
    create(*sizes)


def test_batch_that_cannot_be_split_is_an_error():
  with pytest.raises(ValueError, match=r"batch_size=6 .* such as 4 or 8"):
    sharding.check_batch_size(6, create(), "batch_size")
  sharding.check_batch_size(8, create(), "batch_size")


def specs(tree, mesh, rules=()):
  shardings = sharding.state_shardings(tree, mesh, rules)
  return jax.tree.map(lambda s: s.spec, shardings)


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, "float32")


def test_fsdp_splits_the_largest_axis_that_divides():
  tree = {
    "kernel": shape(256, 512),
    "odd": shape(1023, 130),
    "prime": shape(127, 131),
    "small": shape(16),
  }
  assert specs(tree, create(1, 4, 1)) == {
    "kernel": PartitionSpec(None, "fsdp"),
    "odd": PartitionSpec(),
    "prime": PartitionSpec(),
    "small": PartitionSpec(),
  }
  assert specs(tree, create(2, 2, 1))["odd"] == PartitionSpec(None, "fsdp")


def test_rules_apply_to_parameters_and_what_repeats_their_paths():
  leaf = {"ffn": {"expand": {"kernel": shape(64, 256)}}}
  tree = {"params": leaf, "opt_state": ({"mu": leaf},)}
  found = specs(tree, create(2, 1, 2), [("expand/kernel", (None, "model"))])
  for branch in (found["params"], found["opt_state"][0]["mu"]):
    assert branch["ffn"]["expand"]["kernel"] == PartitionSpec(None, "model")


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
    specs({"kernel": shape(64, 256)}, create(2, 1, 2), rules)


@pytest.mark.parametrize(
  "axes", [("model",), (None, "tensor"), ("model", None)]
)
def test_a_rule_that_does_not_fit_is_an_error(axes):
  with pytest.raises(
    ValueError, match=r"sharding_rules: 'kernel'.*\(63, 256\)"
  ):
    specs({"kernel": shape(63, 256)}, create(2, 1, 2), [("kernel", axes)])
