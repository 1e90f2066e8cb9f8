"""Elements of tensors, in JSON and as binary data."""

import struct

import numpy as np
import pytest

from serving.errors import BadBody
from serving.tensors import NUMBERS, BinaryData, Elements, SentTensor, Tensor, read_elements


def as_json(datatype: str, data: list[object], shape: list[int] | None = None) -> Elements:
    tensor = SentTensor(name="x", datatype=datatype, shape=shape or [len(data)], data=data)
    return read_elements(tensor, BinaryData(b""))


def as_binary(datatype: str, content: bytes, count: int) -> Elements:
    tensor = SentTensor(
        name="x", datatype=datatype, shape=[count], parameters={"binary_data_size": len(content)}
    )
    return read_elements(tensor, BinaryData(content))


def texts(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("INT64", [3, None, -(2**63)]),
        ("UINT8", [0, 255, None]),
        ("BOOL", [True, False, None]),
        ("FP32", [0.1, 3, None]),
        ("BYTES", ["", "ü", None]),
    ],
)
def test_json_stays_as_it_is_written(datatype: str, data: list[object]) -> None:
    found = as_json(datatype, data)
    assert found.values == data and not found.faults
    assert list(map(type, found.values)) == list(map(type, data))


@pytest.mark.parametrize(
    ("datatype", "data", "values", "faulty"),
    [
        ("INT64", [1, 1.5, 2.0, True, "1", [1]], [1, None, 2, None, None, None], [1, 3, 4, 5]),
        ("INT64", [float("nan"), float("inf"), 2**63], [None] * 3, [0, 1, 2]),
        ("UINT8", [256, -1, 7], [None, None, 7], [0, 1]),
        ("BOOL", [1, 0, 2, "true", True], [True, False, None, None, True], [2, 3]),
        ("FP64", [1, "1", True, 2.5], [1, None, None, 2.5], [1, 2]),
        ("BYTES", ["a", 1, {}], ["a", None, None], [1, 2]),
    ],
)
def test_what_is_not_of_the_datatype_is_a_fault(
    datatype: str, data: list[object], values: list[object], faulty: list[int]
) -> None:
    found = as_json(datatype, data)
    assert found.values == values and sorted(found.faults) == faulty
    assert all(why.endswith(f"is no {datatype}") for why in found.faults.values())


def test_nested_data_is_that_of_its_shape() -> None:
    assert as_json("INT64", [[1], [2], [3]], [3, 1]).values == [1, 2, 3]
    assert as_json("INT64", [[1, 2], [3, 4]], [2, 2]).values == [1, 2, 3, 4]
    assert as_json("INT64", [1, 2, 3, 4], [2, 2]).values == [1, 2, 3, 4]


@pytest.mark.parametrize("datatype", NUMBERS)
def test_binary_numbers(datatype: str) -> None:
    sent = np.array([0, 1, 1], NUMBERS[datatype])
    found = as_binary(datatype, sent.tobytes(), 3)
    assert found.values == sent.tolist() and not found.faults


def test_binary_floats_are_what_their_bytes_say() -> None:
    assert as_binary("FP32", struct.pack("<f", 0.1), 1).values == [0.10000000149011612]


def test_a_truth_value_is_one_byte_of_two() -> None:
    assert as_binary("BOOL", b"\x00\x01\x02", 3).faults == {2: "2 is no BOOL"}


def test_binary_texts() -> None:
    found = as_binary("BYTES", texts(b"", "ü".encode(), b"\xff"), 3)
    assert found.values == ["", "ü", None] and list(found.faults) == [2]


@pytest.mark.parametrize(
    ("content", "count", "reason"),
    [
        (texts(b"ab")[:-1], 1, "ends inside a text"),
        (b"\x01\x00", 1, "ends inside a text"),
        (b"\xff\xff\xff\xff", 1, "ends inside a text"),
        (texts(b"a"), 2, r"the shape \[2\], but 1 elements"),
    ],
)
def test_binary_texts_that_do_not_fit(content: bytes, count: int, reason: str) -> None:
    with pytest.raises(BadBody, match=reason):
        as_binary("BYTES", content, count)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (SentTensor(name="x", datatype="FP64", shape=[2], data=[1]), "but 1 elements"),
        (SentTensor(name="x", datatype="FP8", shape=[1], data=[1]), "none of BOOL, UINT8"),
        (SentTensor(name="x", datatype="FP64", shape=[1]), "neither data nor"),
        (
            SentTensor(
                name="x", datatype="BOOL", shape=[1], data=[1], parameters={"binary_data_size": 1}
            ),
            "both data and",
        ),
        (
            SentTensor(name="x", datatype="FP64", shape=[1], parameters={"binary_data_size": 4}),
            "but 4 bytes, not 8",
        ),
        (
            SentTensor(name="x", datatype="FP64", shape=[1], parameters={"binary_data_size": 9}),
            "9 bytes of binary data, of which 8 are left",
        ),
        (
            SentTensor(name="x", datatype="FP64", shape=[1], parameters={"binary_data_size": -1}),
            "-1 bytes",
        ),
        (
            SentTensor(name="x", datatype="FP64", shape=[1], parameters={"binary_data_size": "8"}),
            "no integer",
        ),
        (
            SentTensor(
                name="x", datatype="FP64", shape=[1], parameters={"shared_memory_region": "r"}
            ),
            "shared memory",
        ),
        (
            SentTensor(
                name="x", datatype="FP64", shape=[2**60], parameters={"binary_data_size": 8}
            ),
            "but 8 bytes",
        ),
    ],
)
def test_tensors_of_no_use(tensor: SentTensor, reason: str) -> None:
    with pytest.raises(BadBody, match=reason):
        read_elements(tensor, BinaryData(b"12345678"))


def test_binary_data_that_belongs_to_no_input() -> None:
    binary = BinaryData(b"123")
    assert binary.take(2) == b"12"
    with pytest.raises(BadBody, match="the last 1 bytes"):
        binary.end()


def test_outputs_as_binary_data() -> None:
    assert Tensor("x", "BYTES", [2], ["a", ""]).to_binary() == texts(b"a", b"")
    assert Tensor("x", "INT64", [1], [-1]).to_binary() == b"\xff" * 8
    assert Tensor("x", "FP64", [1], [0.1]).to_binary() == struct.pack("<d", 0.1)
