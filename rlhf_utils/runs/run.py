"""A run on disk: its folders, what each stage needs and leaves, and the record that lets the next stage trust the last.

outputs/<recipe>-<scale>/
    checkpoints/<stage>/    what a stage made, with `stage.json` saying from what
    checkpoints/.work/      unfinished training, to resume from
    evaluation/  plots/  notebooks/  run.json
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import content_hash, disk_errors, read_json, whole_folder, write_json
from rlhf_utils.platforms.hub import recording
from rlhf_utils.platforms.memory import measuring, phase, remembering
from rlhf_utils.platforms.names import is_there, local_path
from rlhf_utils.platforms.packaged import check_packaged
from rlhf_utils.platforms.runtime import reach_drive
from rlhf_utils.runs.graph import STAGES
from rlhf_utils.runs.locks import stage_lock
from rlhf_utils.runs.provenance import provenance
from rlhf_utils.settings.recipes import Recipe, load_recipe
from rlhf_utils.settings.sections import EMBEDDED, Shares, flat
from rlhf_utils.settings.template import check_template


class Run:
    """One recipe at one scale in one output folder."""

    def __init__(self, recipe: Recipe, output_dir: str | Path = "outputs", resume: bool = True):
        self.recipe = recipe
        self.root = local_path(Path(output_dir)) / f"{recipe.name}-{recipe.scale}"
        self.checkpoints = self.root / "checkpoints"
        self.evaluation = self.root / "evaluation"
        self.plots = self.root / "plots"
        self.notebooks = self.root / "notebooks"
        self.resume = resume
        self._made_here: set[str] = set()
        self._fingerprints: dict[str, str] = {}

    @classmethod
    def open(
        cls,
        recipe: str,
        scale: str = "tiny",
        output_dir: str | Path = "outputs",
        overrides: Mapping[str, Any] | None = None,
        resume: bool = True,
    ) -> Run:
        """Validate the settings and make the run's folders; raises InputError where either is impossible."""
        run = cls(load_recipe(recipe, scale, overrides), output_dir, resume)
        run.make_folders()
        return run

    def make_folders(self) -> None:
        """Make the run's folders; raises InputError where nothing can be written."""
        reach_drive(self.root)
        try:
            with disk_errors(self.root):
                for folder in (self.checkpoints, self.evaluation, self.plots, self.notebooks):
                    folder.mkdir(parents=True, exist_ok=True)
                probe = self.root / ".write-test"
                probe.touch()
                probe.unlink()
        except OSError as error:
            raise InputError(f"cannot write {self.root}: {error.strerror}; choose another --output-dir") from error

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        """The run in `folder`, with the settings and fingerprints its own record holds: the data it was made from
        may have moved since."""
        folder = Path(folder)
        if not (folder / "run.json").is_file():
            raise InputError(f"{folder} is not a run: it has no run.json; give a folder such as outputs/instruct-tiny")
        record = read_json(folder / "run.json")
        try:
            run = cls(Recipe.model_validate(record["settings"]), folder.parent)
            run._fingerprints = {name: about["fingerprint"] for name, about in record["stages"].items()}
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{folder / 'run.json'} is not a record of this version; run the series again") from None
        run.root, previous = folder, run.root
        for name in ("checkpoints", "evaluation", "plots", "notebooks"):
            setattr(run, name, folder / getattr(run, name).relative_to(previous))
        return run

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
        """The stages in which nothing is trained, each after those it needs: ready models, the base model published as
        the fine-tuned one, and, where models are ready, what they are measured with."""
        found = {stage for stage in self.stages if self.ready_model(stage)}
        if found:
            found |= {"data"} if self.recipe.policy == EMBEDDED else {"base", "data"}
        if self.recipe.tuned_policy:
            found.add("sft")
        if "sft" not in found:
            # A ready reward model is scaled by the answers of a fine-tuned policy that is still to be trained.
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

    def folder(self, stage: str) -> Path:
        """Where `stage` leaves what it made."""
        return self.checkpoints / stage

    def fingerprint(self, stage: str) -> str:
        """Hash of everything the result of `stage` depends on: settings, local data, local model, earlier stages."""
        if stage not in self._fingerprints:
            parts = [
                stage,
                self.recipe.section_hash(*self._settings(stage)),
                *(self.fingerprint(name) for name in self.needs(stage)),
                *(content_hash(local_path(source)) for source in self.sources(stage) if is_there(source)),
            ]
            self._fingerprints[stage] = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
        return self._fingerprints[stage]

    def _settings(self, stage: str) -> tuple[str, ...]:
        """The settings that change what `stage` makes."""
        settings, ready = STAGES[stage].settings, self.ready_model(stage)
        if stage == "data" and "base" not in self.stages:
            settings = STAGES["base"].settings
        if ready:
            # A ready reward model is measured on the data and scaled by the fine-tuned policy's answers all the same.
            settings = (f"models.{stage}", *(settings if stage == "reward_model" else ("name", "scale")))
        base = ("models.adapter_base",) if self.adapter_base and (ready or stage == "base") else ()
        return (*settings, *base)

    def sources(self, stage: str) -> list[str]:
        """Data and models outside the run that `stage` reads."""
        first = "base" if "base" in self.stages else "data"
        sources = [self.recipe.dataset, self.recipe.policy] if stage == first else []
        return [*sources, ready] if (ready := self.ready_model(stage)) else sources

    def record(self) -> dict:
        """The content of run.json."""
        path = self.root / "run.json"
        return read_json(path) if path.exists() else {"stages": {}, "notebooks": {}}

    def results(self, stage: str) -> dict:
        """The figures `stage` left beside what it made; InputError unless `stage` is complete."""
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

    def skips(self, stage: str) -> bool:
        """Whether `stage` need not be run: it is complete, and resuming is wanted or it was made by this process."""
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
            found = self._stamp(stage)
            again = f"run notebook {STAGES[stage].notebook} first, or `python -m rlhf_utils run` for the whole series"
            if found is None:
                raise InputError(f"{self.folder(stage)} is missing or unfinished; {again}")
            if (found["recipe"], found["scale"]) != (self.recipe.name, self.recipe.scale):
                raise InputError(
                    f"{self.folder(stage)} was made by recipe {found['recipe']} at scale {found['scale']}, "
                    f"not {self.recipe.name} at {self.recipe.scale}; {again}"
                )
            check_template(found["template_hash"], str(self.folder(stage)), self.recipe.template)
            if found["fingerprint"] != self.fingerprint(stage):
                raise InputError(f"{self.folder(stage)} was made with other settings{self._changes(stage)}; {again}")

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Run the block as stage `name`; run.json says how it went. The block must publish a folder.

        Of several processes the main one keeps the record and publishes; the others leave the block with
        `Stage.leave_to_main`, and end it when the main one does.
        """
        with stage_lock(self.root) if processes.is_main() else contextlib.nullcontext():
            yield from self._stage(name)

    def _stage(self, name: str) -> Iterator[Stage]:
        self.require(*self.needs(name))
        check_packaged(self.recipe.model_names)
        work = self.checkpoints / ".work" / f"{name}-{self.fingerprint(name)[:8]}"
        processes.wait()
        if not processes.is_main():
            processes.wait()
            with contextlib.suppress(_LeftToMain):
                yield Stage(self, name, work, {})
            processes.wait()
            self._made_here.add(name)
            return
        if not self.resume and name not in self._made_here:
            shutil.rmtree(work, ignore_errors=True)
        with disk_errors(work):
            work.mkdir(parents=True, exist_ok=True)
        processes.wait()
        started = time.time()
        # Filled while the stage runs: the commit of whatever it reads from the hub.
        commits: dict[str, str] = {}
        about = {"started": _clock(started), "fingerprint": self.fingerprint(name), **provenance(), "hub": commits}
        stage = Stage(self, name, work, about)
        self._write_stage(name, {"state": "running", **about})
        try:
            with disk_errors(work), remembering(self.root), recording(commits), measuring() as taken:
                yield stage
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            self._write_stage(name, {"state": state, **about, "error": f"{type(error).__name__}: {error}"[:500]})
            raise
        seconds = round(time.time() - started, 1)
        self._write_stage(
            name,
            {"state": "complete", **about, "seconds": seconds, **taken, "results": stage.results},
        )
        # With what attempts with other settings left: the stage they were for is another one now.
        for old in work.parent.glob(f"{name}-*"):
            shutil.rmtree(old, ignore_errors=True)
        self._made_here.add(name)
        processes.wait()

    def note_made(self, stage: str) -> None:
        """Another process made `stage` on behalf of this one: it need not be made again here, even without resuming."""
        self._made_here.add(stage)

    def progress(self, text: str, step: int | None = None, total: int | None = None) -> None:
        """Tell whoever started the series (it polls this file) what is going on."""
        if processes.is_main():
            write_json(self.root / ".progress.json", {"text": text, "step": step, "total": total})

    def note_notebook(self, name: str, **about: Any) -> None:
        """Record in run.json how notebook `name` ended."""
        record = self._settled_record()
        record["notebooks"][name] = about
        write_json(self.root / "run.json", record)

    def _stamp(self, stage: str) -> dict | None:
        path = self.folder(stage) / "stage.json"
        return read_json(path) if os.path.isfile(path) else None

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

    def _write_stage(self, name: str, about: dict) -> None:
        if not processes.is_main():
            return
        record = self._settled_record()
        record["stages"][name] = about
        write_json(self.root / "run.json", record)

    def _changes(self, stage: str) -> str:
        """Which settings differ from those `stage` was made with, for the error message."""
        before = flat((self._stamp(stage) or {}).get("settings", {}))
        now = flat(self.recipe.model_dump(mode="json"))
        relevant = tuple(f"{key}." for name in self._ancestry(stage) for key in self._settings(name))
        changed = [
            f"{key} {before[key]!r} -> {now[key]!r}"
            for key in now
            if key in before and before[key] != now[key] and f"{key}.".startswith(relevant)
        ]
        return f" ({', '.join(changed[:3])})" if changed else " or data"

    def _ancestry(self, stage: str) -> list[str]:
        return [stage, *(ancestor for name in self.needs(stage) for ancestor in self._ancestry(name))]


@dataclass
class Stage:
    """A stage while it runs. `work` survives an interruption; `results` go beside what was made and to run.json.

    `made` says when, with which versions and on which device.
    """

    run: Run
    name: str
    work: Path
    made: dict[str, Any]
    results: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, figures: Callable[[], Any]) -> Any:
        """`figures()`, a JSON value; a stage that was interrupted after it reads what it had found from `work`."""
        path = self.work / f"{name}.json"
        if not path.is_file():
            write_json(path, figures())
        return read_json(path)

    def leave_to_main(self) -> None:
        """From here on the main process works alone: any other one leaves the stage's block and waits for its end."""
        if not processes.is_main():
            raise _LeftToMain

    @contextmanager
    def publish(self) -> Iterator[Path]:
        """A temporary folder that becomes `checkpoints/<stage>` when the block ends without an error.

        `results` have to be there by the end of the block: they are published together with the folder.
        """
        with phase("publish"), whole_folder(self.run.folder(self.name)) as folder:
            yield folder
            recipe = self.run.recipe
            write_json(
                folder / "stage.json",
                {
                    "stage": self.name,
                    "recipe": recipe.name,
                    "scale": recipe.scale,
                    "seed": recipe.seed,
                    "fingerprint": self.run.fingerprint(self.name),
                    "template_hash": recipe.template.hash,
                    "settings": recipe.model_dump(mode="json"),
                    "results": self.results,
                    "made": self.made,
                },
            )


class _LeftToMain(Exception):
    """Ends a stage's block in a process that has nothing left to do in it."""


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
