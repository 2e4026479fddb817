"""Settings, recipes and the prompt template: what is accepted, in which order it is merged, what is refused."""

import json
import math
from dataclasses import replace

import pytest
import yaml
from pydantic import ValidationError

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.settings import recipes
from rlhf_utils.settings.recipes import SCALES, Recipe, load_recipe, parse_assignments, recipe_names
from rlhf_utils.settings.sections import PPOConfig
from rlhf_utils.settings.template import TEMPLATE, TEMPLATES, check_template


def refusal(overrides: object) -> str:
    with pytest.raises(InputError) as error:
        load_recipe("instruct", "tiny", overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("scale", SCALES)
def test_every_recipe_at_every_scale(name, scale):
    recipe = load_recipe(name, scale)
    assert (recipe.name, recipe.scale) == (name, scale)
    assert (recipe.dataset == "embedded" and recipe.policy == "embedded") == (scale == "tiny")
    # The SFT model and the policies that PPO keeps: points enough to see where gold turns.
    assert 8 <= 1 + math.ceil(recipe.ppo.updates / recipe.ppo.save_every) <= 14


def test_merging_order_is_file_then_scale_then_overrides(tmp_path, monkeypatch):
    source = {
        "title": "t",
        "description": "d",
        "dataset": "of/file",
        "policy": "gpt2",
        "ppo": {"updates": 1, "gamma": 0.5, "epochs": 5},
        "scales": {"tiny": {"dataset": "of/scale", "ppo": {"updates": 2, "gamma": 0.6}}, "t4": None},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(source))
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    tiny = load_recipe("mine", "tiny", {"ppo.updates": 3})
    assert (tiny.ppo.updates, tiny.ppo.gamma, tiny.ppo.epochs, tiny.dataset) == (3, 0.6, 5, "of/scale")
    assert tiny.ppo.clip_range == PPOConfig().clip_range
    assert load_recipe("mine", "t4").dataset == "of/file"
    assert load_recipe("mine", "tiny", {"dataset": "of/override"}).dataset == "of/override"


def test_command_line_and_papermill_give_the_same_recipe():
    lines = ["sft.learning_rate=1e-5", "ppo.updates=16", "ppo.kl_budget=null", "reward_model.lora.rank=8", "seed=3"]
    from_line = load_recipe("instruct", "tiny", parse_assignments(lines))
    dotted = {"sft.learning_rate": 1e-5, "ppo.updates": 16, "ppo.kl_budget": None, "reward_model.lora.rank": 8}
    nested = {"sft": {"learning_rate": "1e-5"}, "ppo": {"updates": "16", "kl_budget": None}, "seed": 3}
    nested["reward_model"] = {"lora": {"rank": "8"}}
    assert from_line == load_recipe("instruct", "tiny", {**dotted, "seed": 3})
    assert from_line == load_recipe("instruct", "tiny", nested) and nested["ppo"]["updates"] == "16"
    assert from_line.reward_model.lora.modules == load_recipe("instruct").reward_model.lora.modules
    with pytest.raises(ValidationError):
        from_line.seed = 5


def test_numbers_and_truth_values_as_yaml_and_python_write_them():
    for value in ("1e-5", 1e-5, "0.00001"):
        assert load_recipe("instruct", "tiny", {"sft.learning_rate": value}).sft.learning_rate == 1e-5
    for value in ("2e1", "20", 20, 20.0, "20.0"):
        recipe = load_recipe("instruct", "tiny", {"ppo.updates": value, "data.max_rows": value})
        assert recipe.ppo.updates == recipe.data.max_rows == 20 and type(recipe.ppo.updates) is int
    assert load_recipe("instruct", "tiny", {"ppo.whiten_advantages": "no"}).ppo.whiten_advantages is False
    for value in ("no", "on", True, False):
        for key in ("ppo.updates", "sft.learning_rate", "data.max_rows", "seed"):
            assert key in (text := refusal({key: value})) and "must be a number" in text


def test_paths_are_never_read_as_yaml_and_context_matters_only_to_the_model_made_here():
    assignments = ["dataset=on", "policy=1.0", "data.revision=1e5", "data.data_dir=a=b: c", "base.context=64"]
    recipe = load_recipe("instruct", "tiny", parse_assignments(assignments))
    assert (recipe.dataset, recipe.policy) == ("on", "1.0")
    assert (recipe.data.revision, recipe.data.data_dir) == ("1e5", "a=b: c")
    for unset in ("null", "", None):
        assert load_recipe("imdb", "t4", {"models.reward_model": unset}).models.reward_model is None


REFUSED = [
    ({"ppo.updats": 3}, ["ppo: unknown key 'updats'", "did you mean 'updates'"]),
    ({"data.split_rows.test": 1}, ["data.split_rows.test", "'sft', 'reward', 'ppo'"]),
    ({"": 1}, ["unknown key ''"]),
    ({"ppo": 3}, ["ppo is 3"]),
    ({"ppo.updates": ""}, ["ppo.updates", "None"]),
    ({"ppo.learning_rate": 0}, ["ppo.learning_rate is 0"]),
    ({"ppo.learning_rate": ".nan"}, ["ppo.learning_rate"]),
    ({"ppo.kl_controller": "adaptiv"}, ["ppo.kl_controller", "'fixed' or 'adaptive'"]),
    ({"dataset": 5}, ["dataset is 5"]),
    ({"name": "x"}, ["name cannot be overridden"]),
    (["ppo.updates"], ["not a dictionary"]),
    # Two that do not go together.
    ({"base.heads": 3}, ["width 128 is not a multiple of heads 3"]),
    ({"ppo.minibatch_size": 60}, ["rollout_batch_size 128", "minibatch_size 60"]),
    ({"ppo.microbatch_size": 7}, ["minibatch_size 64", "microbatch_size 7"]),
    ({"sft.micro_batch_size": 5}, ["sft: batch_size 16", "micro_batch_size 5"]),
    ({"ppo.kl_controller": "adaptive", "ppo.kl_horizon": 64}, ["kl_horizon 64 is shorter than one rollout of 128"]),
    ({"ppo.lora.dropout": 0.1}, ["lora.dropout must be 0 in PPO"]),
    ({"form": "continuation", "ppo.critic": "separate", "evaluation.overoptimise": None}, ["ppo.critic separate"]),
    ({"policy": "none"}, ["policy is None"]),
    ({"ppo.max_new_tokens": 500}, ["base.context is 256"]),
]


@pytest.mark.parametrize("overrides, words", REFUSED)
def test_refused_settings(overrides, words):
    text = refusal(overrides)
    assert all(word in text for word in words), text


SECRETS = [
    {"policy": "hf_" + "a" * 34},
    {"models.sft": "https://user:hf_" + "a" * 34 + "@huggingface.co/a/b"},
    {"ppo": {"report_to": ["sk-" + "a" * 40]}},
]


@pytest.mark.parametrize("overrides", SECRETS)
def test_a_secret_is_no_setting(overrides):
    text = refusal(overrides)
    assert "looks like an access token" in text and "HF_TOKEN" in text and "aaaa" not in text


def test_the_hash_changes_with_every_setting_and_only_then():
    recipe = load_recipe("instruct")
    assert recipe.hash == load_recipe("instruct", "tiny", {"ppo.updates": recipe.ppo.updates}).hash
    assert len({load_recipe("instruct", scale).hash for scale in SCALES}) == len(SCALES)
    changed = load_recipe("instruct", "tiny", {"reward_model.lora.alpha": 33})
    assert changed.hash != recipe.hash
    assert changed.section_hash("ppo", "sft") == recipe.section_hash("ppo", "sft")
    assert changed.section_hash("reward_model") != recipe.section_hash("reward_model")


def test_settings_survive_json(tmp_path):
    recipe, file = load_recipe("eli5", "t4"), tmp_path / "run.json"
    settings = recipe.model_dump(mode="json")
    for whole in (settings, {"settings": settings}):
        file.write_text(json.dumps(whole))
        assert Recipe.from_settings(file) == recipe
    file.write_text("{}")
    with pytest.raises(InputError, match="name: Field required"):
        Recipe.from_settings(file)


# The prompt template


@pytest.mark.parametrize("empty", ["", " ", "\n\n", "\t"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_space_is_in_the_completion_and_an_empty_response_adds_nothing(name, empty):
    """A space at the end of a text is a token of its own, which no reward model has met."""
    template = TEMPLATES[name]
    text = template.text("How long?", empty)
    assert text == template.format("How long?") + (empty if name == "continuation" else "")
    assert template.text("How long?", "Six") == template.format(" How long?\n") + template.joint + "Six"
    assert TEMPLATE.text("How long?", "Six") == "Human: How long?\n\nAssistant: Six"


NORMAL = {
    "plain question?": "plain question?",
    "Human: one line Assistant:": "one line",
    "question\n\nAssistant:": "question",
    "Human: Human: twice": "Human: twice",
    "Humanity: a history": "Humanity: a history",
    "\n\nHuman: Hi!\n\nAssistant: Yes?\n\nHuman: Go on.\n\nAssistant:": "Hi!\n\nAssistant: Yes?\n\nHuman: Go on.",
}


@pytest.mark.parametrize("text", NORMAL)
def test_normal_form_removes_the_outer_markers_once(text):
    assert TEMPLATE.normal(text) == NORMAL[text]


def test_a_stage_made_with_another_template_is_refused():
    others = [{"opening": "User: "}, {"closing": "\nAssistant:"}, {"joint": ""}, {"trims": False}, {}]
    assert len({replace(TEMPLATE, **other).hash for other in others}) == 5
    check_template(TEMPLATE.hash, "reward_model", TEMPLATE)
    for found in ("0123456789abcdef", None):
        with pytest.raises(InputError, match="checkpoints/sft was made with prompt template .*--fresh"):
            check_template(found, "checkpoints/sft", TEMPLATE)
