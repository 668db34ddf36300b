"""Writes that are whole or not there, over a kill: temporary, fsync, rename, fsync the folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from device_agent.errors import StoreError


def sync(path: Path) -> None:
    """Wait until the file or folder at ``path`` is on the disk.

    Raises:
        StoreError: The disk failed.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as e:
        raise StoreError(f"{path}: {e.strerror}") from e


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that there is either the old content or all of the new.

    Raises:
        StoreError: It cannot be written; the old content is as it was.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        temporary.replace(path)
    except OSError as e:
        raise StoreError(f"{path}: cannot be written: {e.strerror}") from e
    sync(path.parent)


def point(link: Path, target: str | None) -> None:
    """Make the symlink ``link`` point at ``target`` in one step; None takes it away.

    Raises:
        StoreError: It cannot be done; the link is as it was.
    """
    temporary = link.with_name(f".{link.name}.new")
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        if target is None:
            link.unlink(missing_ok=True)
        else:
            temporary.symlink_to(target)
            temporary.replace(link)
    except OSError as e:
        raise StoreError(f"{link}: cannot be changed: {e.strerror}") from e
    sync(link.parent)


def move_folder(source: Path, target: Path) -> None:
    """Move a folder with everything in it to ``target``, which must not be there, in one step.

    Raises:
        StoreError: It cannot be done.
    """
    try:
        for file in source.iterdir():
            sync(file)
        sync(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        source.rename(target)
    except OSError as e:
        raise StoreError(f"{target}: cannot be made: {e.strerror}") from e
    sync(target.parent)
    sync(source.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder; its name is gone first, so that no part of it can be taken for a whole.

    Raises:
        StoreError: It cannot be removed.
    """
    if not path.exists():
        return
    doomed = path.with_name(f".{path.name}.gone")
    try:
        if doomed.exists():
            shutil.rmtree(doomed)
        path.rename(doomed)
        shutil.rmtree(doomed)
    except OSError as e:
        raise StoreError(f"{path}: cannot be removed: {e.strerror}") from e
