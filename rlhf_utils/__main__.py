"""The command line: `python -m rlhf_utils COMMAND`. Progress goes to stderr, results to stdout."""

import argparse
import contextlib
import json
import signal
import sys
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path

from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError, TrainingError, visible
from rlhf_utils.platforms.files import parse_json, read_json
from rlhf_utils.platforms.runtime import detect_device, prepare_environment, quiet_libraries
from rlhf_utils.runs.run import Run
from rlhf_utils.runs.stages import ROOT
from rlhf_utils.runs.stopping import Stopped, handled
from rlhf_utils.series import located, run_seeds, run_series, train
from rlhf_utils.settings.recipes import SCALES, Recipe, load_recipe, parse_assignments, recipe_names


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns 0, 1 (failed), 2 (bad input, one line on stderr), or 128 + the signal that ended it."""
    options = _parser().parse_args(arguments)
    prepare_environment()
    try:
        with handled(Stopped.at_once):
            options.run_command(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        if processes.is_main():
            print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)
    except BrokenPipeError:
        # Whoever read the results (head, less) has seen enough; Python would complain again when closing stdout.
        sys.stdout = None
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        print(f"error: {message}; see `{self.prog} --help`", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m rlhf_utils", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    def command(run_command: Callable[[argparse.Namespace], None], help: str) -> Callable[..., None]:
        """A command by the name of its function; returns what adds an argument to it."""
        added = commands.add_parser(run_command.__name__[1:], help=help)
        added.set_defaults(run_command=run_command)
        return added.add_argument

    def of_a_run(add: Callable[..., None]) -> None:
        add("--recipe", default="instruct", help="which system (see `recipes`)")
        add("--scale", default="tiny", help="tiny (CPU, minutes, no network), small (CPU or GPU), t4, full")
        add("--output-dir", default="outputs", help="the run's folder is made in here")
        change = "change a setting, e.g. --set ppo.updates=16 --set dataset=my_pairs.jsonl"
        add("--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments", help=change)
        add("--fresh", action="store_true", help="make everything again, even what is complete")

    folder = {"required": True, "type": Path, "help": "a run's folder, e.g. outputs/instruct-tiny"}
    add = command(_run, "run the notebook series and print the comparison")
    of_a_run(add)
    add("--only", metavar="01,02", help="only the notebooks whose number starts so")
    add("--seeds", type=int, default=1, metavar="N", help="so many runs, seed by seed, and their figures merged")
    add = command(_train, "a notebook's code cells; with `accelerate launch -m` on several GPUs")
    add("notebook", help="its number, such as 01_02")
    of_a_run(add)
    add("--settings", type=Path, metavar="FILE", help="all settings from a file, such as run.json")
    command(_recipes, "list the recipes and their scales")
    add = command(_rouge, 'ROUGE-1/2/L of {"predictions": [...], "references": [...]}')
    add("file")
    add = command(_rank, "rank your own responses with a run's reward model")
    add("--run", **folder)
    add("--prompt", required=True)
    add("--responses", required=True, help="file with one response per line, - for standard input")
    add = command(_rate, "a reward model's accuracy on any preference set")
    add("model", help="a folder or hub id, such as outputs/instruct-tiny/checkpoints/reward_model")
    add("--data", required=True, help="file, folder or hub id of pairs; a column `subset` divides them")
    add = command(_playground, "chat with a run's models side by side, in a browser on this machine")
    add("--run", **folder)
    add("--port", type=int, default=0, help="on 127.0.0.1; without it any that is free")
    add = command(_judge, "verdicts of people or of language models on a run's blinded pairs")
    add("--run", **folder)
    add("--verdicts", type=Path, help='people\'s, as lines {"id", "verdict": first|second|tie, "judge"}')
    add("--llm", action="store_true", help="ask the models named by RLHF_JUDGE_URL and RLHF_JUDGE_MODEL (a,b)")
    add("--most", type=int, help="ask about so many pairs at most, 1 or more")
    add("--yes", action="store_true", help="ask without showing the cost first")
    add = command(_show, "what a published or finished run found, and its page in a browser")
    add("run", help="a published run, such as imdb-small, or a run's folder")
    add = command(_compare, "several runs side by side: a table, a picture")
    add("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs; seeds are merged")
    add("--output-dir", default="outputs/comparison", help="gets comparison.{csv,png}")
    add = command(_push, "upload a run's model with its card to the Hugging Face hub")
    add("--run", **folder)
    add("--stage", default="ppo", help="whose model (default ppo)")
    add("--to", help="owner/name; without it the card is only printed")
    add("--private", action="store_true", help="make a private repository")
    return parser


def _run(options: argparse.Namespace) -> None:
    only = [part.strip() for part in options.only.split(",")] if options.only is not None else None
    overrides = parse_assignments(options.assignments)
    given = options.recipe, options.scale, options.output_dir, overrides
    if options.seeds == 1:
        run = run_series(*given, only, options.fresh)
    elif only is not None:
        raise InputError("--seeds compares whole runs; leave out --only")
    else:
        run = run_seeds(*given, options.seeds, options.fresh)
    if run.is_complete("evaluation"):
        print(_result(run.root, merged=options.seeds > 1))
    print(f"Everything is in {run.root}")


def _result(run: Path, merged: bool) -> str:
    """What the run in that folder found, as text for a terminal: of several seeds where wanted and there."""
    from rlhf_utils.evaluation.seeds import between_seeds
    from rlhf_utils.report.findings import text_summary
    from rlhf_utils.report.seeds import seeds_text

    found = between_seeds(run) if merged else None
    return seeds_text(found) if found else text_summary(read_json(run / "evaluation" / "summary.json"))


def _show(options: argparse.Namespace) -> None:
    published = ROOT / "docs" / "example_run"
    places = [Path(options.run), published / options.run]
    if not (run := next((path for path in places if (path / "report.html").is_file()), None)):
        names = ", ".join(sorted(path.parent.name for path in published.glob("*/report.html"))) or "none here"
        raise InputError(f"{options.run} is no run with a report.html, nor a published one; published: {names}")
    # One seed first, then several where there are.
    print(*dict.fromkeys(_result(run, merged) for merged in (False, True)), sep="\n\n")
    page = (run / "report.html").resolve().as_uri()
    print(f"The whole page: {page}")
    if sys.stdout.isatty():
        webbrowser.open(page)


def _train(options: argparse.Namespace) -> None:
    with processes.one_voice():
        if options.settings:
            recipe = Recipe.from_settings(options.settings)
        else:
            recipe = load_recipe(options.recipe, options.scale, located(parse_assignments(options.assignments)))
        with contextlib.redirect_stdout(sys.stderr):
            results = train(options.notebook, recipe, options.output_dir, not options.fresh)
        if processes.is_main():
            print(json.dumps(results, indent=2))


def _recipes(_: argparse.Namespace) -> None:
    for name in recipe_names():
        print(f"{name}: {load_recipe(name).title}. {load_recipe(name).description}")
        for scale in SCALES:
            recipe = load_recipe(name, scale)
            needs, memory = recipe.needs, "memory" if "CPU" in recipe.needs.machine else "GPU memory"
            download = f"{needs.download_gb:g} GB to download" if needs.download_gb else "nothing to download"
            print(f"  --scale {scale:<5} policy {recipe.policy}, data {recipe.dataset}")
            print(f"      {needs.machine}: {needs.minutes:.0f} min, {needs.memory_gb:g} GB of {memory}, {download}")
    print("tiny and small were timed on two CPU cores (docs/example_run has published runs); the rest are estimates.")


def _rouge(options: argparse.Namespace) -> None:
    from rlhf_utils.evaluation.rouge import Rouge

    pairs = parse_json(_read_text(options.file), options.file)
    said, wanted = (pairs.get(key) if isinstance(pairs, dict) else None for key in ("predictions", "references"))
    if not isinstance(said, list) or not isinstance(wanted, list):
        raise InputError(f"{options.file} must hold a JSON object with the lists predictions and references")
    print(json.dumps(Rouge().compute(predictions=said, references=wanted)))


def _rank(options: argparse.Namespace) -> None:
    responses = [line.strip() for line in _read_text(options.responses).split("\n") if line.strip()]
    if not responses:
        raise InputError(f"{options.responses} has no response; give one per line")
    if not options.prompt.strip():
        raise InputError("--prompt is empty; give the question the responses answer")
    run = _opened(options.run)
    run.require("reward_model")

    from rlhf_utils.rewards import load_reward

    reward = load_reward(run.folder("reward_model"), detect_device())
    scores, ranked = reward([options.prompt] * len(responses), responses).tolist(), []
    for score, response in sorted(zip(scores, responses, strict=True), key=lambda pair: -pair[0]):
        ranked.append({"rank": len(ranked) + 1, "reward": round(score, 4), "response": response})
    print(visible(json.dumps({"prompt": options.prompt, "ranking": ranked}, indent=2, ensure_ascii=False)))


def _rate(options: argparse.Namespace) -> None:
    from rlhf_utils.evaluation.rating import rate

    print(json.dumps(rate(options.model, options.data), indent=2))


def _playground(options: argparse.Namespace) -> None:
    run = _opened(options.run)

    from rlhf_utils.evaluation.playground import Playground, serve

    page, url = serve(Playground(run), options.port)
    print(url, flush=True)
    print("open it in a browser; Ctrl-C ends it", file=sys.stderr)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    page.close(verbose=False)


def _judge(options: argparse.Namespace) -> None:
    from rlhf_utils.evaluation import judging

    folder = options.run / "evaluation"
    pairs = judging.read_pairs(folder)
    if options.verdicts:
        for judge, given in judging.read_verdicts(options.verdicts, folder).items():
            for pair, verdict in given.items():
                judging.add_verdict(folder, pair, verdict, judge)
    if options.most is not None and options.most < 1:
        raise InputError(f"--most {options.most}: give the number of pairs to ask about, 1 or more")
    if options.llm:
        endpoint = judging.Endpoint()
        price = judging.cost(pairs[: options.most], len(endpoint.models))
        print(f"{', '.join(endpoint.models)} at {endpoint.url}: {price}", file=sys.stderr)
        if not options.yes:
            raise InputError("nothing was asked yet: add --yes if that is worth it to you, or --most N for fewer pairs")
        for model, told in judging.judge_pairs(folder, endpoint, options.most).items():
            alike = f"{told['consistent']} judged alike in both orders, {told['unreadable']} unreadable"
            print(f"{model}: asked about {told['asked']} pairs: {alike}", file=sys.stderr)
    print(json.dumps(judging.outcome(folder), indent=2))


def _compare(options: argparse.Namespace) -> None:
    from rlhf_utils.report.page import compare

    for row in compare(options.runs, options.output_dir):
        print(*(f"{title}: {value}" for title, value in row.items()), sep="\n  ")
    print(f"Everything is in {options.output_dir}")


def _push(options: argparse.Namespace) -> None:
    run = _opened(options.run)

    from rlhf_utils.report.cards import model_card, push_to_hub

    push = options.to is not None and push_to_hub(run, options.stage, options.to, options.private)
    print(push or model_card(run, options.stage))


def _opened(folder: Path) -> Run:
    run = Run.load(folder)
    quiet_libraries()
    return run


def _read_text(source: str) -> str:
    try:
        return (sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()).decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None


if __name__ == "__main__":
    sys.exit(main())
