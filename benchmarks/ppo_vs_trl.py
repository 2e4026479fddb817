"""`rlhf_utils.ppo` against the last PPO trainer of trl (1.12), in paired runs: episodes per second, memory, reward; and
against what trl offers since (RLOO, GRPO): the time to the same reward, and the gold preference there.

    python benchmarks/ppo_vs_trl.py [--quick] [--json FILE] [--repeats 3] [--run outputs/instruct-tiny]

Both programs get the same randomly initialized GPT-2 124M, prompts, episodes, response lengths, epochs, microbatches,
and train every weight. "fixed": prompts of 32 tokens, responses of 48. "ragged": prompt lengths of real questions, and
responses that end after 40 tokens on average, 128 at most. trl is installed into benchmarks/.trl-1.12, beside the
environment of this project, so that torch and transformers are the same on both sides. RLOO and GRPO are those of the
environment's own trl.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from workload import DTYPES, EPOCHS, matmul_rate, prepare, reached, settings

HERE = Path(__file__).resolve().parent
TRL = HERE / ".trl-1.12"
HELPFUL = HERE.parents[1] / "shared" / "data" / "hh_helpful.jsonl.gz"
# Episodes an update: with these a pair of each takes about seven minutes on two cores.
EPISODES = {"fixed": 256, "ragged": 64} if torch.cuda.is_available() else {"fixed": 12, "ragged": 8}
# Reward, in standard deviations of the SFT model's responses, that both have to reach on the synthetic dataset.
REWARD = 0.6
# The learning rates that each is tried at; the fastest one of each counts. --quick tries the highest.
RATES = (1e-4, 3e-4, 1e-3)
PROGRAMS = ("ours", "trl", "rloo", "grpo")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one pair of runs in fp32, one learning rate")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of runs for each workload (default 3)")
    parser.add_argument("--run", type=Path, default=HERE.parent / "outputs" / "instruct-tiny", help="a finished run")
    asked = parser.parse_args()
    install_trl()
    repeats = 1 if asked.quick else asked.repeats
    raw: dict = {"quick": asked.quick, "episodes": EPISODES, "torch": torch.__version__, "device": device_name()}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        say("preparing models and prompts")
        prepare(work, HELPFUL)
        for name in EPISODES:
            for precision in precisions()[: 1 if asked.quick else None]:
                raw[f"{name}_{precision}"] = paired(work, name, precision, repeats)
        raw["world"] = time_to_reward(finished_run(asked.run, work), RATES[-1:] if asked.quick else RATES)
    result = {**figures(raw), "raw": raw}
    print(table(result))
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def precisions() -> list[str]:
    """fp32, and of the 16-bit ones the fastest where this machine multiplies faster in it than in fp32: fp16 on GPUs
    before Ampere, which emulate bf16."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tried = ("fp32", "bf16", "fp16") if device == "cuda" else ("fp32", "bf16")
    rates = {name: matmul_rate(DTYPES[name], device, size=1024) for name in tried}
    # Where fp16 is not clearly faster, bf16 is taken: it needs no loss scaling.
    best = "fp16" if rates.get("fp16", 0.0) > 2 * rates["bf16"] else "bf16"
    return ["fp32", best] if rates[best] > rates["fp32"] else ["fp32"]


def paired(work: Path, name: str, precision: str, repeats: int) -> dict:
    """`repeats` pairs of runs, in turns; on a GPU the first two updates warm up and are not counted."""
    runs: dict[str, list[dict]] = {"ours": [], "trl": []}
    policy = work / f"policy_{name}"
    job = {
        **{"policy": policy, "value": policy, "reward": work / "reward", "goal": None, "world": None},
        "prompts": json.loads((work / "prompts.json").read_text())[name],
        "config": settings(name, EPISODES[name], 3 if torch.cuda.is_available() else 1, precision),
    }
    for repeat in range(repeats):
        for program in sorted(runs, reverse=bool(repeat % 2)):
            say(f"{name}, {precision}, pair {repeat + 1} of {repeats}: {program}")
            runs[program].append(trained({"program": program, **job}))
    return runs


def finished_run(run: Path, work: Path) -> Path:
    """`run` where it has been run as far as PPO; else one made now."""
    if all((run / "checkpoints" / stage).is_dir() for stage in ("data", "sft", "reward_model")):
        return run
    say("making the models of the synthetic dataset (2 to 6 minutes)")
    command = [sys.executable, "-m", "rlhf_utils", "run", "--only", "01_01,01_02,02", "--output-dir", str(work)]
    subprocess.run(command, check=True, cwd=HERE.parent, stdout=sys.stderr)
    return work / "instruct-tiny"


def time_to_reward(run: Path, rates: Sequence[float]) -> dict:
    """Seconds, reward and gold of each program's updates at each of `rates`, until the mean reward of three updates in
    a row reaches `REWARD`."""
    recipe = json.loads((run / "run.json").read_text())["settings"]
    rows = (run / "checkpoints" / "data" / "ppo.jsonl").read_text(encoding="utf-8").splitlines()
    reward = run / "checkpoints" / "reward_model"
    job = {"policy": run / "checkpoints" / "sft", "reward": reward, "value": reward, "goal": REWARD}
    job["world"] = recipe["data"]["world"] if recipe["dataset"] == "embedded" else None
    job["prompts"] = [json.loads(row)["prompt"] for row in rows]
    found: dict = {"run": run.name, "reward": REWARD}
    for rate in rates:
        for program in PROGRAMS:
            say(f"synthetic dataset: {program}, learning rate {rate:g}")
            config = {**recipe["ppo"], "save_every": 10**6, "learning_rate": rate}
            curve = trained({"program": program, "config": config, **job})
            found[f"{program}_{rate:g}"] = {name: curve[name] for name in ("seconds", "rewards", "gold")}
    return found


def seconds_to_reward(curve: dict) -> float | None:
    """Seconds until `REWARD` is reached; None if it never is."""
    last = reached(curve["rewards"], REWARD)
    return None if last is None else curve["seconds"][last]


def figures(raw: dict) -> dict:
    """The figures of the comparison; None where it was not made."""
    median = statistics.median

    def rate(workload: str, program: str) -> list[float]:
        episodes = raw["episodes"][workload.partition("_")[0]]
        return [episodes / run["seconds_per_update"][-1] for run in raw[workload][program]]

    def pairs(workload: str) -> list[float]:
        return [ours / trl for ours, trl in zip(rate(workload, "ours"), rate(workload, "trl"), strict=True)]

    def best(name: str, program: str) -> float:
        return max(value for key, value in rates.items() if key.startswith(name) and key.endswith(program))

    def memory(workload: str) -> float:
        ours, trl = ([run["peak_memory_bytes"] for run in raw[workload][program]] for program in ("ours", "trl"))
        return median(a / b for a, b in zip(ours, trl, strict=True))

    def quickest(program: str) -> dict | None:
        curves = [curve for name, curve in raw["world"].items() if name.startswith(f"{program}_")]
        return min(filter(seconds_to_reward, curves), key=seconds_to_reward, default=None)

    def time_ratio(program: str) -> float | None:
        ours, other = quickest("ours"), quickest(program)
        return seconds_to_reward(ours) / seconds_to_reward(other) if ours and other else None

    def gold_there(program: str) -> float | None:
        """The mean gold of the three updates over which `REWARD` is reached."""
        last = (curve := quickest(program)) and reached(curve["rewards"], REWARD)
        gold = curve.get("gold", [None])[: last + 1] if curve else [None]
        return None if None in gold else statistics.fmean(gold[-3:])

    workloads = [f"{name}_{p}" for name in raw["episodes"] for p in DTYPES if f"{name}_{p}" in raw]
    rates = {f"{name}_{program}": median(rate(name, program)) for name in workloads for program in ("ours", "trl")}
    # What else the machine does can only lower a measured rate, so the best one is its own.
    machine = max(run["matmul_flops"] for name in raw["episodes"] for run in raw[f"{name}_fp32"]["ours"])
    flops = median(update_flops(run) for run in raw["fixed_fp32"]["ours"])
    return {
        "fixed_fp32_speedup": median(pairs("fixed_fp32")),
        "ragged_fp32_speedup": median(pairs("ragged_fp32")),
        "fixed_best_speedup": best("fixed", "ours") / best("fixed", "trl"),
        "ragged_best_speedup": best("ragged", "ours") / best("ragged", "trl"),
        "memory_ratio": memory("fixed_fp32"),
        "memory_ratio_ragged": memory("ragged_fp32"),
        "matmul_fraction": flops / machine,
        "update_flops": flops,
        "machine_matmul_flops": machine,
        "time_to_reward_ratio": time_ratio("trl"),
        "time_to_reward_vs_rloo": time_ratio("rloo"),
        "time_to_reward_vs_grpo": time_ratio("grpo"),
        "gold_at_reward": {program: gold_there(program) for program in PROGRAMS},
        "episodes_per_second": rates,
        "speedup_of_each_pair": {workload: pairs(workload) for workload in workloads},
    }


def update_flops(run: dict) -> float:
    """FLOP/s of the update phase: forward and backward (three times forward) over real tokens, padding not counted.

    Per token and pass 2 FLOPs for each weight of the blocks and 4 x width x length for attention (half, being causal);
    the head, 2 x width x vocabulary, at response tokens only.
    """
    response, prompt = run["response_tokens"][-1], run["prompt_tokens"]
    length = prompt + response
    trunk = length * (2 * run["block_parameters"] + 2 * run["layers"] * run["width"] * length)
    head = response * 2 * run["width"] * run["vocabulary"]
    return 3 * EPOCHS * run["episodes"] * (trunk + head) / run["phase_seconds"][-1]["learning"]


def table(result: dict) -> str:
    goals = {
        "fixed_fp32_speedup": "at least 3.5",
        "ragged_fp32_speedup": "at least 6",
        "fixed_best_speedup": "at least 6",
        "ragged_best_speedup": "at least 12",
        "memory_ratio": "at most 0.4",
        "matmul_fraction": "at least 0.6",
        "time_to_reward_ratio": "at most 0.33",
        "time_to_reward_vs_rloo": "at most 0.5",
        "time_to_reward_vs_grpo": "at most 0.5",
    }
    lines = [f"{'figure':24} {'found':>8}   goal"]
    for name, goal in goals.items():
        value = result[name]
        lines.append(f"{name:24} {'-' if value is None else format(value, '8.2f'):>8}   {goal}")
    for name, value in result["episodes_per_second"].items():
        lines.append(f"{name:24} {value:8.3f}   episodes per second")
    for name, values in result["speedup_of_each_pair"].items():
        lines.append(f"{name:24} {', '.join(f'{value:.2f}' for value in values)}   of each pair")
    for name, value in result["gold_at_reward"].items():
        shown = "-" if value is None else format(value, "8.2f")
        lines.append(f"{name:24} {shown:>8}   gold, 0 to 10, at reward {REWARD}")
    return "\n".join(lines)


def install_trl() -> None:
    if (TRL / "trl").is_dir():
        return
    say("installing trl 1.12 (once)")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(TRL), "trl==1.12.*"]
    subprocess.run(command, check=True, stdout=sys.stderr)


def trained(job: dict) -> dict:
    """What one_training.py measures, in a process of its own, so that its memory is its own."""
    path = [str(TRL), str(HERE.parent)] if job["program"] == "trl" else [str(HERE.parent)]
    offline = {"PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as folder:
        task, out = Path(folder) / "job.json", Path(folder) / "result.json"
        task.write_text(json.dumps(job, default=str))
        command = [sys.executable, str(HERE / "one_training.py"), str(task), str(out)]
        done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{job['program']} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return json.loads(out.read_text())


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
