"""One measured training with `rlhf_utils.ppo`; writes JSON. Started by ppo_vs_trl.py."""

from __future__ import annotations

import json
import tempfile
import time

import torch
from workload import arguments, matmul_rate, workload

from rlhf_utils.data.tokens import start_tokens
from rlhf_utils.models.loading import load_tokenizer
from rlhf_utils.platforms.runtime import detect_device, peak_memory_bytes
from rlhf_utils.ppo import PPOConfig, PPOTrainer
from rlhf_utils.rewards.functions import RewardModel
from rlhf_utils.settings.template import TEMPLATE


def main() -> None:
    asked = arguments()
    job, device = workload(asked.workload, asked.episodes), detect_device(asked.precision)
    folder = asked.work / f"policy_{job.name}"
    config = PPOConfig(
        updates=asked.updates,
        rollout_batch_size=job.episodes,
        minibatch_size=job.episodes,
        microbatch_size=job.micro,
        epochs=job.epochs,
        max_new_tokens=job.response_tokens,
        learning_rate=1e-6,
        precision=asked.precision,
        save_every=10**6,
    )
    seen: list[dict] = []

    def on_update(line: dict) -> None:
        seen.append({"at": time.perf_counter(), "peak_memory_bytes": peak_memory_bytes(), **line})

    with tempfile.TemporaryDirectory() as output:
        prompts = json.loads((asked.work / "prompts.json").read_text())[job.name]
        reward = RewardModel.load(asked.work / "reward", device)
        tokenizer = load_tokenizer(folder)
        asked_tokens = start_tokens(tokenizer, [TEMPLATE.format(prompt) for prompt in prompts])
        trainer = PPOTrainer(folder, tokenizer, reward, prompts, config, output, on_update)
        parameters = sum(p.numel() for p in trainer.policy().transformer.h.parameters())
        shape = trainer.policy().config
        started = time.perf_counter()
        trainer.train()
    times = [started, *(line["at"] for line in seen)]
    asked.out.write_text(
        json.dumps(
            {
                "seconds_per_update": [b - a for a, b in zip(times, times[1:], strict=False)],
                "peak_memory_bytes": seen[-1]["peak_memory_bytes"],
                "phase_seconds": [line["phase_seconds"] for line in seen],
                "response_tokens": [line["response_tokens"] for line in seen],
                "episodes": job.episodes,
                "eos_rate": [line["eos_rate"] for line in seen],
                "block_parameters": parameters,
                "width": shape.n_embd,
                "vocabulary": shape.vocab_size,
                "layers": shape.n_layer,
                "prompt_tokens": sum(map(len, asked_tokens)) / len(prompts),
                "matmul_flops": matmul_rate(torch.float32, device.kind),
            }
        )
    )


if __name__ == "__main__":
    main()
