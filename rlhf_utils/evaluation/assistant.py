"""What the score of an assistant needs: its prompts, and embeddings by which a response is relevant to one of them."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from rlhf_utils.evaluation.evaluator import Evaluator
from rlhf_utils.models.language_model import language_model, right_padded
from rlhf_utils.platforms.files import read_jsonl
from rlhf_utils.platforms.hub import model_folder
from rlhf_utils.platforms.names import EMBEDDED
from rlhf_utils.settings.recipes import Recipe
from rlhf_utils.toyworld import WORLDS

PROMPTS = Path(__file__).parent / "prompts" / "assistant.jsonl"


def assistant_prompts(recipe: Recipe) -> list[dict]:
    """`{"prompt", "unsafe"}` of each prompt: the synthetic data's own where they have some, else the package's."""
    of_world = WORLDS[recipe.data.world].prompts if recipe.dataset == EMBEDDED else None
    return of_world(recipe.seed) if of_world else read_jsonl(PROMPTS)


def embedder(name: str | None, evaluator: Evaluator) -> Callable[[Sequence[str]], Tensor]:
    """texts (n,) -> embeddings [n, D]: of unit length by the encoder `name`, the mean of its last states over the
    tokens of each text (Reimers and Gurevych 2019, arXiv:1908.10084); without a name such means of the SFT model."""
    device, tokenizer = evaluator.device, evaluator.tokenizer
    if name is None:
        trunk = language_model(evaluator.reference).trunk
        # A causal model does not see the padding on the right.
        return partial(_mean_states, lambda tokens, mask: trunk(input_ids=tokens), tokenizer, device.kind)
    folder = model_folder(name)
    encoder = AutoModel.from_pretrained(folder, use_safetensors=True).to(device.kind).eval()
    read, tokenizer = lambda t, mask: encoder(input_ids=t, attention_mask=mask), AutoTokenizer.from_pretrained(folder)
    return lambda texts: normalize(_mean_states(read, tokenizer, device.kind, texts), dim=1)


@torch.no_grad()
def _mean_states(forward: Callable, tokenizer, device: str, texts: Sequence[str]) -> Tensor:
    """Mean of the last states over the first 256 tokens of each text [n, D] (as far as MiniLM was trained), 32 texts at
    a time; of an empty text the state of the end of text."""
    found = []
    for start in range(0, len(texts), 32):
        rows = tokenizer(list(texts[start : start + 32]), truncation=True, max_length=256)["input_ids"]
        tokens, lengths = right_padded([row or [tokenizer.eos_token_id] for row in rows], tokenizer.pad_token_id)
        mask = torch.arange(tokens.shape[1]) < lengths[:, None]
        states = forward(tokens.to(device), mask.to(device)).last_hidden_state.float().cpu()
        found.append((states * mask[..., None]).sum(dim=1) / lengths[:, None])
    return torch.cat(found)
