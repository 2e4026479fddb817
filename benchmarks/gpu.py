"""Everything that a GPU does differently from a CPU, in under ten minutes on one that nothing else runs on.

python benchmarks/gpu.py [--out FILE]

A policy of GPT-2's shape with random weights, its logits around -100 like those of the public one, goes through PPO by
each method, in fp16 and, where the GPU can, bf16, and through the reduced series (4-bit QLoRA in it); one PPO run is
killed and resumed. Prints JSON: what each case took and measured, why a case failed. Without a GPU the same in bf16
with a tiny shape, and of fp16 what a CPU computes, in a few minutes. Exit status 1 where a case failed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# What tokenizer and prompts are made of.
TEXTS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
GPU, KIND = torch.cuda.is_available(), "cuda" if torch.cuda.is_available() else "cpu"
SHAPE = dict(vocab_size=50_257) if GPU else dict(vocab_size=800, n_layer=2, n_embd=32, n_head=2)
OFFSET, SPREAD = -100.0, 0.05 if GPU else 0.25
# Batches and lengths are those of scale t4 on a GPU; how much is done is less.
BATCHES = dict(rollout_batch_size=64, minibatch_size=32, microbatch_size=8, max_new_tokens=96)
PPO = dict(updates=4, save_every=2, keep_checkpoints=9, epochs=1, kl_coefficient=0.05)
PPO |= BATCHES if GPU else dict(rollout_batch_size=8, minibatch_size=8, max_new_tokens=12)
SERIES = {"dataset": "embedded", "data.embedded_rows": 900 if GPU else 300, "generation.max_new_tokens": 24}
SERIES |= {"data.max_prompt_tokens": 96, "data.max_response_tokens": 96, "sft.evaluations": 1}
SERIES |= {"evaluation.prompts": 20, "evaluation.reward_pairs": 50, "evaluation.frontier_prompts": 10}
SERIES |= {f"ppo.{name}": value for name, value in PPO.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        what, precision, work = asked.case
        print(json.dumps(CASES[what.split("-")[0]](what, precision, Path(work))))
        return 0
    able = ["bf16"] if not GPU else ["fp16", "bf16"] if torch.cuda.get_device_capability() >= (8, 0) else ["fp16"]
    found = {"device": {"name": torch.cuda.get_device_name() if GPU else "CPU", "torch": torch.__version__}}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        for precision in sorted({*able, "fp16"}):
            run(found, "numbers", precision, Path(folder))
        for precision in able:
            for what in ("ppo-full", "ppo-lora", "ppo-qlora", "resumed-full"):
                run(found, what, precision, Path(folder))
        run(found, "series", "auto", Path(folder))
    print(json.dumps(found, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n")
    return int(any("failed" in case for case in found.values()))


def run(found: dict, what: str, precision: str, work: Path) -> None:
    """Add what the case says of itself, from a process of its own: peak memory is a process's."""
    started, name = time.perf_counter(), f"{what} {precision}"
    command = [sys.executable, __file__, "--case", what, precision, str(work)]
    environment = os.environ | {"RLHF_CACHE": str(work / "cache")}
    if what.startswith("resumed"):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as victim:
            while victim.poll() is None and not [*work.glob(f"{what}-{precision}/checkpoints/update-*/state.json")]:
                time.sleep(0.02)
            victim.send_signal(signal.SIGKILL)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    said = (done.stderr if done.returncode else done.stdout).strip().split("\n")[-1]
    found[name] = {"failed": said[:500] or f"status {done.returncode}"} if done.returncode else json.loads(said)
    found[name]["seconds"] = round(time.perf_counter() - started, 1)
    print(f"{name}: {json.dumps(found[name])[:300]}", file=sys.stderr, flush=True)


def prepare(work: Path) -> None:
    """Write `policy` and `reward` in GPT-2's shape, with a tokenizer of fewer tokens than the vocabulary has rows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

    inner, end, letters = Tokenizer(models.BPE()), "<|endoftext|>", pre_tokenizers.ByteLevel.alphabet()
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[end], initial_alphabet=letters, show_progress=False)
    inner.train([*map(str, TEXTS)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=end, eos_token=end, pad_token=end)
    ids = {f"{name}_token_id": tokenizer.eos_token_id for name in ("bos", "eos", "pad")}
    config = GPT2Config(initializer_range=SPREAD, num_labels=1, **SHAPE, **ids)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    # One direction of the embeddings and of the final states that all tokens share.
    model.transformer.wte.weight.data[:, 0] = 1.0
    model.transformer.ln_f.weight.data[0], model.transformer.ln_f.bias.data[0] = 0.0, OFFSET
    for name, saved in {"policy": model, "reward": GPT2ForSequenceClassification(config)}.items():
        saved.save_pretrained(work / name)
        tokenizer.save_pretrained(work / name)


def numbers(what: str, precision: str, work: Path) -> dict:
    """How far sampling and learning are apart before any step, and what the head costs in fp32 and under autocast."""
    from rlhf_utils.models.generation import left_padded, sample
    from rlhf_utils.models.language_model import Episodes, answer_logprobs, language_model, right_padded
    from rlhf_utils.models.loading import load_policy
    from rlhf_utils.platforms.runtime import Device

    device, source = Device(KIND, "", precision, 0), torch.Generator().manual_seed(0)
    model = load_policy(work / "policy", device)
    rows = [torch.randint(1, 600, (5 + i % 16,), generator=source).tolist() for i in range(32)]
    with torch.no_grad(), device.autocast():
        found = sample(model, *left_padded(rows, 0, KIND), 32, 1.0, 0, source)
        answers = [answer[real].tolist() for answer, real in zip(found.tokens, found.mask, strict=True)]
        whole, _ = right_padded([row + answer for row, answer in zip(rows, answers, strict=True)], 0)
        lengths = torch.tensor([len(row) for row in rows])
        again = answer_logprobs(model, Episodes(whole.to(KIND), lengths.to(KIND), found.mask), 1.0)
    gap, parts = (again - found.logprobs)[found.mask], language_model(model)
    states = torch.randn(1024, parts.width, device=KIND)

    def milliseconds(head) -> float:
        for _ in range(2):  # the first one warms up
            started = time.perf_counter()
            with device.autocast():
                head(states).float().logsumexp(dim=-1).sum().backward()
            if GPU:
                torch.cuda.synchronize()
        return round(1000 * (time.perf_counter() - started), 2)

    return {
        "log_ratio_max": gap.abs().max().item(),
        "log_ratio_rms": gap.square().mean().sqrt().item(),
        "outside_clip": ((gap.exp() - 1).abs() > 0.2).float().mean().item(),
        "k3_per_response": ((torch.expm1(gap) - gap).sum() / len(rows)).item(),
        "head_ms": {"fp32": milliseconds(parts.logits), precision: milliseconds(parts.head)},
    }


def ppo(what: str, precision: str, work: Path) -> dict:
    """A short PPO of the method in `what`; a resumed one beside the rewards of the one that was not killed."""
    from rlhf_utils.models.loading import load_tokenizer
    from rlhf_utils.platforms.runtime import detect_device, peak_memory
    from rlhf_utils.ppo import PPOConfig, PPOTrainer
    from rlhf_utils.rewards.reward_model import load_reward

    method = what.split("-")[1]
    reward = load_reward(work / "reward", detect_device(precision))
    found = [word for path in TEXTS for word in path.read_text(encoding="utf-8").split()]
    prompts = [" ".join(found[20 * i : 20 * i + 3 + i % 12]) for i in range(64)]
    config = PPOConfig(**PPO, method=method, precision=precision)
    tokenizer, folder = load_tokenizer(work / "policy"), work / f"{what}-{precision}"
    history = PPOTrainer(work / "policy", tokenizer, reward, prompts, config, folder).train()
    straight = (work / f"ppo-{method}-{precision}/metrics.jsonl").read_text().splitlines()
    return {
        "kl_k3_at_update_0": history[0]["kl_k3"],
        "rewards": [line["reward"] for line in history],
        "rewards_not_killed": [json.loads(line)["reward"] for line in straight],
        "skipped_steps": sum(line["skipped_steps"] for line in history),
        "tokens_per_second": round(history[-1]["tokens_per_second"]),
        "phase_seconds": {name: round(seconds, 2) for name, seconds in history[-1]["phase_seconds"].items()},
        "peak_gb": round((peak_memory()[1] or peak_memory()[0]) / 1e9, 3),
    }


def series(what: str, precision: str, work: Path) -> dict:
    """Every notebook of the series, one after the other, as the command line runs it."""
    command = [sys.executable, "-m", "rlhf_utils", "run", "--scale", "t4", "--output-dir", str(work / "series")]
    command += [part for key, value in SERIES.items() for part in ("--set", f"{key}={value}")]
    subprocess.run([*command, "--set", f"policy={work / 'policy'}"], check=True, cwd=ROOT, stdout=sys.stderr)
    folder, taken = work / "series" / "instruct-t4", {}
    for name, about in json.loads((folder / "run.json").read_text())["stages"].items():
        most = about["peak_device_bytes"] or about["peak_host_bytes"]
        taken[name] = {"seconds": about["seconds"], "peak_gb": round(most / 1e9, 3)}
    summary = json.loads((folder / "evaluation" / "summary.json").read_text())["models"]
    return {"stages": taken, "rewards": {name: figures["reward"] for name, figures in summary.items()}}


CASES = {"numbers": numbers, "ppo": ppo, "resumed": ppo, "series": series}

if __name__ == "__main__":
    sys.exit(main())
