"""Everything the notebooks need where there is no internet, in one folder:

    python tools/wheelhouse.py FOLDER [--python 3.12]

FOLDER holds wheels of what Colab and Kaggle lack (Linux, x86-64, the Python named) and this repository. Attached as a
Kaggle dataset it is found by the first cell of the notebooks; elsewhere `RLHF_WHEELHOUSE=FOLDER` names it.
"""

import argparse
import re
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rlhf_utils import __version__  # noqa: E402
from rlhf_utils.platforms import bootstrap  # noqa: E402
from rlhf_utils.platforms.bootstrap import FOLDER, MARKER, NEVER_TOUCHED, ROOT, pip  # noqa: E402
from rlhf_utils.platforms.errors import InputError  # noqa: E402
from rlhf_utils.platforms.files import whole_folder, write_json  # noqa: E402

# What wheels are in fact built for, up to the glibc (2.35) of Ubuntu 22.04, which both services run on; every further
# name costs pip seconds.
GLIBC = (35, 34, 31, 28, 27, 26, 24, 17, 12, 5)
PLATFORMS = [*(f"manylinux_2_{minor}_x86_64" for minor in GLIBC), "manylinux2014_x86_64"]
# Published as source only; it is plain Python, so that its wheel can be built anywhere.
SOURCE_ONLY = ("rouge-score",)
# What the repository is to a notebook service; no outputs, tests or history.
COPIED = ("rlhf_utils", "0[0-9]_*", "requirements.txt", "constraints.txt", "pyproject.toml", "README.md", "LICENSE")


def make(folder: Path, python: str) -> int:
    """Make the wheelhouse for this Python version (`3.12`) in `folder`; returns the number of wheels.

    Raises InputError where `folder` holds something else, or where pip cannot get what is needed.
    """
    folder = folder.expanduser().resolve()
    if not re.fullmatch(r"3\.\d+", python):
        raise InputError(f"--python {python!r} is not a version such as 3.12")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / MARKER).is_file()):
        raise InputError(f"{folder} is there and is no wheelhouse; name a new folder")
    with whole_folder(folder) as target, tempfile.TemporaryDirectory() as scratch:
        _download(target, python, Path(scratch))
        for name in NEVER_TOUCHED:
            for wheel in target.glob(f"{name}-*.whl"):
                wheel.unlink()
        copy_repository(target / FOLDER)
        wheels = len(list(target.glob("*.whl")))
        write_json(target / MARKER, {"python": python, "rlhf_utils": __version__, "wheels": wheels})
    return wheels


def _download(folder: Path, python: str, scratch: Path) -> None:
    """Put the wheels into `folder`, resolved by pip for another machine beside the oldest torch, transformers, numpy
    and pandas that are allowed, so that they fit whichever of them the service ships."""
    lines, advice = bootstrap.requirements(), "a wheelhouse is made where there is internet"
    constraints = scratch / "constraints.txt"
    with constraints.open("w") as file:
        for line in [line for line in lines if line.name in NEVER_TOUCHED]:
            name = line.name
            version = next(bound.version for bound in line.specifier if bound.operator == ">=")
            # transformers says itself what it goes with; torch would bring gigabytes of CUDA along.
            if name != "transformers":
                version = f"{version}+placeholder"
                _write_placeholder(scratch, name, version)
            file.write(f"{name}=={version}\n")
    sources = [str(line) for line in lines if line.name in SOURCE_ONLY]
    pip("wheel", "--no-deps", "--wheel-dir", str(folder), *sources, advice=advice)
    pip(
        *("download", "--dest", str(folder), "--only-binary=:all:", "--python-version", python),
        *(part for platform in PLATFORMS for part in ("--platform", platform)),
        *("--find-links", str(scratch), "--find-links", str(folder), "--constraint", str(constraints)),
        *map(bootstrap.as_installed, lines),
        advice=advice,
    )


def _write_placeholder(folder: Path, name: str, version: str) -> None:
    """A wheel without content and without requirements."""
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")


def copy_repository(folder: Path) -> None:
    """The part of this repository that the notebooks need."""
    folder.mkdir()
    for source in (source for pattern in COPIED for source in ROOT.glob(pattern)):
        if source.is_dir():
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copyfile(source, folder / source.name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default=bootstrap.PYTHON, help="e.g. 3.12; on Kaggle, `!python -V` tells")
    asked = parser.parse_args()
    try:
        count = make(asked.folder, asked.python)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    size = sum(path.stat().st_size for path in asked.folder.expanduser().rglob("*") if path.is_file())
    print(f"{asked.folder}: {count} wheels for Python {asked.python} and the repository, {size / 1e6:.0f} MB")
