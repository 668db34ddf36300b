"""``--input NAME=SHAPE``: what it can say, and how it fits what a file says."""

from __future__ import annotations

import pytest

from aid_edge.errors import SourceError, UsageError
from aid_edge.model import CardInput
from aid_edge.sources.inputs import fitted, merged, parse_input
from device_agent.contract.tensors import TensorInfo


@pytest.mark.parametrize(
    ("text", "name", "shape", "datatype"),
    [
        ("x=1x3x48x320", "x", (1, 3, 48, 320), None),
        ("x=?,3,48,any", "x", (-1, 3, 48, -1), None),
        ("ids=[-1, 128]:int64", "ids", (-1, 128), "INT64"),
        ("input.1=2x1x128", "input.1", (2, 1, 128), None),
        ("a=b:0=4", "a=b:0", (4,), None),
        ("sr=:INT64", "sr", (), "INT64"),
    ],
)
def test_what_can_be_said(
    text: str, name: str, shape: tuple[int, ...], datatype: str | None
) -> None:
    found = parse_input(text)
    assert (found.name, found.shape, found.datatype) == (name, shape, datatype)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1x3x8x8", "no name"),
        ("=1x3", "no name"),
        ("x=1xbig", "'big' is no size"),
        ("x=1x0", "'0' is no size"),
        ("x=1x-2", "'-2' is no size"),
        ("x=1x99999999999", "is no size"),
        ("x=1x3:FLOAT", "'FLOAT' is no element type"),
        ("x=1x1x1x1x1x1x1x1x1", "rank 9"),
        ("x" * 200 + "=1", "length <= 128"),
    ],
)
def test_what_cannot(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_input(text)
    assert "--input" in str(caught.value)


def test_the_user_overrules_the_card_by_name() -> None:
    card = (
        CardInput(name="x", datatype="INT64", shape=(-1, 8)),
        CardInput(name="y", shape=(-1, 2)),
    )
    found = merged(card, (parse_input("x=1x4"), parse_input("z=3")))
    assert [(i.name, i.datatype, i.shape) for i in found] == [
        ("x", "INT64", (1, 4)), ("y", None, (-1, 2)), ("z", None, (3,)),
    ]  # fmt: skip


def test_declarations_fit_by_name_or_rename_by_position() -> None:
    found = [TensorInfo("a", "FP32", (-1, 3)), TensorInfo("b", "INT64", (-1, 7))]
    by_name = fitted([parse_input("b=2x7")], found, "m")
    assert by_name == (found[0], TensorInfo("b", "INT64", (2, 7)))
    renamed = fitted([parse_input("image=?x3"), parse_input("ids=1x7")], found, "m")
    assert [i.name for i in renamed] == ["image", "ids"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c=1x3", "m: has no input 'c'"),
        ("a=1x3x1", "rank 2 .*declared"),
        ("a=1x4", "fixed size 3 in axis 1, declared 4"),
        ("a=1x?", "fixed size 3 in axis 1, declared any"),
        ("a=1x3:INT8", "declared INT8, the file has FP32"),
    ],
)
def test_declarations_that_do_not_fit(text: str, message: str) -> None:
    found = [TensorInfo("a", "FP32", (-1, 3)), TensorInfo("b", "INT64", (-1, 7))]
    with pytest.raises(SourceError, match=message):
        fitted([parse_input(text)], found, "m")
