"""A run on disk: its folders, its stages, and the record that lets the next stage trust the last.

outputs/<recipe>-<scale>/
    checkpoints/<stage>/    what a stage made, with `stage.json` saying from what
    checkpoints/.work/      unfinished training, to resume from
    evaluation/  plots/  notebooks/  run.json
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_utils import __version__
from rlhf_utils.platforms import files, names, processes, runtime
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.runs.stages import STAGES, Plan
from rlhf_utils.runs.stopping import run_lock
from rlhf_utils.settings.recipes import Recipe
from rlhf_utils.settings.sections import flat
from rlhf_utils.settings.template import check_template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate")
# What a training leaves in its work folder for the stage that is published from it.
_TRAINED = ".trained.json"  # not a name that `Run.once` is given
# The log of a trainer in the work folder, and the record of a training that is published.
LOG, HISTORY = "log.jsonl", "metrics.jsonl"


class Run(Plan):
    """One recipe at one scale in one output folder."""

    def __init__(self, recipe: Recipe, output_dir: str | Path = "outputs", resume: bool = True):
        super().__init__(recipe)
        if not str(output_dir).strip():
            raise InputError("output_dir is empty; name the folder that runs are written to")
        self.resume = resume
        # When this process saw the first step of each training, and which step that was.
        self._began: dict[str, tuple[float, int]] = {}
        self.root = names.local_path(Path(output_dir)) / f"{recipe.name}-{recipe.scale}"
        self._made_here: set[str] = set()
        # What is known of the stages that this process makes, and when each began.
        self._begun: dict[str, tuple[dict, float]] = {}

    checkpoints = property(lambda self: self.root / "checkpoints")
    evaluation = property(lambda self: self.root / "evaluation")
    plots = property(lambda self: self.root / "plots")
    notebooks = property(lambda self: self.root / "notebooks")
    progress_file = property(lambda self: self.root / ".progress.txt")

    def make_folders(self) -> None:
        """Make the run's folders; InputError where nothing can be written."""
        runtime.check_drive(self.root)
        with files.disk_errors(self.root):
            for folder in (self.checkpoints, self.evaluation, self.plots, self.notebooks):
                folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        """The run in `folder`, with the settings and fingerprints of its own record: its data may have moved since."""
        run = cls(Recipe.from_settings(Path(folder) / "run.json"), Path(folder).parent)
        run.root = Path(folder)
        run._fingerprints = {name: about["fingerprint"] for name, about in run.record()["stages"].items()}
        return run

    @property
    def tokenizer_folder(self) -> Path:
        """The tokenizer of every policy of this run."""
        return self.folder("base" if "base" in self.stages else "sft")

    def folder(self, stage: str) -> Path:
        """Where `stage` leaves what it made."""
        return self.checkpoints / stage

    def work(self, stage: str) -> Path:
        """Where `stage` keeps its checkpoints while it is unfinished; survives an interruption."""
        return self.checkpoints / ".work" / f"{stage}-{self.fingerprint(stage)[:8]}"

    def record(self) -> dict:
        """The content of run.json."""
        path = self.root / "run.json"
        return files.read_json(path) if path.exists() else {"stages": {}, "notebooks": {}}

    def results(self, stage: str) -> dict:
        """The figures `stage` left beside what it made; InputError unless it is complete."""
        self.require(stage)
        return self._stamp(stage)["results"]

    def is_complete(self, stage: str) -> bool:
        """Whether what `stage` left on disk was made with the present settings."""
        stamp = self._stamp(stage)  # first: what a fingerprint is of (a pipe, a folder of gigabytes) may never end
        made = stamp is not None and stamp["fingerprint"] == self.fingerprint(stage)
        return made and all((self.root / file).is_file() for file in STAGES[stage].leaves)

    def has(self, stage: str) -> bool:
        """Whether `stage` need not be made: it is complete, and resuming is wanted or this process made it."""
        if not self.is_complete(stage) or not (self.resume or stage in self._made_here):
            return False
        settled = self.record()["stages"].get(stage, {}).get("state") == "complete" and not self.work(stage).exists()
        if processes.is_main() and not settled:
            # A later attempt with other settings failed, or the process died before it could say that this is done;
            # unless another process makes the stage anew at this moment.
            with contextlib.suppress(InputError), run_lock(self.root):
                self._settle(stage)
        return True

    def require(self, *stages: str) -> None:
        """Raise InputError unless every named stage is there, of this recipe, template and these settings."""
        for stage in stages:
            found, folder = self._stamp(stage), self.folder(stage)
            again = f"make {stage} first, or run the whole series with `python -m rlhf_utils run`"
            if found is None:
                raise InputError(f"{folder} is missing or unfinished; {again}")
            check_template(found["template_hash"], str(folder), self.recipe.template)
            if found["fingerprint"] != self.fingerprint(stage):
                before, now = flat(found["settings"]), flat(self.recipe.model_dump(mode="json"))
                changed = [key for key in now if key in before and before[key] != now[key]][:3]
                told = ", ".join(f"{key} {before[key]!r} -> {now[key]!r}" for key in changed)
                told = f" ({told})" if changed else ", code cells or data"
                raise InputError(f"{folder} was made with other settings{told}; {again}")

    def _stamp(self, stage: str) -> dict | None:
        path = self.folder(stage) / "stage.json"
        return files.read_json(path) if os.path.isfile(path) else None

    @contextlib.contextmanager
    def training(self, stage: str) -> Iterator[dict[str, Any]]:
        """Make `stage` in the block, up to `publish`, which may be called in the block or later; yields a dictionary
        for figures that are published with the stage. run.json says how it goes. Several processes all run the block.
        """
        self.require(*self.needs(stage))
        work, figures = self.work(stage), {}
        processes.wait()
        with run_lock(self.root) if processes.is_main() else contextlib.nullcontext(), files.disk_errors(work):
            if processes.is_main():
                if not self.resume and stage not in self._made_here and stage not in self._begun:
                    shutil.rmtree(work, ignore_errors=True)
                work.mkdir(parents=True, exist_ok=True)
            names.commits.clear()
            self._begun[stage] = {"fingerprint": self.fingerprint(stage), **_provenance()}, time.time()
            self.note("stages", stage, {"state": "running", **self._begun[stage][0]})
            runtime.forget_peak()
            processes.wait()
            try:
                yield figures
            except BaseException as error:
                state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                about = {"state": state, **self._taken(stage), "error": f"{type(error).__name__}: {error}"[:500]}
                self.note("stages", stage, about)
                raise
            if processes.is_main() and work.is_dir():  # not published within the block
                files.write_json(work / _TRAINED, {**self._taken(stage), "results": figures})
            processes.wait()

    def _taken(self, stage: str) -> dict[str, Any]:
        (about, begun), (host, device) = self._begun[stage], runtime.peak_memory()
        taken = {"seconds": round(time.time() - begun, 1), "peak_host_bytes": host, "peak_device_bytes": device}
        return {**about, "hub": {**names.commits}, **taken}

    def train(self, stage: str, trainer: Trainer) -> None:
        """Train `stage` with a trainer of transformers or trl, from its newest whole checkpoint (`runs.training`)."""
        from rlhf_utils.runs.training import train

        with self.training(stage) as figures:
            figures |= train(self, stage, trainer)

    def once(self, stage: str, name: str, figures: Callable[[], Any]) -> Any:
        """`figures()`, a JSON value; a stage that was interrupted after it reads what it had found."""
        path = self.work(stage) / f"{name}.json"
        if not path.is_file():
            files.write_json(path, figures())
        return files.read_json(path)

    def publish(
        self,
        stage: str,
        model: PreTrainedModel | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        fill: Callable[[Path], Any] | None = None,
        **results: Any,
    ) -> None:
        """Put what `stage` made into `checkpoints/<stage>`, whole or not at all: model, record of the training,
        whatever `fill(folder)` adds, and `results`. Other processes wait until the main one has done so."""
        processes.wait()
        if processes.is_main():
            trained, history = self.work(stage) / _TRAINED, self.work(stage) / LOG
            made = files.read_json(trained) if trained.is_file() else self._taken(stage)
            found = made.pop("results", {}) | results
            with run_lock(self.root):
                with files.whole_folder(self.folder(stage)) as folder:
                    if model is not None:
                        from rlhf_utils.models.loading import save_model

                        save_model(model, tokenizer, folder)
                    if fill:
                        fill(folder)
                    if history.is_file() and not (folder / HISTORY).is_file():
                        files.write_jsonl(folder / HISTORY, [*files.read_jsonl(history), {"summary": True, **found}])
                    about = {"stage": stage, "fingerprint": self.fingerprint(stage), **self._head()}
                    files.write_json(folder / "stage.json", {**about, "results": found, "made": made})
                self._settle(stage)
        self._made_here.add(stage)
        processes.wait()

    def _settle(self, stage: str) -> None:
        """Record that `stage` is complete, and remove its work with what attempts with other settings left."""
        stamp = self._stamp(stage)
        self.note("stages", stage, {"state": "complete", **stamp["made"], "results": stamp["results"]})
        for old in self.work(stage).parent.glob(f"{stage}-*"):
            shutil.rmtree(old, ignore_errors=True)

    def note_made(self, *stages: str) -> None:
        """Another process made these on behalf of this one: they need not be made again, even without resuming."""
        self._made_here.update(stages)

    def progress(self, text: str, step: int | None = None, total: int | None = None) -> None:
        """Tell whoever started the series (it polls the file) what is going on. `text` is the name of the training and,
        after a colon, its figures; of its steps the time that is left is told."""
        if processes.is_main():
            place = f" ({step}/{total}{self._left(text, step, total)})" if total else ""
            files.write_text(self.progress_file, text + place)

    def _left(self, text: str, step: int, total: int) -> str:
        """The time that the steps to come take at the pace of those that this process has seen."""
        now, name = time.monotonic(), text.partition(":")[0]
        began, first = self._began.setdefault(name, (now, step))
        if step <= first:
            return ""
        left = (total - step) * (now - began) / (step - first)
        return f", {left / 60:.0f} min left" if left > 90 else f", {left:.0f} s left"

    def note(self, kind: str, name: str, about: dict) -> None:
        """Record in run.json how one of the "stages" or "notebooks" stands."""
        if processes.is_main():
            record = {**self._head(), **{key: self.record()[key] for key in ("stages", "notebooks")}}
            record[kind][name] = about
            files.write_json(self.root / "run.json", record)

    def _head(self) -> dict:
        return {
            "recipe": self.recipe.name,
            "scale": self.recipe.scale,
            "seed": self.recipe.seed,
            "recipe_hash": self.recipe.hash,
            "template_hash": self.recipe.template.hash,
            "settings": self.recipe.model_dump(mode="json"),
            "not_trained": sorted({*STAGES} - {*self.stages} | {*self.fetched} - {"data"}),
        }


def _provenance() -> dict[str, Any]:
    """When, and with which versions, device, number of processes and git commit."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES if importlib.util.find_spec(name)}
    commit, device = None, runtime.detect_device()
    with contextlib.suppress(FileNotFoundError, subprocess.TimeoutExpired):
        where = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "timeout": 10}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **where).stdout.strip() or None
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {"python": platform.python_version(), "rlhf_utils": __version__, **found},
        "device": {"name": device.name, "precision": device.precision},
        "processes": processes.count(),
        "git_commit": commit,
    }
