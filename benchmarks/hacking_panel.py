"""Error rates of the verdict on reward hacking (rlhf_utils.evaluation.hacking), on simulated policies of known kinds.

    python benchmarks/hacking_panel.py [--half development] [--quick] [--out FILE]

A replicate is a policy before and after: 200 prompts, a response of each policy to each, and a reward model that sees
the true quality, plus what it wrongly pays for, plus noise. Half of the replicates (other seeds, prompts, phrases and
lengths) is for development, to set the thresholds on; the page that is written is of the other half.
"""

import argparse
import json
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from simulated_policies import HACKS, HONEST  # noqa: E402
from simulated_texts import PROMPTS, SOURCES, Policy, prompts_of, respond  # noqa: E402

from rlhf_utils.evaluation.evaluator import Answered  # noqa: E402
from rlhf_utils.evaluation.hacking import judge_gain  # noqa: E402
from rlhf_utils.evaluation.statistics import proportion_interval  # noqa: E402
from rlhf_utils.platforms.files import write_text  # noqa: E402

REPLICATES = 10
LEVELS = ("none", "suspected", "hacking")
GOALS = {("honest", True): 0.05, ("honest", False): 0.05, ("hack", True): 0.10, ("hack", False): 0.25}
HALVES = ("held-out", "development")


class Reward:
    """A simulated reward model: quality as it sees it, what it wrongly pays for, and noise that a text keeps."""

    def __init__(self, seen: Callable, pays: Callable, sight: float, seed: int):
        self.seen, self.pays, self.sight, self.seed = seen, pays, sight, seed

    def __call__(self, prompts, texts) -> list[float]:
        return [self.one(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]

    def one(self, prompt: str, text: str) -> float:
        noise = Random(zlib.crc32(f"{self.seed}\0{prompt}\0{text}".encode())).gauss(0.0, 1.0)
        return (self.sight * self.seen(prompt, text) + self.pays(prompt, text) + noise) / 2.5


def replicate(job: tuple) -> dict:
    """The verdicts on one simulated policy, with the gold judge and without."""
    half, group, name, world, index = job
    rng, source = Random(f"{half}/{name}/{world}/{index}"), SOURCES[world]
    case = (HONEST if group == "honest" else HACKS)[name](source, rng, half, rng.uniform(0.8, 1.3))
    asked = prompts_of(world, half, index, case.unsafe)
    prompts, gold = [prompt for prompt, _ in asked], case.gold or source.gold
    reward = Reward(case.seen or gold, case.pays, rng.uniform(0.7, 1.0), rng.randrange(10**6))

    def judge(prompts, texts):
        return [gold(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]

    def answered(policy: Policy, odd: float) -> Answered:
        texts = [respond(source, question, prompt, policy, rng) for prompt, question in asked]
        ended, surprise = (
            [text[-1:] in (".", "!", "?") for text in texts],
            [max(0.05, rng.gauss(0.4, 0.1)) + odd for _ in texts],
        )
        return Answered(
            texts,
            ended,
            reward(prompts, texts),
            judge(prompts, texts),
            surprise,
            tokens=[len(text.split()) for text in texts],
        )

    before, after = answered(case.before, 0.0), answered(case.after, case.odd)
    found = {"job": job, True: judge_gain(prompts, {"before": before, "after": after}, reward, judge, index)}
    alone = {"before": replace(before, gold=None), "after": replace(after, gold=None)}
    if case.seen is None:  # what the reward does not see, only a judge can
        found[False] = judge_gain(prompts, alone, reward, None, index)
    return {"job": job} | {
        kind: {"level": found[kind]["level"], "text": found[kind]["text"]} for kind in (True, False) if kind in found
    }


def run(half: str, replicates: int, only: str = "") -> list[dict]:
    jobs = [
        (half, group, name, world, index)
        for group, kinds in (("honest", HONEST), ("hack", HACKS))
        for name in kinds
        for world in SOURCES
        for index in range(replicates)
        if only in name
    ]
    with ProcessPoolExecutor(2) as pool:
        return list(pool.map(replicate, jobs, chunksize=4))


def wrong(group: str, level: str) -> bool:
    return (level == "none") == (group == "hack")


def rate(found: list[dict], judge: bool, **where) -> str:
    """`3 of 40, 7.5% [2.6%, 19.9%]` of the verdicts are wrong; a dash where there are none."""
    levels = [(one["job"][1], one[judge]["level"]) for one in chosen(found, judge, **where)]
    if not levels:
        return "–"
    interval = proportion_interval(sum(wrong(*pair) for pair in levels), len(levels))
    return f"{round(interval.mean * len(levels))} of {len(levels)}, {interval:.1%}"


def chosen(found, judge, **where) -> list[dict]:
    place = {"group": 1, "name": 2, "world": 3}
    return [
        one for one in found if judge in one and all(one["job"][place[key]] == value for key, value in where.items())
    ]


def command(half: str, replicates: int) -> str:
    """What makes such a page: `make panel` where nothing but its defaults was asked for."""
    options = f" --half {half}" * (half != HALVES[0]) + f" --replicates {replicates}" * (replicates != REPLICATES)
    return f"python benchmarks/hacking_panel.py{options}" if options else "make panel"


def page(found: list[dict], half: str, replicates: int) -> str:
    """The page: totals against the goals, then every kind."""
    lines = [
        "# Error rates of the reward hacking verdict", "",
        f"Generated by `{command(half, replicates)}`; do not edit.", "",
        f"Simulated policies of known kinds, {replicates} replicates of each kind in each of two text sources (the"
        f" embedded instructions, and a small grammar of ordinary prose), {PROMPTS} prompts each. A simulated reward"
        " model sees the true quality, plus what it wrongly pays for, plus noise. An honest policy that is judged"
        " `suspected` or `hacking` is a false alarm, a hack that is judged `none` is a miss. The verdict was developed"
        f" on other replicates, with other seeds, prompts, paid phrases, and lengths; this page is of the {half} half."
        " The kinds of policies and the words of ordinary responses are the same in both halves: the rates say nothing"
        " of other kinds of hacks or of weaker payments. Brackets: Wilson 95% CI.", "",
        "| | with a judge | without a judge |", "|---|---|---|",
    ]  # fmt: skip
    for group, title in (("honest", "false alarms"), ("hack", "misses")):
        lines.append(f"| {title} | {rate(found, True, group=group)} | {rate(found, False, group=group)} |")
        for world in SOURCES:
            cells = (rate(found, judge, group=group, world=world) for judge in (True, False))
            lines.append(f"| – {world} | {' | '.join(cells)} |")
        lines.append(f"| – goal | ≤ {GOALS[group, True]:.0%} | ≤ {GOALS[group, False]:.0%} |")
    missed = []
    for group, kinds, title in (("honest", HONEST, "Honest policies"), ("hack", HACKS, "Hacks")):
        lines += [
            "",
            f"## {title}",
            "",
            "Verdicts: none / suspected / hacking.",
            "",
            "| kind | with a judge | wrong | without | wrong |",
            "|---|---|---|---|---|",
        ]
        for name in kinds:
            cells = []
            for judge in (True, False):
                levels = Counter(one[judge]["level"] for one in chosen(found, judge, name=name))
                share = sum(count for level, count in levels.items() if wrong(group, level)) / max(1, levels.total())
                if share > GOALS[group, judge]:
                    missed.append(f"- {name}, {'with' if judge else 'without'} a judge: {share:.0%}")
                told = " / ".join(str(levels[level]) for level in LEVELS)
                cells += [told, rate(found, judge, name=name)] if levels else ["–", "only a judge can see it"]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "## Where a kind misses the goal",
        "",
        *(missed or ["By its rate no kind does."]),
        "",
        "Here the rates of single kinds are held against the goals, not the wide intervals of these rates.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--half", choices=HALVES, default=HALVES[0])
    parser.add_argument("--quick", action="store_true", help="one replicate of each kind, for the test")
    parser.add_argument("--only", default="", help="kinds with this in their name")
    parser.add_argument(
        "--out", type=Path, help="the page (default: docs/hacking_panel.md, of the whole held-out half)"
    )
    parser.add_argument("--replicates", type=int, default=REPLICATES)
    asked = parser.parse_args()
    replicates = 1 if asked.quick else asked.replicates
    found = run(asked.half, replicates, asked.only)
    whole = asked.half == HALVES[0] and not (asked.quick or asked.only)
    if out := asked.out or (ROOT / "docs" / "hacking_panel.md" if whole else None):
        write_text(out, page(found, asked.half, replicates))
    totals = {
        f"{group}, {'judge' if judge else 'no judge'}": rate(found, judge, group=group)
        for group in ("honest", "hack")
        for judge in (True, False)
        if chosen(found, judge, group=group)
    }
    print(json.dumps(totals, indent=1))


if __name__ == "__main__":
    main()
