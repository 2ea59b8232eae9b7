"""An expensive output is computed once, and only if it is read."""

import pytest
import torch

from nifi_ns.plugin.data.lazy_outputs import LazyOutputs


@pytest.fixture
def counted() -> tuple[LazyOutputs, list[int]]:
    calls: list[int] = []

    def expensive() -> torch.Tensor:
        calls.append(1)
        return torch.ones(2)

    return LazyOutputs(rgb=torch.zeros(2), rgb_restored=expensive), calls


def test_listing_the_keys_computes_nothing(counted: tuple[LazyOutputs, list[int]]) -> None:
    outputs, calls = counted
    assert "rgb_restored" in outputs
    assert list(outputs) == list(outputs.keys()) == ["rgb", "rgb_restored"]
    assert outputs["rgb"].sum() == 0
    assert not calls


def test_reading_a_key_twice_computes_it_once(counted: tuple[LazyOutputs, list[int]]) -> None:
    outputs, calls = counted
    assert outputs["rgb_restored"] is outputs["rgb_restored"]
    assert outputs.get("rgb_restored") is outputs["rgb_restored"]
    assert len(calls) == 1


@pytest.mark.parametrize("read", [lambda o: dict(o.items()), lambda o: dict(zip(o, o.values(), strict=True))])
def test_every_way_to_read_a_value_computes_it(read, counted: tuple[LazyOutputs, list[int]]) -> None:
    outputs, _ = counted
    assert all(isinstance(value, torch.Tensor) for value in read(outputs).values())


def test_copying_computes_nothing(counted: tuple[LazyOutputs, list[int]]) -> None:
    outputs, calls = counted
    copied = outputs.copy()
    assert not calls
    assert copied["rgb_restored"].sum() == 2


def test_an_absent_key_is_absent(counted: tuple[LazyOutputs, list[int]]) -> None:
    outputs, _ = counted
    assert outputs.get("depth", "none") == "none"
    with pytest.raises(KeyError):
        outputs["depth"]


def test_only_pictures_are_listed() -> None:
    outputs = LazyOutputs(rgb=torch.zeros(4, 6, 3), background=torch.zeros(3), gl_z_buf_depth=torch.zeros(2, 3, 1))
    assert outputs.keys() == ["rgb"]
    assert "background" in outputs and outputs["gl_z_buf_depth"].shape == (2, 3, 1)
