"""Sampling alone: this package's sampler against transformers' `generate`, and both against what the machine allows.

    python benchmarks/sampling.py [--json FILE] [--repeats 3] [--batches 8,32,64]

GPT-2 124M with random weights: prompts of 32 tokens, responses of 96; "ragged": prompts of 3 to 32 tokens, padded on
the left, and responses that end after 40 tokens on average, 128 at most. Each repeat runs every sampler once, in turns.
`share_of_limit` is the time that one decoding step would take if it only read its weights, keys and values once or
multiplied at the best rate measured, whichever is longer, over the time that it took.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from ppo_vs_trl import device_name, precisions
from workload import DTYPES, matmul_rate, prepare

from rlhf_utils.models.generation import sample
from rlhf_utils.models.loading import load_policy, load_tokenizer
from rlhf_utils.platforms.runtime import detect_device

PROMPT = 32
RESPONSE = {"fixed": 96, "ragged": 128}
KIND = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each sampler (default 3)")
    parser.add_argument("--batches", default="32" if KIND == "cpu" else "16,64,256", help="rows, comma-separated")
    asked = parser.parse_args()
    sizes = [int(size) for size in asked.batches.split(",")]
    result: dict = {"device": device_name(), "torch": torch.__version__, "prompt": PROMPT, "response": RESPONSE}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), None)
        for precision in precisions():
            for name in RESPONSE:
                for rows in sizes:
                    found = measured(Path(folder) / f"policy_{name}", name, precision, rows, asked.repeats)
                    result[f"{name}_{precision}_{rows}"] = found
                    print(f"{name} {precision}, {rows} rows: {json.dumps(found)}", flush=True)
    # The goal is of one workload; the others stand beside it.
    result["sampling_speedup"] = result[f"fixed_fp32_{sizes[0]}"]["speedup_over_static_cache"]
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=2) + "\n")


def measured(policy: Path, name: str, precision: str, rows: int, repeats: int) -> dict:
    """Tokens per second of each sampler, medians, and the medians of their ratios run by run."""
    device, tokenizer = detect_device(precision), load_tokenizer(policy)
    model, end, most = load_policy(policy, device).eval(), tokenizer.eos_token_id, RESPONSE[name]
    prompts = torch.randint(1, 50_000, (rows, PROMPT), generator=torch.Generator().manual_seed(0)).to(KIND)
    mask = torch.ones_like(prompts, dtype=torch.bool)
    if name == "ragged":
        lengths = torch.randint(3, PROMPT + 1, (rows, 1), generator=torch.Generator().manual_seed(1))
        mask = (torch.arange(PROMPT) >= PROMPT - lengths).to(KIND)
    torch._dynamo.reset()  # a static cache is compiled on a GPU; after eight recompilations that would silently stop

    def ours(seed: int) -> int:
        return int(sample(model, prompts, mask, most, 1.0, end, torch.Generator().manual_seed(seed)).mask.sum())

    def generate(seed: int, **how) -> int:
        torch.manual_seed(seed)
        how |= dict(do_sample=True, top_k=0, top_p=1.0, max_new_tokens=most, eos_token_id=end, pad_token_id=end)
        with torch.no_grad():
            said = model.generate(prompts, attention_mask=mask.long(), **how)[:, PROMPT:]
        before = (said == end).long().cumsum(dim=1) - (said == end).long()
        return int((before == 0).sum())

    samplers = {
        "ours": ours,
        "generate": generate,
        "generate_static_cache": lambda seed: generate(seed, cache_implementation="static"),
    }
    speeds: dict[str, list[float]] = {program: [] for program in samplers}
    for seed in range(repeats + 1):
        for program, sampler in samplers.items():
            started = time.perf_counter()
            with device.autocast():
                tokens = sampler(seed)
            if KIND == "cuda":
                torch.cuda.synchronize()
            speeds[program].append(tokens / (time.perf_counter() - started))
    kept = {name: values[1:] for name, values in speeds.items()}  # the first run warms up
    median = statistics.median

    def ratio(name: str) -> float:
        return round(median(a / b for a, b in zip(kept["ours"], kept[name], strict=True)), 2)

    rate = {name: round(median(values), 1) for name, values in kept.items()}
    return {
        "tokens_per_second": rate,
        "speedup_over_generate": ratio("generate"),
        "speedup_over_static_cache": ratio("generate_static_cache"),
        # Where rows end early, tokens per second say nothing of the time of a step.
        "share_of_limit": round(rate["ours"] / rows * limit_seconds(model.config, rows, precision), 3)
        if name == "fixed"
        else None,
    }


def limit_seconds(config, rows: int, precision: str) -> float:
    """The least seconds of one decoding step of `rows` rows in the middle of a response, blocks in `precision`, head in
    fp32: by the bytes it has to read, or by its products."""
    dtype = DTYPES[precision]
    blocks, head = 12 * config.n_layer * config.n_embd**2, config.vocab_size * config.n_embd
    cached = 2 * rows * (PROMPT + RESPONSE["fixed"] // 2) * config.n_layer * config.n_embd
    read = (blocks + cached) * dtype.itemsize + 4 * head + 4 * rows * config.vocab_size
    products = 2 * rows * (blocks / matmul_rate(dtype, KIND) + head / matmul_rate(torch.float32, KIND))
    return max(read / bandwidth(), products)


def bandwidth(size: int = 2**28 if KIND == "cpu" else 2**32, repeats: int = 5) -> float:
    """Bytes per second that the machine reads, measured by summing a tensor of `size` bytes."""
    numbers, seconds = torch.ones(size // 4, device=KIND), []
    for _ in range(repeats):
        started = time.perf_counter()
        numbers.sum().item()
        seconds.append(time.perf_counter() - started)
    return size / min(seconds)


if __name__ == "__main__":
    main()
