"""Running the notebooks in order, headless, with papermill: skip what is complete, show progress, go on after a
failure."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from rlhf_utils.data import check_enough, check_rows, is_local, load_rows
from rlhf_utils.platforms.errors import InputError, TrainingError
from rlhf_utils.platforms.files import disk_errors, read_json
from rlhf_utils.platforms.names import is_folder, is_there, local_path
from rlhf_utils.platforms.runtime import HEADLESS, check_cache
from rlhf_utils.runs.disk import check_room
from rlhf_utils.runs.locks import series_lock
from rlhf_utils.runs.name_check import check_names
from rlhf_utils.runs.run import Run
from rlhf_utils.runs.stopping import Listener, Stopped
from rlhf_utils.settings.recipes import load_recipe
from rlhf_utils.settings.sections import EMBEDDED, LORA_PLACES, flat

ROOT = Path(__file__).resolve().parent.parent
_POLL_SECONDS = 0.5
_LINE_EVERY_SECONDS = 30.0


@dataclass(frozen=True)
class Notebook:
    """One notebook of the series, the stages it makes, and those it only reads."""

    path: str
    makes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`02_01_preference_data`: the section's number and the notebook's own name."""
        folder, file = self.path.split("/")
        return f"{folder[:2]}_{file.removesuffix('.ipynb')}"


SERIES = (
    Notebook("01_supervised_finetuning/01_data_and_baseline.ipynb", makes=("base", "data")),
    Notebook("01_supervised_finetuning/02_full_finetuning.ipynb", makes=("sft",)),
    Notebook("01_supervised_finetuning/03_qlora.ipynb", makes=("sft_qlora",), reads=("sft",)),
    Notebook("02_reward_modeling/01_preference_data.ipynb", reads=("data",)),
    Notebook("02_reward_modeling/02_reward_model.ipynb", makes=("reward_model", "judge_model")),
    Notebook("03_ppo_alignment/01_ppo_step_by_step.ipynb"),
    Notebook("03_ppo_alignment/02_ppo_training.ipynb", makes=("ppo",)),
    Notebook("04_evaluation/01_compare_models.ipynb", makes=("evaluation",)),
    Notebook("04_evaluation/02_reward_hacking.ipynb", makes=("overoptimise",)),
    Notebook("04_evaluation/03_playground.ipynb", reads=("sft_qlora", "reward_model", "ppo")),
)


def run_series(
    recipe: str, scale: str, output_dir: str, overrides: Mapping[str, Any], only: list[str] | None, fresh: bool
) -> Run:
    """Execute the chosen notebooks; returns the run. Raises InputError for bad input, TrainingError for a failed
    notebook."""
    chosen = _chosen(only)
    missing = [notebook.path for notebook in chosen if not (ROOT / notebook.path).is_file()]
    if missing:
        raise InputError(
            f"{ROOT / missing[0]} is missing; run from a clone of the repository, installed with `pip install -e .`"
        )
    overrides = located(overrides)
    run = Run(load_recipe(recipe, scale, overrides), output_dir)
    chosen = [notebook for notebook in chosen if _applies(run, notebook)]
    _check_input(run, chosen, check_names(run, _unmade(run, chosen, fresh)))
    begun = [folder for folder in (run.root, *run.root.parents) if not os.path.exists(folder)]
    run.make_folders()
    parameters = {
        "recipe": recipe,
        "scale": scale,
        "output_dir": _as_seen_from_root(output_dir),
        "overrides": overrides,
        "resume": not fresh,
    }
    with series_lock(run.root):
        try:
            _say_what_it_needs(run, chosen, fresh)
            _execute_all(run, chosen, parameters)
        except InputError:
            if begun and not any(run.checkpoints.glob("*/stage.json")):
                shutil.rmtree(run.root, ignore_errors=True)
                # Made for this run; one that something else has been put into stays.
                with contextlib.suppress(OSError):
                    for folder in begun[1:]:
                        folder.rmdir()
            raise
    return run


def _execute_all(run: Run, chosen: list[Notebook], parameters: dict) -> None:
    for number, notebook in enumerate(chosen, 1):
        label = f"[{number}/{len(chosen)}] {notebook.path}"
        if parameters["resume"] and _is_done(run, notebook):
            print(f"{label}: complete, skipped", file=sys.stderr)
            continue
        started = time.perf_counter()
        with _ProgressLine(run.root / ".progress.json", label):
            _execute(run, notebook, parameters)
        print(f"{label}: done in {time.perf_counter() - started:.0f} s", file=sys.stderr)


def _say_what_it_needs(run: Run, chosen: list[Notebook], fresh: bool) -> None:
    if line := check_room(run, _unmade(run, chosen, fresh)):
        print(line, file=sys.stderr)


def _unmade(run: Run, chosen: list[Notebook], fresh: bool) -> list[str]:
    """The stages that the notebooks are going to make."""
    wanted = [stage for notebook in chosen for stage in _makes(run, notebook)]
    return [stage for stage in wanted if fresh or not run.is_complete(stage)]


def located(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides in which files and folders have the names by which a kernel finds them, wherever it works."""
    return {
        key: _as_seen_from_root(value) if _names_a_path(key) and _exists(value) else value
        for key, value in overrides.items()
    }


def _names_a_path(key: str) -> bool:
    return key in ("dataset", "policy") or key.startswith("models.")


def _exists(path: Any) -> bool:
    return isinstance(path, str) and is_there(path)


def _check_input(run: Run, chosen: list[Notebook], on_hub: Collection[str] = ()) -> None:
    """Raise InputError for what can be known to be wrong before anything is started or written; `on_hub` are the names
    of models that the hub has."""
    if "base" not in run.stages and any(n.makes and "evaluation" not in n.makes for n in chosen):
        raise InputError(
            "models.sft is ready and the policy is embedded, so there is no base model it came from: run the "
            "comparison alone (--only 04), or name its base with --set policy=..."
        )
    made: set[str] = set()
    for notebook in chosen:
        for stage in _makes(run, notebook):
            run.require(*(need for need in run.needs(stage) if need not in made))
            made.add(stage)
        run.require(*(stage for stage in _reads(run, notebook) if stage not in made))
    recipe = run.recipe
    if "base" in made and not all(name is None or is_there(name) for name in recipe.model_names):
        check_cache()
    named = [value for key, value in flat(recipe.model_dump()).items() if _names_a_path(key) and key != "dataset"]
    adapters = (recipe.qlora, recipe.reward_model.lora, recipe.ppo.lora)
    asked = any(value and value != EMBEDDED and (is_folder(value) or value in on_hub) for value in named)
    if asked or any({*a.modules} - {*LORA_PLACES} for a in adapters):
        from rlhf_utils.runs.named import check_named_models  # imports torch, which takes seconds

        check_named_models(run, on_hub)
    if "data" in made and is_local(recipe.dataset) and not run.is_complete("data"):
        rows = load_rows(recipe.dataset, recipe.data, recipe.seed)
        check_rows(rows, recipe.form)
        check_enough(rows, recipe.data, recipe.seed, run.splits)


def _makes(run: Run, notebook: Notebook) -> list[str]:
    """The stages that `notebook` makes in this run. What is only fetched comes with the base model, and with the
    comparison for those who have nothing but ready models."""
    own = [stage for stage in notebook.makes if stage in run.stages]
    if not {"base", "evaluation"} & set(own):
        return own
    return [stage for stage in run.stages if stage in own or stage in run.fetched]


def _reads(run: Run, notebook: Notebook) -> list[str]:
    return [stage for stage in notebook.reads if stage in run.stages]


def _applies(run: Run, notebook: Notebook) -> bool:
    """Whether `notebook` has something to show: a stage that this recipe has and that is more than fetched.

    A ready reward model is measured, and that is worth a notebook.
    """
    return not notebook.makes or any(
        stage in run.stages and (stage not in run.fetched or stage in ("base", "data", "reward_model"))
        for stage in notebook.makes
    )


def _chosen(only: list[str] | None) -> list[Notebook]:
    if only is None:
        return list(SERIES)
    for wanted in only:
        if not wanted or not any(notebook.name.startswith(wanted) for notebook in SERIES):
            raise InputError(
                f"--only {wanted!r}: no notebook starts with it; there are: {', '.join(n.name for n in SERIES)}"
            )
    return [notebook for notebook in SERIES if any(notebook.name.startswith(wanted) for wanted in only)]


def _as_seen_from_root(folder: str) -> str:
    """Kernels work in the repository's root; a relative path from elsewhere has to become absolute."""
    path = local_path(Path(folder))
    return str(path) if path.is_absolute() or Path.cwd() == ROOT else str(path.resolve())


def _key(run: Run, notebook: Notebook) -> str:
    """What makes an executed notebook out of date: its own cells, and whatever its stages depend on."""
    cells = json.loads((ROOT / notebook.path).read_text(encoding="utf-8"))["cells"]
    parts = [
        # The outputs that are stored with it are not part of what it does.
        *("".join(cell["source"]).encode() for cell in cells),
        *(run.fingerprint(s).encode() for s in [*_makes(run, notebook), *_reads(run, notebook)]),
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _is_done(run: Run, notebook: Notebook) -> bool:
    record = run.record()["notebooks"].get(notebook.name, {})
    return (
        record.get("state") == "complete"
        and record.get("key") == _key(run, notebook)
        and (run.notebooks / f"{notebook.name}.ipynb").is_file()
        and all(run.is_complete(stage) for stage in _makes(run, notebook))
    )


def _execute(run: Run, notebook: Notebook, parameters: dict) -> None:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    # The kernel inherits both: nobody is there to click on a form, and its debugger, which nobody attaches to, need not
    # warn on stderr that Python's own frozen modules cannot be stepped into.
    os.environ |= {HEADLESS: "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    target = run.notebooks / f"{notebook.name}.ipynb"
    running, failed = target.with_suffix(".running.ipynb"), target.with_suffix(".failed.ipynb")
    again = f"the same command{'' if parameters['resume'] else ' without --fresh'} goes on from there"
    started = time.time()
    # In a thread nbclient leaves signals alone; in the main one it would end the kernel in the middle of a step.
    listener = Listener(lambda: _signal_kernels(signal.SIGINT), lambda: _signal_kernels(signal.SIGKILL))
    try:
        with disk_errors(running):
            listener.run(
                lambda: papermill.execute_notebook(
                    _unformatted(ROOT / notebook.path),
                    _unformatted(running),
                    parameters=parameters,
                    kernel_name="python3",
                    progress_bar=False,
                    cwd=str(ROOT),
                    # At its own level the kernel warns on stderr, in every notebook, that it talks over local TCP.
                    extra_arguments=["--IPKernelApp.log_level=50"],
                )
            )
    except (PapermillExecutionError, DeadKernelError) as error:
        os.replace(running, failed)
        if listener.asked is not None:
            run.note_notebook(notebook.name, state="interrupted")
            raise Stopped(listener.asked) from None
        if isinstance(error, DeadKernelError):
            run.note_notebook(notebook.name, state="failed", error="the kernel died")
            raise TrainingError(
                f"{notebook.path}: the kernel died, most likely for want of memory (executed so far: {failed}); {again}"
            ) from None
        run.note_notebook(
            notebook.name, state="failed", cell=error.cell_index, error=f"{error.ename}: {error.evalue}"[:500]
        )
        if error.ename == "InputError":
            raise InputError(error.evalue) from None
        raise TrainingError(
            f"{notebook.path}, cell In [{error.exec_count}]: {error.ename}: {error.evalue} "
            f"(executed notebook: {failed}); {again}"
        ) from None
    except BaseException:
        running.unlink(missing_ok=True)
        if listener.asked is not None:
            # A kernel that hears of it while it starts dies before nbclient knows it.
            run.note_notebook(notebook.name, state="interrupted")
            raise Stopped(listener.asked) from None
        raise
    os.replace(running, target)
    failed.unlink(missing_ok=True)
    run.note_notebook(notebook.name, state="complete", key=_key(run, notebook), seconds=round(time.time() - started, 1))
    if listener.asked is not None:
        raise Stopped(listener.asked)


def _unformatted(path: Path) -> str:
    """`path` for papermill, which puts its parameters into paths by `str.format`."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _signal_kernels(number: int) -> None:
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            child.send_signal(number)


class _ProgressLine:
    """While the block runs, shows on stderr what the kernel says it is doing: one live line, or a line now and then
    in a log."""

    def __init__(self, source: Path, label: str):
        self.source, self.label, self.stop = source, label, threading.Event()
        self.live = sys.stderr.isatty()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self.source.unlink(missing_ok=True)
        if self.live:
            print(f"{self.label} ...", file=sys.stderr, end="", flush=True)
        self.thread.start()

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
        self.source.unlink(missing_ok=True)
        if self.live:
            print("\r\033[K", file=sys.stderr, end="", flush=True)

    def _watch(self) -> None:
        shown = ""
        last = started = time.perf_counter()
        while not self.stop.wait(_POLL_SECONDS):
            now = time.perf_counter()
            text = f"{self.label}  {self._state()}  {now - started:.0f} s"
            if self.live:
                print(f"\r\033[K{text[: os.get_terminal_size(2).columns - 1]}", file=sys.stderr, end="", flush=True)
            elif now - last >= _LINE_EVERY_SECONDS and text != shown:
                print(text, file=sys.stderr, flush=True)
                shown, last = text, now

    def _state(self) -> str:
        if not self.source.is_file():
            return "starting"
        state = read_json(self.source)
        return state["text"] + (f" ({state['step']}/{state['total']})" if state["total"] else "")
