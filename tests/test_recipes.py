"""Settings and recipes: what is accepted, in which order it is merged, and what is refused in one line."""

from __future__ import annotations

import json

import pytest
import yaml
from pydantic import ValidationError

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.settings import recipes
from rlhf_utils.settings.recipes import SCALES, load_recipe, parse_assignments, recipe_names
from rlhf_utils.settings.sections import PPOConfig, flat


def refusal(overrides: object, scale: str = "tiny") -> str:
    with pytest.raises(InputError) as error:
        load_recipe("instruct", scale, overrides)
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("scale", SCALES)
def test_every_recipe_at_every_scale(name, scale):
    recipe = load_recipe(name, scale)
    assert (recipe.name, recipe.scale) == (name, scale)
    assert recipe.title and recipe.description
    assert (recipe.dataset == "embedded" and recipe.policy == "embedded") == (scale == "tiny")


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
    nested = {"sft": {"learning_rate": "1e-5"}, "ppo": {"updates": 16, "kl_budget": None}, "seed": 3}
    nested["reward_model"] = {"lora": {"rank": "8"}}
    assert from_line == load_recipe("instruct", "tiny", {**dotted, "seed": 3})
    assert from_line == load_recipe("instruct", "tiny", nested)
    assert from_line.hash == load_recipe("instruct", "tiny", nested).hash
    assert from_line.reward_model.lora.modules == load_recipe("instruct").reward_model.lora.modules


def test_numbers_and_truth_values_as_yaml_and_python_write_them():
    for value in ("1e-5", 1e-5, "0.00001"):
        assert load_recipe("instruct", "tiny", {"sft.learning_rate": value}).sft.learning_rate == 1e-5
    for value in ("2e1", "20", 20, 20.0, "20.0"):
        recipe = load_recipe("instruct", "tiny", {"ppo.updates": value, "data.max_rows": value})
        assert recipe.ppo.updates == recipe.data.max_rows == 20 and type(recipe.ppo.updates) is int
    assert load_recipe("instruct", "tiny", {"ppo.whiten_advantages": "no"}).ppo.whiten_advantages is False


@pytest.mark.parametrize("value", ["no", "yes", "on", "off", True, False])
def test_a_truth_value_is_no_number(value):
    for key in ("ppo.updates", "sft.learning_rate", "data.max_rows", "seed"):
        text = refusal({key: value})
        assert key.split(".")[-1] in text and "must be a number" in text


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"ppo.updats": 3}, ["'ppo.updats'", "did you mean 'updates'"]),
        ({"learning_rate": 3}, ["'learning_rate'", "accepted here: name, scale"]),
        ({"reward_model.lora.rnak": 3}, ["'reward_model.lora.rnak'", "'rank'", "modules"]),
        ({"data.shares.test": 1}, ["'data.shares.test'", "sft, reward, ppo, development, evaluation"]),
        ({"data.split_rows.test": 1}, ["data.split_rows.test", "'sft', 'reward', 'ppo'"]),
        ({"data.split_rows.sft": 0}, ["data.split_rows.sft is 0"]),
        ({"": 1}, ["unknown key ''"]),
        ({7: "x"}, ["unknown key '7'"]),
        ({"ppo": 3}, ["ppo is 3"]),
        ({"ppo.updates": ""}, ["ppo.updates", "None"]),
        ({"ppo.kl_controller": "adaptiv"}, ["ppo.kl_controller", "'fixed' or 'adaptive'"]),
        ({"dataset": 5}, ["dataset is 5"]),
        ({"qlora.modules": "c_attn"}, ["qlora.modules"]),
        ({"name": "x"}, ["name cannot be overridden"]),
        ({"scale": "t4"}, ["scale cannot be overridden"]),
        (["ppo.updates"], ["not a dictionary"]),
    ],
)
def test_refused_overrides(overrides, words):
    text = refusal(overrides)
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    "overrides, words",
    [
        ({"base.heads": 3}, ["width 128 is not a multiple of heads 3"]),
        ({"ppo.minibatch_size": 60}, ["rollout_batch_size 128", "minibatch_size 60"]),
        ({"ppo.microbatch_size": 7}, ["minibatch_size 64", "microbatch_size 7"]),
        ({"data.prompt_tokens": [8, 2]}, ["prompt_tokens [8, 2] must be the least and the most"]),
        ({"ppo.kl_controller": "adaptive", "ppo.kl_horizon": 64}, ["kl_horizon 64 is shorter than one rollout of 128"]),
        ({"ppo.lora.dropout": 0.1}, ["lora.dropout must be 0 in PPO"]),
        ({"form": "continuation", "ppo.critic": "separate", "evaluation.overoptimise": None}, ["ppo.critic separate"]),
        ({"policy": "none"}, ["policy cannot be unset"]),
        ({"sft.batch_size": 24, "sft.micro_batch_size": 5}, ["sft: batch_size 24", "micro_batch_size 5"]),
        ({"reward_model.batch_size": 16, "reward_model.micro_batch_size": 5}, ["reward_model: batch_size 16"]),
        ({"base.context": 64}, ["base.context is 64"]),
        ({"ppo.max_new_tokens": 500}, ["base.context is 256"]),
    ],
)
def test_impossible_combinations(overrides, words):
    text = refusal(overrides)
    assert all(word in text for word in words), text


def test_context_matters_only_to_the_model_made_here():
    assert load_recipe("instruct", "tiny", {"policy": "gpt2", "base.context": 64}).base.context == 64


@pytest.mark.parametrize("name", ["instrct", "", None, 5])
def test_unknown_recipe_or_scale(name):
    with pytest.raises(InputError, match="unknown recipe .*instruct"):
        load_recipe(name)
    with pytest.raises(InputError, match="unknown scale .*tiny, t4, full"):
        load_recipe("instruct", name)


def test_an_assignment_needs_key_and_value():
    for assignment in ("ppo.updates", "=3", " =3", ""):
        with pytest.raises(InputError, match="is not key=value"):
            parse_assignments([assignment])


def test_paths_are_never_read_as_yaml():
    overrides = parse_assignments(["dataset=on", "policy=1.0", "data.revision=1e5", "data.data_dir=a=b: c"])
    recipe = load_recipe("instruct", "tiny", overrides)
    assert (recipe.dataset, recipe.policy) == ("on", "1.0")
    assert (recipe.data.revision, recipe.data.data_dir) == ("1e5", "a=b: c")


def test_the_hash_changes_with_every_setting_and_only_then():
    recipe = load_recipe("instruct")
    assert recipe.hash == load_recipe("instruct", "tiny", {"ppo.updates": recipe.ppo.updates}).hash
    assert len({load_recipe("instruct", scale).hash for scale in SCALES}) == len(SCALES)
    changed = load_recipe("instruct", "tiny", {"reward_model.lora.alpha": 33})
    assert changed.hash != recipe.hash
    assert changed.section_hash("ppo", "sft") == recipe.section_hash("ppo", "sft")
    assert changed.section_hash("reward_model") != recipe.section_hash("reward_model")


def test_overrides_are_not_changed_and_recipes_are_frozen():
    overrides = {"ppo": {"updates": "3"}}
    recipe = load_recipe("instruct", "tiny", overrides)
    assert overrides == {"ppo": {"updates": "3"}}
    with pytest.raises(ValidationError):
        recipe.seed = 5


def test_settings_survive_json(tmp_path):
    recipe, file = load_recipe("eli5", "t4"), tmp_path / "run.json"
    settings = recipe.model_dump(mode="json")
    for whole in (settings, {"settings": settings}):
        file.write_text(json.dumps(whole))
        assert recipes.Recipe.from_settings(file) == recipe
    for content, reason in {"[]": r"is \[\]: input", "{}": "name is missing", '{"settings": 1}': "is 1"}.items():
        file.write_text(content)
        with pytest.raises(InputError, match=reason):
            recipes.Recipe.from_settings(file)


def test_flat_joins_keys():
    assert flat({"a": {"b": 1, "c": {"d": [2]}}, "e": None, "f": {}}) == {"a.b": 1, "a.c.d": [2], "e": None}
    assert flat({"a": {7: 1}}, "/") == {"a/7": 1}


@pytest.mark.parametrize(
    "overrides",
    [
        {"policy": "hf_" + "a" * 34},
        {"models.sft": "https://user:hf_" + "b" * 34 + "@huggingface.co/a/b"},
        {"ppo": {"report_to": ["sk-" + "c" * 40]}},
        {"nothing": "ghp_" + "d" * 36},
    ],
)
def test_a_secret_is_no_setting(overrides):
    with pytest.raises(InputError, match="looks like an access token.*HF_TOKEN") as told:
        load_recipe("instruct", "tiny", overrides)
    assert not any(letter * 16 in str(told.value) for letter in "abcd"), "it is said again"
