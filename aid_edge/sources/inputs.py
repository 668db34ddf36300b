"""What the user says about inputs: ``--input NAME=SHAPE``, and how it fits what a file says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import get_args

import msgspec

from aid_edge.errors import SourceError, UsageError
from aid_edge.model import CardInput
from device_agent.contract.tensors import MAX_RANK, Datatype, TensorInfo

_OPEN = frozenset({"?", "-1", "any", "n"})
_HINT = "Write NAME=SHAPE such as image=1x3x224x224, ids=?x128:INT64; ? is a size that may vary."
_MAX_SIZE = 2**31 - 1
_SIZE = re.compile(r"[0-9]{1,10}\Z")


def parse_input(text: str) -> CardInput:
    """Return the input that ``NAME=SHAPE`` or ``NAME=SHAPE:DATATYPE`` declares.

    Sizes stand between ``x`` or ``,``; ``?`` is one that may vary; an empty shape is a scalar.

    Raises:
        UsageError: It is not of this form.
    """
    # Names of tensors may hold "=" and ":", shapes do not.
    name, equals, rest = text.rpartition("=")
    shape_text, colon, datatype = rest.partition(":")
    if not equals or not name.strip():
        raise UsageError(f"--input {text!r}: no name", hint=_HINT)
    if colon and datatype.upper() not in get_args(Datatype):
        known = ", ".join(get_args(Datatype))
        raise UsageError(
            f"--input {text!r}: {datatype!r} is no element type", hint=f"Known: {known}."
        )
    parts = [part.strip() for part in re.split("[x,]", shape_text.strip("[] "))]
    parts = parts if parts != [""] else []
    shape = []
    for part in parts:
        if part.lower() in _OPEN:
            shape.append(-1)
        elif _SIZE.match(part) and 0 < int(part) <= _MAX_SIZE:
            shape.append(int(part))
        else:
            raise UsageError(f"--input {text!r}: {part!r} is no size", hint=_HINT)
    if len(shape) > MAX_RANK:
        raise UsageError(f"--input {text!r}: rank {len(shape)}; at most {MAX_RANK} is known")
    try:
        return msgspec.convert(
            {"name": name.strip(), "shape": shape, "datatype": datatype.upper() or None}, CardInput
        )
    except msgspec.ValidationError as e:
        raise UsageError(f"--input {text!r}: {e}", hint=_HINT) from e


def as_declared(inputs: Iterable[TensorInfo | CardInput]) -> tuple[CardInput, ...]:
    """Return inputs of either type as declarations."""
    return tuple(
        i if isinstance(i, CardInput)
        else CardInput(name=i.name, datatype=i.datatype, shape=tuple(i.shape))
        for i in inputs
    )  # fmt: skip


def merged(card: Sequence[CardInput], said: Sequence[CardInput]) -> tuple[CardInput, ...]:
    """Return what the card declares, overruled and completed by what the user said."""
    by_name = {i.name: i for i in said}
    known = {i.name for i in card}
    overruled = [
        msgspec.structs.replace(new, datatype=new.datatype or old.datatype)
        if (new := by_name.get(old.name)) is not None
        else old
        for old in card
    ]
    return (*overruled, *(i for i in said if i.name not in known))


def matched(
    declared: Sequence[CardInput], found: Sequence[TensorInfo], spec: str, *, renames: bool = True
) -> list[tuple[CardInput | None, TensorInfo]]:
    """Return for each input of a file what was declared about it, or None.

    Declarations are matched by name; where the names are others but as many, and ``renames`` is
    set, by position: then they rename.

    Raises:
        SourceError: A name is unknown, or a rank or element type is another one.
    """
    names = [i.name for i in found]
    unknown = [i.name for i in declared if i.name not in names]
    if not unknown:
        by_name = {i.name: i for i in declared}
        pairs = [(by_name.get(i.name), i) for i in found]
    elif renames and len(declared) == len(found):
        pairs = list(zip(declared, found, strict=True))
    else:
        raise SourceError(
            f"{spec}: has no input {unknown[0]!r}", hint=f"It has: {', '.join(names) or 'none'}."
        )
    for wanted, actual in pairs:
        if wanted is None:
            continue
        if len(wanted.shape) != len(actual.shape):
            raise SourceError(
                f"{spec}: input {wanted.name} has rank {len(actual.shape)} {list(actual.shape)}, "
                f"declared {list(wanted.shape)}"
            )
        if wanted.datatype not in {None, actual.datatype}:
            raise SourceError(
                f"{spec}: input {wanted.name} is declared {wanted.datatype}, "
                f"the file has {actual.datatype}"
            )
    return pairs


def fitted(
    declared: Sequence[CardInput], found: Sequence[TensorInfo], spec: str
) -> tuple[TensorInfo, ...]:
    """Return the inputs of a file with the names and sizes declared for those that may vary.

    Raises:
        SourceError: A name, rank, element type or fixed size is another one.
    """
    infos = []
    for wanted, actual in matched(declared, found, spec):
        if wanted is None:
            infos.append(actual)
            continue
        for axis, (size, fixed) in enumerate(zip(wanted.shape, actual.shape, strict=True)):
            if fixed not in {-1, size}:
                said = "any" if size == -1 else size
                raise SourceError(
                    f"{spec}: input {wanted.name} has a fixed size {fixed} in axis {axis}, "
                    f"declared {said}",
                    hint="Export the model anew with the sizes that you want.",
                )
        infos.append(TensorInfo(wanted.name, actual.datatype, wanted.shape))
    return tuple(infos)
