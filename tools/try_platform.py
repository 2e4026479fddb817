"""The series on what Colab or Kaggle has installed, executed: `make test-colab`, `make test-kaggle`.

    .venv-colab/bin/python tools/try_platform.py colab LIST [VERSION_OF_TORCH]

Run by the interpreter of a new virtual environment, which is filled first: with the platform's own version of every
package that our requirements need, import or look for. Then the first cell of a notebook is executed in a kernel, as a
person would, and the series with reduced settings, whose stderr may hold progress only. Progress goes to stderr, what
was found to stdout; exit status 0, or 1 where something failed. Standard library and pip only: nothing else is there.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from reduced import REDUCED  # noqa: E402

from rlhf_utils.platforms.bootstrap import NEVER_TOUCHED, requirements  # noqa: E402

# What Kaggle puts on top of Colab's image; "" is the newest.
MOVED = {
    "colab": {},
    "kaggle": {
        "protobuf": "5.29.5", "nbconvert": "6.4.5", "jupyter-server": "2.12.5", "jupyter-lsp": "1.5.1",
        # ipywidgets 8 brings comm; without it tqdm warns in every notebook.
        "ipywidgets": "8.1.5", "comm": "", "papermill": "",
    },
}  # fmt: skip
# A notebook service starts every process with these.
VARIABLES = {
    "colab": {"COLAB_RELEASE_TAG": "release-colab", "MPLBACKEND": "module://matplotlib_inline.backend_inline"},
    "kaggle": {"MPLBACKEND": "agg"},
}
# CUDA's own, and what is compiled against the very torch of the list, of which the CPU build need not be to be had.
NOT_ON_A_CPU = re.compile(r"nvidia-.*|cuda-.*|.*-cu(da)?1\d.*|cupy.*|torch(vision|audio|codec)?|.*-gpu")
# Modules whose distribution has another name.
DISTRIBUTIONS = {
    "PIL": "pillow", "bs4": "beautifulsoup4", "cv2": "opencv-python", "dateutil": "python-dateutil",
    "dotenv": "python-dotenv", "git": "gitpython", "google": "protobuf", "skimage": "scikit-image",
    "sklearn": "scikit-learn", "snappy": "python-snappy", "yaml": "pyyaml", "zmq": "pyzmq",
}  # fmt: skip
# How libraries import another one, and how they ask whether it is there.
ASKED_AFTER = re.compile(
    r"^ *(?:import|from) (\w+)|(?:find_spec|import_module|is_package_available|import_optional_dependency|version)"
    r"\(\s*[\"'](\w+)",
    flags=re.MULTILINE,
)
PROGRESS = re.compile(r"\[\d/\d\] \S+\.ipynb(: (done in|complete)|  ).*")
RUNS = {
    "instruct": ("--recipe", "instruct", "--set", "ppo.method=lora"),
    "imdb": ("--recipe", "imdb", "--set", "ppo.method=lora"),
    "instruct, QLoRA in PPO": ("--recipe", "instruct", "--only", "03_02,04_01", "--set", "ppo.method=qlora"),
}


def main() -> int:
    platform, path, *torch = sys.argv[1:]
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", Path(path).read_text(encoding="utf-8"), flags=re.MULTILINE))
    pins = {canonicalize_name(name): version for name, version in pins.items()} | MOVED[platform]
    left_out = fill(platform, pins, torch[0] if torch else None)
    before = installed()
    say(f"{len(before)} packages, {sum(before.get(n) == v for n, v in pins.items())} of them at {platform}'s version")
    say(f"left out: {', '.join(left_out) or 'nothing'}")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ |= VARIABLES[platform] | {"RLHF_CACHE": f"{scratch}/cache", "HF_HUB_OFFLINE": "1"}
        if not first_cell():
            return 1
        after = installed()
        moved = {name: f"{name} {was} -> {after.get(name)}" for name, was in before.items() if after.get(name) != was}
        say(f"the first cell moved {', '.join(moved.values()) or 'nothing'}, added {len(after.keys() - before.keys())}")
        uninvited = moved.keys() - {canonicalize_name(line.name) for line in requirements()}
        if uninvited or moved.keys() & set(NEVER_TOUCHED):
            print(f"the first cell must not touch {', '.join(sorted(uninvited | moved.keys() & set(NEVER_TOUCHED)))}")
            return 1
        passed = [series(name, arguments, Path(scratch) / "out") for name, arguments in RUNS.items()]
    return 0 if all(passed) else 1


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def installed() -> dict[str, str]:
    """Name -> version of every package here."""
    found = importlib.metadata.distributions()
    return {canonicalize_name(about.metadata["Name"]): about.version for about in found}


def fill(platform: str, pins: dict[str, str], torch: str | None) -> list[str]:
    """Install torch and the platform's version of all that our requirements are known to need, import and look for;
    returns what could not be installed."""
    if pip("--no-deps", *([f"torch=={torch}"] if torch else ["-c", str(ROOT / "constraints.txt"), "torch"])):
        sys.exit("this torch cannot be had here; TORCH=VERSION names another")
    ours = [line for line in requirements() if canonicalize_name(line.name) != "torch"]
    names = {canonicalize_name(line.name) for line in ours}
    left_out: list[str] = []

    def get(wanted: set[str], folders: tuple[Path, ...]) -> None:
        while missing := sorted(
            n for n in wanted & pins.keys() - installed().keys() - set(left_out) if not NOT_ON_A_CPU.fullmatch(n)
        ):
            say(f"installing {len(missing)} packages ...")
            left_out.extend(install(missing, pins))
            importlib.invalidate_caches()
            wanted = wanted | needed(folders)

    with tempfile.TemporaryDirectory() as scratch:
        # What the platform lacks is read, not installed: that is the first cell's part.
        pip("--no-deps", "--target", scratch, *(str(o) for o in ours if canonicalize_name(o.name) not in pins))
        folders = (Path(importlib.util.find_spec("pip").origin).parents[1], Path(scratch))
        get({"pip", "setuptools", *MOVED[platform]} | names, folders)
        found = looked_for(names, folders)
        get(found | needed(folders), folders)
    # This torch is not the platform's; what it needs beyond that is not for the first cell to bring.
    pip(f"torch=={installed()['torch']}")
    return sorted([*left_out, *(name for name in found & pins.keys() if NOT_ON_A_CPU.fullmatch(name))])


def pip(*arguments: str) -> str:
    """Have pip install this; returns what it could not find, "" where all went well."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return ""
    if found := re.search(r"No matching distribution found for ([\w.-]+)", done.stderr):
        return found[1]
    sys.exit(done.stderr)


def install(names: list[str], pins: dict[str, str]) -> list[str]:
    """Install these as they are pinned, from wheels; returns what cannot be had for this Python."""
    lines = {name: f"{name}=={pins[name]}" if pins[name] else name for name in names}
    while lines and (missing := pip("--no-deps", "--only-binary", ":all:", *lines.values())):
        del lines[canonicalize_name(missing)]
    return [name for name in names if name not in lines]


def needed(folders: tuple[Path, ...]) -> set[str]:
    """What the packages in these folders say they need here; the extras aside."""
    found = importlib.metadata.distributions(path=[*map(str, folders)])
    lines = [Requirement(line) for about in found for line in about.requires or ()]
    return {canonicalize_name(r.name) for r in lines if r.marker is None or r.marker.evaluate({"extra": ""})}


def looked_for(names: set[str], folders: tuple[Path, ...]) -> set[str]:
    """What these packages import somewhere, or ask after."""
    modules: set[str] = set()
    for about in (about for folder in folders for about in importlib.metadata.distributions(path=[str(folder)])):
        if canonicalize_name(about.metadata["Name"]) in names:
            files = (Path(str(file.locate())) for file in about.files or () if file.suffix == ".py")
            texts = (file.read_text("utf-8", errors="ignore") for file in files if "test" not in str(file))
            modules |= {module for text in texts for pair in ASKED_AFTER.findall(text) for module in pair}
    return {canonicalize_name(DISTRIBUTIONS.get(module, module)) for module in modules}


def first_cell() -> bool:
    """Execute it in a kernel of this interpreter, started as the platform starts one; True where all it says is what it
    installs."""
    cells = json.loads((ROOT / "01_supervised_finetuning/01_data_and_baseline.ipynb").read_text("utf-8"))["cells"]
    source = "".join(next(cell["source"] for cell in cells if cell["cell_type"] == "code"))
    execute = """if True:
        import nbclient, nbformat, sys
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(sys.stdin.read())])
        nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3", allow_errors=True).execute()
        for output in notebook.cells[0].outputs:
            print(output.get("text") or "\\n".join(output.get("traceback", ())), end="")
    """
    command = [sys.executable, "-c", execute]
    done = subprocess.run(command, input=source, cwd=ROOT, capture_output=True, text=True, timeout=1300)
    # stderr is what the platform's own kernel says when it starts, such as that frozen modules cannot be debugged.
    say(f"the first cell says: {done.stdout.strip() or 'nothing'}{done.stderr if done.returncode else ''}")
    return done.returncode == 0 and bool(re.fullmatch(r"(installing [\w ,.-]+ \.\.\.\n)?", done.stdout))


def series(name: str, arguments: tuple[str, ...], folder: Path) -> bool:
    """Run the reduced series with these arguments; True where it ends well and says nothing but how far it is."""
    started = time.monotonic()
    settings = [part for setting in REDUCED for part in ("--set", setting)]
    command = [sys.executable, "-m", "rlhf_utils", "run", "--output-dir", str(folder), *settings, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    other = [line for line in done.stderr.splitlines() if not PROGRESS.fullmatch(line)]
    shown = [
        f"{path.stem}: {''.join(output['text'])}"
        for path in sorted(folder.rglob("notebooks/*.ipynb"))
        for cell in json.loads(path.read_text("utf-8"))["cells"]
        for output in cell.get("outputs", ())
        if output.get("name") == "stderr"
    ]
    print(f"{name}: exit status {done.returncode} after {time.monotonic() - started:.0f} s", flush=True)
    for line in [*other, *shown]:
        print(f"    not progress: {line}", flush=True)
    return done.returncode == 0 and not other and not shown


if __name__ == "__main__":
    sys.exit(main())
