"""Stages in which nothing is trained: the data, models that are ready, and the scale of a reward model."""

from functools import partial

from rlhf_utils.data.prepared import PreparedData, check_rows, prepare
from rlhf_utils.data.sources import load_rows
from rlhf_utils.models.generation import answer_prompts
from rlhf_utils.models.loading import copy_model, load_policy, load_tokenizer
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.runtime import detect_device
from rlhf_utils.rewards.reward_model import RewardModel
from rlhf_utils.runs.run import Run
from rlhf_utils.runs.stages import check_context


def make_data(run: Run) -> PreparedData:
    """`checkpoints/data`: the recipe's rows, filtered and divided; token counts are of the base model's tokenizer."""
    if not run.has("data"):
        with run.training("data"):
            run.progress("reading and filtering the data")
            recipe = run.recipe
            rows = load_rows(recipe.dataset, recipe.data, recipe.seed)
            check_rows(rows, recipe)
            tokenizer = load_tokenizer(run.tokenizer_folder)
            data = prepare(rows, recipe.data, tokenizer, recipe.seed, recipe.template, run.splits)
            counts = {name: len(split) for name, split in data.splits.items()}
            run.publish("data", fill=data.save, kind=data.kind, rows=counts)
    return PreparedData.load(run.folder("data"))


def fetch_policy(run: Run, stage: str) -> None:
    """A policy stage in which nothing is trained: the recipe's ready policy, or a base model that came tuned."""
    if run.has(stage):
        return
    source, adapters = run.recipe.policy if stage == "base" else run.ready_model(stage), run.recipe.models.adapter_base
    with run.training(stage):
        if not source:
            run.publish(stage, fill=partial(copy_model, run.folder("base")), method="already tuned")
            return
        check_context(run.recipe, source)
        run.progress(f"loading {source}")
        # Loaded and saved, not copied: a folder may hold weights in several formats, or under names that are none.
        model = load_policy(source, detect_device(), dropout=True, base=adapters)
        tokenizer, known = load_tokenizer(source, adapters), run.tokenizer_folder
        if stage != "base" and known.is_dir() and load_tokenizer(known).get_vocab() != tokenizer.get_vocab():
            where = f"models.{stage} {source} has another vocabulary than {known}"
            raise InputError(f"{where}; all policies of a run share one")
        run.publish(stage, model, tokenizer, method="ready", source=source)


def calibrate_on_sft(run: Run, reward: RewardModel) -> None:
    """Put `reward` on the scale of the SFT model's responses to development prompts: mean 0, standard deviation 1."""
    prompts = list(PreparedData.load(run.folder("data")).splits["development"]["prompt"])[:200]
    # The spread of fewer than 16 responses says little, that of one nothing: few prompts are answered several times.
    prompts *= -(-16 // len(prompts))
    recipe, tokenizer = run.recipe, load_tokenizer(run.folder("sft"))
    sft = load_policy(run.folder("sft"), reward.device).eval()
    texts = [recipe.template.format(prompt) for prompt in prompts]
    answers = answer_prompts(sft, tokenizer, texts, recipe.generation, reward.device, recipe.seed)
    reward.calibrate(prompts, [answer.text for answer in answers])
