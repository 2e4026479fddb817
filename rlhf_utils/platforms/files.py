"""Reading and writing files so that each is there whole or not at all."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from rlhf_utils.platforms.errors import InputError

# What a checkpoint of transformers' trainer is given once it is whole.
COMPLETE = "COMPLETE"
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
_ELSEWHERE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
# How safetensors, and torch.save where the write or where closing the file fails, tell of a full disk.
_SIGNS = (os.strerror(errno.ENOSPC), "PytorchStreamWriter failed writing", "iostream error", "unexpected pos")


@contextmanager
def disk_errors(where: Path, remedy: str = "choose another --output-dir") -> Iterator[None]:
    """Turn a full disk, a read-only folder or missing rights into one clear line (InputError)."""
    try:
        yield
    except Exception as error:
        code = getattr(error, "errno", None)
        # Libraries tell of a full disk with error classes of their own.
        if not isinstance(error, OSError) and any(sign in str(error) for sign in _SIGNS):
            code = errno.ENOSPC
        if code in _FULL:
            raise InputError(f"cannot write {where}: {_FULL[code]}; free some space") from error
        if code in _ELSEWHERE:
            raise InputError(f"cannot write {where}: {os.strerror(code).lower()}; {remedy}") from error
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` in one step: other processes and crashes see the old or the new file."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one step."""
    write_bytes(path, text.encode("utf-8"))


def append_text(path: Path, text: str) -> None:
    """Add `text` to the end of `path`; where the disk is full the file stays as it was."""
    with disk_errors(path), open(path, "ab", buffering=0) as file:
        size, content = os.fstat(file.fileno()).st_size, text.encode("utf-8")
        try:
            while content:  # a nearly full disk takes a part of it without an error
                content = content[file.write(content) :]
        except OSError:
            file.truncate(size)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON in one step; NaN raises ValueError, because no other JSON reader takes it."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`; raises InputError where it is broken."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text in UTF-8; restore or delete it") from None
    return parse_json(text, path)


def parse_json(text: str, source: str | Path, first_line: int = 1) -> Any:
    """The JSON value in `text`, which begins in this line of `source`; raises InputError where it is broken."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, thousands of brackets
        line, reason = first_line + getattr(error, "lineno", 1) - 1, getattr(error, "msg", type(error).__name__)
        raise InputError(f"{source}:{line}: broken JSON ({reason}); mend or remove it, and save it as UTF-8") from error


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Write one JSON object per line, in one step."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict]:
    """The JSON objects in `path`, one per line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A second name for the file `source`, which is never written to again; a copy where the disk knows no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place, complete on disk, when the block ends without error."""
    with disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        temporary, replaced = (folder.with_name(f".{folder.name}.{os.getpid()}.{n}") for n in ("partial", "replaced"))
        temporary.mkdir()
        try:
            yield temporary
            for path in filter(Path.is_file, temporary.rglob("*")):
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            if folder.exists():
                os.replace(folder, replaced)
            os.replace(temporary, folder)
        finally:
            _remove_leftovers(folder)


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed processes, or an earlier one of this very number, left of their attempts at `folder`; one that
    was killed just before its last step has moved the folder aside, and it is put back."""
    for path in folder.parent.glob(f".{folder.name}.*.*"):
        found = re.fullmatch(r"\.(\d+)\.(partial|replaced)", path.name.removeprefix(f".{folder.name}"))
        if found is None or (int(found[1]) != os.getpid() and psutil.pid_exists(int(found[1]))):
            continue
        if found[2] == "replaced" and not folder.exists():
            os.replace(path, folder)
        else:
            shutil.rmtree(path, ignore_errors=True)


def content_hash(path: Path) -> str:
    """SHA-256 (first 16 hex digits) of a file, or of all files in a folder with their names."""
    digest = hashlib.sha256()
    for file in sorted(filter(Path.is_file, path.rglob("*"))) if path.is_dir() else [path]:
        with open(file, "rb") as stream:
            digest.update(file.relative_to(path).as_posix().encode() if path.is_dir() else b"")
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


def newest_complete(work: Path) -> str | None:
    """The newest whole checkpoint of transformers' trainer in `work`; those cut off while they were written are
    removed. The trainer itself would raise on one, go on without its optimizer state, or count it among those kept."""
    for folder in (found := sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))):
        if not (folder / COMPLETE).exists():
            shutil.rmtree(folder)
    return next((str(folder) for folder in reversed(found) if folder.is_dir()), None)
