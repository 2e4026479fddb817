"""Files and folders are there whole or not at all, and a place that cannot be written is one clear line."""

import errno
import math
import os
import subprocess
import sys

import pytest

from rlhf_utils.platforms import files
from rlhf_utils.platforms.errors import InputError


def test_what_is_no_json_is_refused_and_the_old_file_kept(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ValueError):
        files.write_json(path, {"x": math.nan})
    with pytest.raises(ValueError):
        files.write_jsonl(path, [{"x": math.inf}])
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    monkeypatch.setattr(files.os, "fsync", lambda _: os.truncate(tmp_path / "nowhere", 0))
    with pytest.raises(FileNotFoundError):
        files.write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_whole_folder_replaces_everything(tmp_path, monkeypatch):
    """Also on Google Drive, which knows no links and puts no folder in the place of another."""
    real, folder = os.replace, tmp_path / "x" / "stage"

    def replace(source, target):
        if os.path.isdir(target):
            raise OSError(errno.ENOTEMPTY, "not on Drive")
        real(source, target)

    for name in ("replace", "rename", "link", "symlink"):
        monkeypatch.setattr(os, name, replace)
    for content in ("one", "two"):
        with files.whole_folder(folder) as temporary:
            (temporary / content).mkdir()
            (temporary / content / "file").write_text(content)
            assert temporary.parent == folder.parent, "a rename needs the same file system"
    assert [p.name for p in folder.iterdir()] == ["two"]
    assert [p.name for p in folder.parent.iterdir()] == ["stage"]


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_whole_folder_clears_away_what_killed_processes_left_and_puts_back_what_they_moved_aside(tmp_path):
    """Killed between its two renames: the old folder has gone, and the new one has not come."""
    dead, in_use = dead_process(), tmp_path / f".stage.{os.getppid()}.partial"
    in_use.mkdir()
    for name, text in (("replaced", "old"), ("partial", "new")):
        (tmp_path / f".stage.{dead}.{name}").mkdir()
        (tmp_path / f".stage.{dead}.{name}" / "file").write_text(text)
    with pytest.raises(ValueError, match="no"), files.whole_folder(tmp_path / "stage"):
        assert (tmp_path / "stage" / "file").read_text() == "old"
        raise ValueError("no")
    assert sorted(path.name for path in tmp_path.iterdir()) == [in_use.name, "stage"]


@pytest.mark.parametrize("step", range(3))
def test_whole_folder_interrupted_in_the_block_or_at_a_rename_leaves_the_old_content(tmp_path, monkeypatch, step):
    folder, real, done = tmp_path / "stage", os.replace, []

    def replace(source, target):
        done.append(source)
        if len(done) == step:
            raise KeyboardInterrupt
        real(source, target)

    folder.mkdir()
    (folder / "old").touch()
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt), files.whole_folder(folder) as temporary:
        (temporary / "new").touch()
        if step == 0:
            raise KeyboardInterrupt
    assert [path.name for path in folder.iterdir()] == ["old"] and list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    "code, words", [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only file system; choose")]
)
def test_places_that_cannot_be_written(tmp_path, code, words):
    with pytest.raises(InputError, match=f"^cannot write {tmp_path}/stage: .*{words}"):
        with files.whole_folder(tmp_path / "stage"):
            raise OSError(code, os.strerror(code))
    assert list(tmp_path.iterdir()) == []
