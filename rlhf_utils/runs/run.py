"""A run on disk: its folders, its stages, and the record that lets the next stage trust the last.

outputs/<recipe>-<scale>/
    checkpoints/<stage>/    what a stage made, with `stage.json` saying from what
    checkpoints/.work/      unfinished training, to resume from
    evaluation/  plots/  notebooks/  run.json
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import (
    content_hash,
    disk_errors,
    read_json,
    read_jsonl,
    whole_folder,
    write_json,
    write_jsonl,
)
from rlhf_utils.platforms.hub import recording
from rlhf_utils.platforms.memory import measuring, phase
from rlhf_utils.platforms.names import EMBEDDED, check_packaged, is_there, local_path
from rlhf_utils.platforms.runtime import detect_device, reach_drive
from rlhf_utils.runs.locks import stage_lock
from rlhf_utils.runs.stages import STAGES, making_code
from rlhf_utils.settings.recipes import Recipe, load_recipe
from rlhf_utils.settings.sections import Shares, flat
from rlhf_utils.settings.template import check_template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate", "rlhf_utils")
# What a training leaves in its work folder for the stage that is published from it.
_TRAINED = "trained.json"
# The log of a trainer in the work folder, and the record of a training that is published.
LOG, HISTORY = "log.jsonl", "metrics.jsonl"


class Run:
    """One recipe at one scale in one output folder."""

    def __init__(self, recipe: Recipe, output_dir: str | Path = "outputs", resume: bool = True):
        self.recipe, self.resume = recipe, resume
        self._place(local_path(Path(output_dir)) / f"{recipe.name}-{recipe.scale}")
        self._made_here: set[str] = set()
        self._fingerprints: dict[str, str] = {}
        self._about: dict[str, dict] = {}

    def _place(self, root: Path) -> None:
        self.root = root
        self.checkpoints, self.evaluation = root / "checkpoints", root / "evaluation"
        self.plots, self.notebooks = root / "plots", root / "notebooks"

    @classmethod
    def open(
        cls,
        recipe: str,
        scale: str = "tiny",
        output_dir: str | Path = "outputs",
        overrides: Mapping[str, Any] | None = None,
        resume: bool = True,
    ) -> Run:
        """Validate the settings and make the run's folders; InputError where either is impossible."""
        run = cls(load_recipe(recipe, scale, overrides), output_dir, resume)
        run.make_folders()
        return run

    def make_folders(self) -> None:
        """Make the run's folders; InputError where nothing can be written."""
        reach_drive(self.root)
        try:
            with disk_errors(self.root):
                for folder in (self.checkpoints, self.evaluation, self.plots, self.notebooks):
                    folder.mkdir(parents=True, exist_ok=True)
                probe = self.root / f".write-test-{os.getpid()}"
                probe.touch()
                probe.unlink()
        except OSError as error:
            raise InputError(f"cannot write {self.root}: {error.strerror}; choose another --output-dir") from error

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        """The run in `folder`, with the settings and fingerprints of its own record: its data may have moved since."""
        folder = Path(folder)
        if not (folder / "run.json").is_file():
            raise InputError(f"{folder} is not a run: it has no run.json; give a folder such as outputs/instruct-tiny")
        record = read_json(folder / "run.json")
        try:
            run = cls(Recipe.model_validate(record["settings"]), folder.parent)
            run._fingerprints = {name: about["fingerprint"] for name, about in record["stages"].items()}
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{folder / 'run.json'} is not a record of this version; run the series again") from None
        run._place(folder)
        return run

    # Which stages there are

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that this recipe has, each after those it needs."""
        kept = [stage for stage in STAGES if stage not in self.recipe.left_out]
        # Without a base model the data take their tokenizer from the fine-tuned one, which is ready then.
        return tuple(sorted(kept, key=lambda stage: stage != "sft")) if "base" not in kept else tuple(kept)

    def needs(self, stage: str) -> tuple[str, ...]:
        """The stages that `stage` is made from; a ready policy is made from none."""
        if stage != "reward_model" and self.ready_model(stage):
            return ()
        if stage == "data" and "base" not in self.stages:
            return ("sft",)
        return tuple(need for need in STAGES[stage].needs if need in self.stages)

    def ready_model(self, stage: str) -> str | None:
        """The model that stands in for training in `stage`; None where it is trained."""
        return getattr(self.recipe.models, stage, None)

    @property
    def adapter_base(self) -> str | None:
        """The base of every named model that is an adapter; None where each names its own."""
        return self.recipe.models.adapter_base

    @property
    def fetched(self) -> tuple[str, ...]:
        """The stages in which nothing is trained, each after those it needs: ready models, a base model published as
        the fine-tuned one, and, where models are ready, what they are measured with."""
        found = {stage for stage in self.stages if self.ready_model(stage)}
        if found:
            found |= {"data"} if self.recipe.policy == EMBEDDED else {"base", "data"}
        if self.recipe.tuned_policy:
            found.add("sft")
        if "sft" not in found:
            # A ready reward model is scaled by the responses of a fine-tuned policy that is still to be trained.
            found.discard("reward_model")
        return tuple(stage for stage in self.stages if stage in found)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the data that this run reads."""
        unused = {"sft"} if self.recipe.tuned_policy or self.recipe.models.sft else set()
        unused |= {"judge"} - {stage.removesuffix("_model") for stage in self.stages}
        return tuple(name for name in Shares.model_fields if name not in unused)

    @property
    def tokenizer_folder(self) -> Path:
        """The tokenizer of every policy of this run."""
        return self.folder("base" if "base" in self.stages else "sft")

    # What is there already

    def folder(self, stage: str) -> Path:
        """Where `stage` leaves what it made."""
        return self.checkpoints / stage

    def work(self, stage: str) -> Path:
        """Where `stage` keeps its checkpoints while it is unfinished; survives an interruption."""
        return self.checkpoints / ".work" / f"{stage}-{self.fingerprint(stage)[:8]}"

    def fingerprint(self, stage: str) -> str:
        """Hash of all that `stage` depends on: settings, its notebook's code, local data and model, earlier stages."""
        if stage not in self._fingerprints:
            parts = [
                stage,
                self.recipe.section_hash(*self._settings(stage)),
                "" if self.ready_model(stage) else making_code(stage, self.recipe.form),
                *(self.fingerprint(name) for name in self.needs(stage)),
                *(content_hash(local_path(source)) for source in self._sources(stage) if is_there(source)),
            ]
            self._fingerprints[stage] = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
        return self._fingerprints[stage]

    def _settings(self, stage: str) -> tuple[str, ...]:
        settings, ready = STAGES[stage].settings, self.ready_model(stage)
        if stage == "data" and "base" not in self.stages:
            settings = STAGES["base"].settings
        if ready:
            # A ready reward model is measured on the data and scaled by the fine-tuned policy's responses all the same.
            settings = (f"models.{stage}", *(settings if stage == "reward_model" else ("name", "scale")))
        base = ("models.adapter_base",) if self.adapter_base and (ready or stage == "base") else ()
        return (*settings, *base)

    def _sources(self, stage: str) -> list[str]:
        """Data and models outside the run that `stage` reads."""
        first = "base" if "base" in self.stages else "data"
        sources = [self.recipe.dataset, self.recipe.policy] if stage == first else []
        return [*sources, ready] if (ready := self.ready_model(stage)) else sources

    def record(self) -> dict:
        """The content of run.json."""
        path = self.root / "run.json"
        return read_json(path) if path.exists() else {"stages": {}, "notebooks": {}}

    def results(self, stage: str) -> dict:
        """The figures `stage` left beside what it made; InputError unless it is complete."""
        self.require(stage)
        return self._stamp(stage)["results"]

    def is_complete(self, stage: str) -> bool:
        """Whether what `stage` left on disk was made with the present settings."""
        found = self._stamp(stage)
        return (
            found is not None
            and found["fingerprint"] == self.fingerprint(stage)
            and all((self.root / file).is_file() for file in STAGES[stage].leaves)
        )

    def has(self, stage: str) -> bool:
        """Whether `stage` need not be made: it is complete, and resuming is wanted or this process made it."""
        if not self.is_complete(stage) or not (self.resume or stage in self._made_here):
            return False
        # A later attempt with other settings may have failed, or the process died before it could say so.
        recorded = self.record()["stages"].get(stage, {})
        if (recorded.get("state"), recorded.get("fingerprint")) != ("complete", self.fingerprint(stage)):
            stamp = self._stamp(stage)
            self._write_stage(stage, {**stamp["made"], "state": "complete", "results": stamp["results"]})
        return True

    def require(self, *stages: str) -> None:
        """Raise InputError unless every named stage is there, of this recipe, template and these settings."""
        for stage in stages:
            found, folder = self._stamp(stage), self.folder(stage)
            again = f"make {stage} first, or run the whole series with `python -m rlhf_utils run`"
            if found is None:
                raise InputError(f"{folder} is missing or unfinished; {again}")
            if (found["recipe"], found["scale"]) != (self.recipe.name, self.recipe.scale):
                raise InputError(
                    f"{folder} was made by recipe {found['recipe']} at scale {found['scale']}, "
                    f"not {self.recipe.name} at {self.recipe.scale}; {again}"
                )
            check_template(found["template_hash"], str(folder), self.recipe.template)
            if found["fingerprint"] != self.fingerprint(stage):
                raise InputError(f"{folder} was made with other settings{self._changes(stage)}; {again}")

    def _changes(self, stage: str) -> str:
        before = flat((self._stamp(stage) or {}).get("settings", {}))
        now = flat(self.recipe.model_dump(mode="json"))
        relevant = tuple(f"{key}." for name in self._ancestry(stage) for key in self._settings(name))
        changed = [
            f"{key} {before[key]!r} -> {now[key]!r}"
            for key in now
            if key in before and before[key] != now[key] and f"{key}.".startswith(relevant)
        ]
        return f" ({', '.join(changed[:3])})" if changed else ", code cells or data"

    def _ancestry(self, stage: str) -> list[str]:
        return [stage, *(ancestor for name in self.needs(stage) for ancestor in self._ancestry(name))]

    def _stamp(self, stage: str) -> dict | None:
        path = self.folder(stage) / "stage.json"
        return read_json(path) if os.path.isfile(path) else None

    # Making a stage

    @contextmanager
    def training(self, stage: str) -> Iterator[dict[str, Any]]:
        """Make `stage` in the block, up to `publish`; yields a dictionary for figures that are published with the
        stage. run.json says how it goes.

        Of several processes all run the block, and the main one keeps the record.
        """
        self.require(*self.needs(stage))
        check_packaged(self.recipe.model_names)
        work, main, commits, figures = self.work(stage), processes.is_main(), {}, {}
        processes.wait()
        with contextlib.ExitStack() as stack:
            if main:
                stack.enter_context(stage_lock(self.root))
                if not self.resume and stage not in self._made_here:
                    shutil.rmtree(work, ignore_errors=True)
                with disk_errors(work):
                    work.mkdir(parents=True, exist_ok=True)
            about = self._made_of(stage, commits)
            self._about[stage] = about
            self._write_stage(stage, {"state": "running", **about})
            processes.wait()
            begun = time.time()
            try:
                with disk_errors(work), recording(commits), measuring() as taken:
                    yield figures
            except BaseException as error:
                state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                told = f"{type(error).__name__}: {error}"[:500]
                self._write_stage(stage, {"state": state, **about, "error": told})
                raise
            taken |= {"seconds": round(time.time() - begun, 1)}
            if main and work.is_dir():
                write_json(work / _TRAINED, {**about, **taken, "results": figures})
            elif main:  # published within the block
                self._write_stage(stage, {**self.record()["stages"][stage], **taken})
            processes.wait()

    def train(self, stage: str, trainer: Trainer) -> None:
        """Train `stage` with a trainer of transformers or trl, from its newest whole checkpoint (`runs.training`)."""
        from rlhf_utils.runs.training import train

        with self.training(stage) as figures:
            figures |= train(self, stage, trainer)

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
            with self.publishing(stage, results) as folder:
                if model is not None:
                    from rlhf_utils.models.loading import save_model

                    save_model(model, tokenizer, folder)
                if fill:
                    fill(folder)
        self._made_here.add(stage)
        processes.wait()

    @contextmanager
    def publishing(self, stage: str, results: Mapping[str, Any]) -> Iterator[Path]:
        """A temporary folder that becomes `checkpoints/<stage>` when the block ends without an error.

        It holds the record of the training already; `results` have to be complete by the end of the block.
        """
        work = self.work(stage)
        trained, history = work / _TRAINED, work / LOG
        with stage_lock(self.root), phase("publish"), whole_folder(self.folder(stage)) as folder:
            made = read_json(trained) if trained.is_file() else dict(self._about.get(stage) or self._made_of(stage, {}))
            found = made.pop("results", {})
            yield folder
            found |= results
            if history.is_file() and not (folder / HISTORY).is_file():
                write_jsonl(folder / HISTORY, [*read_jsonl(history), {"summary": True, **found}])
            write_json(
                folder / "stage.json",
                {
                    "stage": stage,
                    "recipe": self.recipe.name,
                    "scale": self.recipe.scale,
                    "seed": self.recipe.seed,
                    "fingerprint": self.fingerprint(stage),
                    "template_hash": self.recipe.template.hash,
                    "settings": self.recipe.model_dump(mode="json"),
                    "results": found,
                    "made": made,
                },
            )
        self._made_here.add(stage)
        self._write_stage(stage, {"state": "complete", **made, "results": found})
        # With what attempts with other settings left: the stage they were for is another one now.
        for old in work.parent.glob(f"{stage}-*"):
            shutil.rmtree(old, ignore_errors=True)

    def _made_of(self, stage: str, commits: dict[str, str]) -> dict[str, Any]:
        return {"started": _clock(), "fingerprint": self.fingerprint(stage), **_provenance(), "hub": commits}

    def note_made(self, *stages: str) -> None:
        """Another process made these on behalf of this one: they need not be made again, even without resuming."""
        self._made_here.update(stages)

    def progress(self, text: str, step: int | None = None, total: int | None = None) -> None:
        """Tell whoever started the series (it polls this file) what is going on."""
        if processes.is_main():
            write_json(self.root / ".progress.json", {"text": text, "step": step, "total": total})

    def note_notebook(self, name: str, **about: Any) -> None:
        """Record in run.json how notebook `name` ended."""
        record = self._settled_record()
        record["notebooks"][name] = about
        write_json(self.root / "run.json", record)

    def _write_stage(self, name: str, about: dict) -> None:
        if processes.is_main():
            record = self._settled_record()
            record["stages"][name] = about
            write_json(self.root / "run.json", record)

    def _settled_record(self) -> dict:
        return {
            "recipe": self.recipe.name,
            "scale": self.recipe.scale,
            "seed": self.recipe.seed,
            "recipe_hash": self.recipe.hash,
            "template_hash": self.recipe.template.hash,
            "settings": self.recipe.model_dump(mode="json"),
            "not_trained": sorted({*self.recipe.left_out, *self.fetched} - {"data"}),
            **{key: value for key, value in self.record().items() if key in ("stages", "notebooks")},
        }

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """A stage that one function makes from beginning to end; its block has to publish."""
        with self.training(name):
            yield Stage(self, name, self.work(name))


@dataclass
class Stage:
    """A stage while it runs. `work` survives an interruption; `results` are published with what it made."""

    run: Run
    name: str
    work: Path
    results: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, figures: Callable[[], Any]) -> Any:
        """`figures()`, a JSON value; a stage that was interrupted after it reads what it had found from `work`."""
        path = self.work / f"{name}.json"
        if not path.is_file():
            write_json(path, figures())
        return read_json(path)

    @contextmanager
    def publish(self) -> Iterator[Path]:
        """See `Run.publishing`; `results` may be set inside the block."""
        results: dict[str, Any] = {}
        with self.run.publishing(self.name, results) as folder:
            yield folder
            results |= self.results


def _provenance() -> dict[str, Any]:
    """Versions, device, number of processes and git commit."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    commit = None
    with contextlib.suppress(FileNotFoundError, subprocess.TimeoutExpired):
        asked = ["git", "rev-parse", "HEAD"]
        done = subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
        commit = done.stdout.strip() or None
    device = detect_device()
    return {
        "versions": versions,
        "device": {"name": device.name, "precision": device.precision},
        "processes": processes.count(),
        "git_commit": commit,
    }


def _clock() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
