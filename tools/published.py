"""What is the same in every notebook of the repository, and the outputs of a run put into all of them.

    python tools/published.py                          the first cell and the badges, from pyproject.toml
    python tools/published.py outputs/instruct-tiny    the outputs of this run
    python tools/published.py --only-files RUN ...     no notebooks: what is worth keeping of these runs

Of a run only outputs are taken over. Each notebook keeps a hash of the code that made them, so that a test can tell
when code and outputs are no longer of the same run.
"""

import base64
import csv
import hashlib
import io
import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterable
from pathlib import Path
from zlib import crc32

import nbformat
from PIL import Image

from rlhf_utils import __version__
from rlhf_utils.evaluation.judging import KEY, PAIRS
from rlhf_utils.evaluation.seeds import clusters_of, read_samples
from rlhf_utils.platforms.bootstrap import FOLDER, written_address
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json, write_bytes, write_json, write_text
from rlhf_utils.platforms.names import EMBEDDED
from rlhf_utils.report.page import write_report
from rlhf_utils.series import ROOT, SERIES

LIMIT_BYTES = 400_000
# What of a run is worth keeping in the repository.
SMALL = ("run.json", "report.html", "plots/*.png", "evaluation/*.*", "checkpoints/*/metrics.jsonl")
# Of a run on somebody else's texts: figures of every prompt, texts of so many (of all where prompts are a few words),
# their prompts cut to so many characters, and no references.
QUOTED_CHARACTERS, QUOTED_ROWS, FEW_WORDS = 200, 50, 80


# Without the package, which it has to find first: a folder above this one, an attached Kaggle dataset, a clone.
FIRST_CELL = """\
#@title Setup {{ display-mode: "form" }}
import itertools, os, pathlib, subprocess, sys
home, attached = pathlib.Path("{folder}").resolve(), pathlib.Path("/kaggle/input").glob("**/rlhf_utils/..")
root = next((p for p in itertools.chain(home.parents, [home], attached) if (p / "rlhf_utils").is_dir()), home)
clone = ["git", "clone", "-q", "--depth=1", *os.environ.get("RLHF_REPO_URL", "--branch v{version} {address}").split()]
if not root.exists() and subprocess.run([*clone, str(root)], stderr=subprocess.DEVNULL).returncode:
    sys.exit(f"{{clone[-1]}} cannot be cloned: not published yet, or no internet; set RLHF_REPO_URL or attach a copy")
sys.path.insert(0, str(root.resolve())); from rlhf_utils.platforms.bootstrap import ready; ready()"""
# Collapsed in JupyterLab and in Colab; left out where several processes run the notebook's cells.
COLLAPSED = {"jupyter": {"source_hidden": True}, "cellView": "form", "tags": ["setup"]}
BADGES = (
    ("Open in Colab", "https://colab.research.google.com/assets/colab-badge.svg",
     "https://colab.research.google.com/github/{name}/blob/main/{path}"),
    ("Open in Kaggle", "https://kaggle.com/static/images/open-in-kaggle.svg",
     "https://kaggle.com/kernels/welcome?src=https://github.com/{name}/blob/main/{path}"),
)  # fmt: skip


def first_cell() -> str:
    """The first code cell of every notebook, with the repository's address and the tag of this version."""
    return FIRST_CELL.format(folder=FOLDER, address=written_address(), version=__version__)


def badges(path: str) -> str:
    """The line of badges of the notebook at `path`, which open it in Colab and in Kaggle."""
    name = written_address().removeprefix("https://github.com/").removesuffix(".git").strip("/")
    return " ".join(f"[![{text}]({picture})]({link.format(name=name, path=path)})" for text, picture, link in BADGES)


def stamp() -> list[Path]:
    """Write first cell and badges into every notebook, and the badges of the first one into the README; returns the
    files that changed."""
    found = {}
    for entry in SERIES:
        notebook = nbformat.read(ROOT / entry.path, as_version=4)
        opening, setup = notebook.cells[0], _code(notebook.cells)[0]
        title, _, rest = re.sub(r"\[!\[.*\n+", "", opening.source).partition("\n")
        opening.source = f"{title}\n\n{badges(entry.path)}\n\n{rest.lstrip()}"
        setup.source = first_cell()
        setup.metadata |= COLLAPSED
        found[ROOT / entry.path] = nbformat.writes(notebook) + "\n"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found[ROOT / "README.md"] = re.sub(r"(?m)^\[!\[.*$", badges(SERIES[0].path), readme)
    changed = [path for path, text in found.items() if path.read_text(encoding="utf-8") != text]
    for path in changed:
        write_text(path, found[path])
    return changed


def code_hash(notebook: nbformat.NotebookNode) -> str:
    """Hash of the code cells (first 16 hex digits of SHA-256)."""
    return hashlib.sha256("\0".join(cell.source for cell in _code(notebook.cells)).encode()).hexdigest()[:16]


def _code(cells: Iterable[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The code cells, without the one that papermill adds with the parameters it was called with."""
    return [c for c in cells if c.cell_type == "code" and "injected-parameters" not in c.metadata.get("tags", [])]


def publish(run: Path, *others: Path) -> list[Path]:
    """Write the outputs of `run`'s executed notebooks into the repository's, those that it has no use for from `others`,
    and copy its small files to `docs/example_run/`; returns what was written.

    Raises InputError where one was not executed, was executed with other code or parameters, or became too large, and
    where anything would name a path of this machine; then nothing is written.
    """
    ready = {}
    for entry in SERIES:
        name, path = f"{entry.name}.ipynb", ROOT / entry.path
        source = next((one for one in (run, *others) if (one / "notebooks" / name).is_file()), None)
        if source is None:
            raise InputError(f"{run / 'notebooks' / name} is missing; run the whole series first (`make notebooks`)")
        executed_path, record = source / "notebooks" / name, read_json(source / "run.json")
        executed, notebook = nbformat.read(executed_path, as_version=4), nbformat.read(path, as_version=4)
        done_cells, code = _code(executed.cells), _code(notebook.cells)
        if [cell.source for cell in done_cells] != [cell.source for cell in code]:
            raise InputError(f"{entry.path} has changed since {executed_path} was executed; run the series again")
        for count, (cell, done) in enumerate(zip(code, done_cells, strict=True), start=1):
            cell.execution_count = count
            cell.outputs = [_cleaned(output, count) for output in done.outputs]
        about = {"run": source.name, "seed": record["seed"], "recipe_hash": record["recipe_hash"]}
        notebook.metadata["rlhf"] = about | {"code": code_hash(notebook)}
        ready[path] = (nbformat.writes(notebook) + "\n").encode()
        if len(ready[path]) > LIMIT_BYTES:
            raise InputError(f"{entry.path} would be {len(ready[path]):,} bytes, over {LIMIT_BYTES:,}; show less in it")
    return _written(ready, run)


def publish_files(run: Path) -> list[Path]:
    """Copy the small files of `run` to `docs/example_run/`; returns what was written. InputError as in `publish`."""
    if not (run / "report.html").is_file():
        raise InputError(f"{run / 'report.html'} is missing; run the whole series first")
    return _written({}, run)


def _written(ready: dict[Path, bytes], run: Path) -> list[Path]:
    """Write `ready` and the small files of `run`, all or none of them."""
    example, settings = ROOT / "docs" / "example_run" / run.name, read_json(run / "run.json")["settings"]
    if elsewhere := [name for name in (settings["dataset"], settings["policy"]) if name.startswith(("/", "~", ".."))]:
        raise InputError(f"the run names {elsewhere[0]}, a place of this machine; put it into outputs/ and run from there")
    with tempfile.TemporaryDirectory() as folder:
        source = run if settings["dataset"] == EMBEDDED else quoted(run, Path(folder))
        paths = sorted(path for files in SMALL for path in source.glob(files))
        ready |= {example / path.relative_to(source): path.read_bytes() for path in paths}
    for path, content in ready.items():
        if str(ROOT).encode() in content or f"{Path.home()}/".encode() in content:
            name = path.relative_to(ROOT)
            raise InputError(f"{name} would hold a path of this machine; run with the relative --output-dir outputs")
    shutil.rmtree(example, ignore_errors=True)
    for path, content in ready.items():
        write_bytes(path, content)
    return list(ready)


def quoted(run: Path, folder: Path) -> Path:
    """The small files of `run` in `folder`, with the models' texts and of the dataset's own no more than the beginnings
    of prompts, in the page too; returns `folder`."""
    for path in (path for files in SMALL for path in run.glob(files)):
        if path.name not in (PAIRS, KEY):
            (target := folder / path.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    for name in [name for name in ("samples.csv", "alternatives.csv") if (run / "evaluation" / name).is_file()]:
        rows = read_samples(run, name)
        if "reference" in rows:
            rows["reference"] = ""
        rows["cluster"] = [str(crc32(str(name).encode())) for name in clusters_of(rows)]
        if rows["prompt"].str.len().max() > FEW_WORDS:  # figures of every row, texts of some
            texts = [name for name in rows if name == "prompt" or name.endswith("_response")]
            rows.loc[rows.index >= QUOTED_ROWS, texts] = ""
        rows["prompt"] = rows["prompt"].map(_beginning)
        write_text(folder / "evaluation" / name, rows.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC))
    for path in (folder / "evaluation").glob("*.json"):
        write_json(path, _cut(read_json(path)))
    write_report(folder)
    return folder


def _beginning(prompt: str) -> str:
    return textwrap.shorten(prompt, QUOTED_CHARACTERS, placeholder=" …")


def _cut(found):
    """The content of a JSON file with only the beginnings of prompts, and no references."""
    if isinstance(found, dict):
        of_data = {"prompt": _beginning, "reference": lambda text: ""}
        return {key: of_data[key](value) if key in of_data and value else _cut(value) for key, value in found.items()}
    return list(map(_cut, found)) if isinstance(found, list) else found


def _cleaned(output: nbformat.NotebookNode, count: int) -> nbformat.NotebookNode:
    """An output without what only says how it was executed, its pictures in 256 colours."""
    output = nbformat.from_dict({**output, "metadata": {}} if "metadata" in output else dict(output))
    if picture := output.get("data", {}).get("image/png"):
        output["data"]["image/png"] = _smaller(picture)
    if "execution_count" in output:
        output["execution_count"] = count
    return output


def _smaller(picture: str) -> str:
    """A base64 PNG with a palette: a third of the size, and of a plot the eye sees no difference."""
    found, small = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"), io.BytesIO()
    found.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode("ascii")


if __name__ == "__main__":
    try:
        if sys.argv[1:2] == ["--only-files"]:
            written = [path for run in sys.argv[2:] for path in publish_files(Path(run))]
        else:
            written = publish(*map(Path, sys.argv[1:])) if len(sys.argv) > 1 else stamp()
        print(*(path.relative_to(ROOT) for path in written), sep="\n")
    except InputError as error:
        sys.exit(f"error: {error}")
