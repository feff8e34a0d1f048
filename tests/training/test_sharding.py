import ml_collections
import pytest
from jax.experimental import topologies

from training import sharding


def create(data=-1, fsdp=1, model=1):
  return of_sizes(data=data, fsdp=fsdp, model=model)


def of_sizes(devices=None, **sizes):
  return sharding.create_mesh(ml_collections.ConfigDict(sizes), devices)


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


@pytest.mark.compile
def test_slices_are_not_mixed():
  devices = topologies.get_topology_desc(
    platform="tpu", topology_name="v5e:2x4", num_slices=2
  ).devices
  mesh = of_sizes(devices, slice=-1, data=2, model=4)
  assert tuple(mesh.shape.values()) == (2, 2, 1, 1, 4)
  for index, part in enumerate(mesh.devices):
    assert {device.slice_index for device in part.flat} == {index}
  with pytest.raises(ValueError, match=r"slice=1 .* set mesh.slice=2"):
    of_sizes(devices, data=-1)
  with pytest.raises(ValueError, match=r"slice=4 .* set mesh.slice=2"):
    of_sizes(devices, slice=4, data=-1)


def test_one_slice_rehearses_several():
  mesh = of_sizes(slice=2, data=2)
  assert [device.id for device in mesh.devices.flat] == [0, 1, 2, 3]
