"""What is wrong with a table that a person wrote: every key, and what is allowed there."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

DecHook = Callable[[type, Any], Any]

_AT = re.compile(r"^(?P<problem>.*?)(?: - at `(?:key` in `)?\$(?P<key>[^`]*)`)?$", re.DOTALL)


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong.

    Attributes:
        key: Dotted path of the key, such as ``runtimes[0].version``.
        problem: What is wrong, and what is allowed.
    """

    key: str
    problem: str


def problems_of(
    table: dict[str, Any], kind: type[msgspec.Struct], dec_hook: DecHook | None = None
) -> list[Problem]:
    """Return all problems of ``table`` as a ``kind``; empty means that it converts."""
    return list(_in_table(table, kind, "", dec_hook))


def _in_table(
    table: object, kind: type[msgspec.Struct], key: str, dec_hook: DecHook | None
) -> Iterator[Problem]:
    if not isinstance(table, dict):
        yield Problem(key, f"expected a table, got {type(table).__name__}")
        return
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    hints = get_type_hints(kind, include_extras=True)
    for name in table:
        if name not in fields:
            close = difflib.get_close_matches(str(name), fields, n=1)
            guess = f"did you mean {close[0]!r}? " if close else ""
            yield Problem(_join(key, name), f"unknown key; {guess}allowed: {', '.join(fields)}")
    for name, field in fields.items():
        if name in table:
            yield from _in_value(table[name], hints[field.name], _join(key, name), dec_hook)
        elif field.required:
            yield Problem(_join(key, name), f"missing{_allowed(hints[field.name])}")


def _in_value(
    value: object, annotation: Any, key: str, dec_hook: DecHook | None
) -> Iterator[Problem]:
    struct = _struct_of(annotation)
    if struct is not None:
        yield from _in_table(value, struct, key, dec_hook)
        return
    item = _item_of(annotation)
    if item is not None and isinstance(value, list) and value:
        for i, entry in enumerate(value):
            yield from _in_table(entry, item, f"{key}[{i}]", dec_hook)
        return
    try:
        msgspec.convert(value, annotation, dec_hook=dec_hook)
    except msgspec.ValidationError as e:
        match = _AT.match(str(e))
        where = (match["key"] or "") if match else ""
        problem = match["problem"] if match else str(e)
        yield Problem(key + where, f"{problem}{_allowed(annotation)}")


def _join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _parts(annotation: Any) -> list[Any]:
    """Return the annotation's alternatives, without ``Annotated`` and None."""
    if get_origin(annotation) is Annotated:
        return _parts(get_args(annotation)[0])
    if get_origin(annotation) in {Union, types.UnionType}:
        return [p for a in get_args(annotation) if a is not type(None) for p in _parts(a)]
    return [annotation]


def _struct_of(annotation: Any) -> type[msgspec.Struct] | None:
    parts = _parts(annotation)
    if len(parts) == 1 and isinstance(parts[0], type) and issubclass(parts[0], msgspec.Struct):
        return parts[0]
    return None


def _item_of(annotation: Any) -> type[msgspec.Struct] | None:
    """Return T of ``tuple[T, ...]`` where T is a table."""
    (part, *others) = _parts(annotation)
    if not others and get_origin(part) is tuple:
        return _struct_of(get_args(part)[0])
    return None


def _allowed(annotation: Any) -> str:
    values: list[object] = []
    for part in _parts(annotation):
        inner = get_args(part)[0] if get_origin(part) is tuple else part
        if get_origin(inner) is Literal:
            values += get_args(inner)
    return f"; allowed: {', '.join(map(str, values))}" if values else ""
