"""trl's SFT trainer on the tests' small model: five steps of eight rows."""

from pathlib import Path

import torch
from datasets import Dataset
from tiny import tiny_model, tiny_tokenizer, token_rows
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer


def sft(
    work: Path, checkpointing: bool = False, micro: int = 8, offset: float = 0.0
) -> tuple[SFTTrainer, PreTrainedModel]:
    """A trainer that keeps its checkpoints in `work`, and its model."""
    rows = token_rows([5 + i % 7 for i in range(20)])
    data = Dataset.from_dict({"input_ids": rows, "completion_mask": [[0, 0] + [1] * (len(r) - 2) for r in rows]})
    model = tiny_model(offset=offset)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    arguments = SFTConfig(
        output_dir=str(work), max_steps=5, per_device_train_batch_size=micro, gradient_accumulation_steps=8 // micro,
        max_length=None, gradient_checkpointing=checkpointing, learning_rate=1e-2, logging_steps=1, save_steps=2,
        seed=0, data_seed=0, report_to="none", disable_tqdm=True, use_cpu=True, bf16=False, completion_only_loss=True,
        gradient_checkpointing_kwargs={"use_reentrant": False}, logging_nan_inf_filter=False,
    )  # fmt: skip
    return SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=tiny_tokenizer()), model
