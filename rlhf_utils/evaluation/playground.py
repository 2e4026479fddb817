"""The models of a run side by side: one prompt, every model's response, what reward model and judge say of it; in
notebook cells, or as a chat in a browser by gradio."""

import inspect
import json
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import ValidationError

from rlhf_utils.data.prepared import PreparedData
from rlhf_utils.data.tokens import start_tokens
from rlhf_utils.evaluation import LABELS
from rlhf_utils.evaluation.evaluator import compared_models
from rlhf_utils.evaluation.judge import judge_of
from rlhf_utils.models.generation import answer_prompts
from rlhf_utils.models.loading import load_policy, load_tokenizer
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import append_text
from rlhf_utils.platforms.runtime import detect_device
from rlhf_utils.rewards.reward_model import load_reward
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.sections import GenerationSettings
from rlhf_utils.settings.template import NEXT_ASSISTANT, NEXT_HUMAN

VOTES = "votes.jsonl"
Turns = Sequence[tuple[str, str]]


class Playground:
    """The finished policies of `run`, loaded once, and its reward model; InputError without any policy."""

    def __init__(self, run: Run):
        self.run, self.device = run, detect_device()
        names = [name for name in compared_models(run) if run.is_complete(name)]
        if not names:
            raise InputError(f"{run.root} has no finished model to ask; run `python -m rlhf_utils run` first")
        self.tokenizer = load_tokenizer(run.folder(names[0]))
        self.models = {name: load_policy(run.folder(name), self.device).eval() for name in names}
        self.reward = load_reward(run.folder("reward_model"), self.device) if run.is_complete("reward_model") else None
        judge = run.judging_stage
        self.judge = judge_of(run) if not judge or run.is_complete(judge) else None

    def ask(self, prompt: str, turns: Turns = (), seed: int = 0, models: Sequence[str] = (), **decoding) -> list[dict]:
        """The response of each of `models`, all by default, to `prompt` after the earlier `turns` of a dialogue,
        sampled with the same random numbers, decoded as in the evaluation unless `temperature` or `max_new_tokens` say
        otherwise.

        A row per model: `model`, `response`, `ended`, `tokens`, `reward` (None without a reward model) and `gold` (the
        judge's score, see `judge_of`; None without one). InputError for a prompt that is empty or too long, and for bad
        settings.
        """
        if not prompt.strip():
            raise InputError("the prompt is empty; ask something")
        try:
            settings = GenerationSettings.model_validate({**self.run.recipe.generation.model_dump(), **decoding})
        except ValidationError as error:
            problem = error.errors()[0]
            raise InputError(f"{problem['loc'][0]}: {problem['msg']}, not {problem['input']!r}") from None
        rows, template, whole = [], self.run.recipe.template, self.conversation(prompt, turns)
        text = template.format(whole)
        length = len(start_tokens(self.tokenizer, [text])[0]) + settings.max_new_tokens
        for name in models or self.models:
            model = self.models[name]
            limit = getattr(model.config, "max_position_embeddings", None) or length
            if length > limit:
                raise InputError(f"{length} tokens are more than the {limit} that {LABELS[name]} reads; shorten it")
            (answer,) = answer_prompts(model, self.tokenizer, [text], settings, self.device, seed, template)
            row = {"model": LABELS[name], "response": answer.text, "ended": answer.ended, "tokens": len(answer.tokens)}
            row["reward"] = self.reward([whole], [answer.text]).item() if self.reward else None
            rows.append(row | {"gold": self.judge([whole], [answer.text])[0] if self.judge else None})
        return rows

    def conversation(self, prompt: str, turns: Turns = ()) -> str:
        """`prompt` after earlier turns as one prompt, in the form of the dialogues of the data."""
        if turns and self.run.recipe.form != "dialogue":
            raise InputError("this recipe continues texts, it holds no dialogues; ask without earlier turns")
        return "".join(f"{asked}{NEXT_ASSISTANT} {answered}{NEXT_HUMAN} " for asked, answered in turns) + prompt

    def vote(self, prompt: str, chosen: str, responses: Sequence[str], turns: Turns = ()) -> int:
        """Write that `chosen` is the best of the `responses`, as rows (prompt, chosen, rejected) of
        `evaluation/votes.jsonl`: one for each other response. Returns how many."""
        whole, others = self.conversation(prompt, turns), {t for t in responses if t.strip() != chosen.strip()}
        rows = [{"prompt": whole, "chosen": chosen, "rejected": text} for text in sorted(others)]
        append_text(self.run.evaluation / VOTES, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return len(rows)

    def examples(self, most: int = 6) -> list[str]:
        """Held-out prompts to begin with; none where the run has no data."""
        if not self.run.is_complete("data"):
            return []
        return list(PreparedData.load(self.run.folder("data")).first("evaluation", most)["prompt"])


def chat_page(playground: Playground) -> Any:
    """A `gradio.Blocks` with one conversation and below it every model's response to the last prompt, side by side. A
    vote becomes preference rows, and the conversation goes on from the response that was chosen."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
    try:
        import gradio as gr
    except ImportError:
        raise InputError("the playground needs gradio: `pip install 'gradio>=5.50,<7'`") from None
    recipe, names = playground.run.recipe, list(playground.models)
    # Version 5 has to be told what version 6 takes for granted.
    messages = {"type": "messages"} if "type" in inspect.signature(gr.Chatbot).parameters else {}

    def send(prompt, temperature, turns):
        try:
            rows = playground.ask(prompt, turns, temperature=temperature)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from None
        scores = [[f"{key} {row[key]:.2f}" for key in ("reward", "gold") if row[key] is not None] for row in rows]
        told = [f"{row['model']}: {', '.join(found)}" for row, found in zip(rows, scores, strict=True)]
        return [*(row["response"] for row in rows), " | ".join(told), prompt]

    def voted(place, asked, turns, *responses):
        if not asked:
            raise gr.Error("there is nothing to compare yet; ask something first", print_exception=False)
        count = playground.vote(asked, responses[place], responses, turns)
        turns = [*turns, (asked, responses[place])] if recipe.form == "dialogue" else []
        said = [one for turn in turns for one in zip(("user", "assistant"), turn, strict=True)]
        chat = [{"role": role, "content": text} for role, text in said]
        return [chat, turns, *[""] * len(names), f"{count} preference rows added to evaluation/{VOTES}", ""]

    with gr.Blocks(title=f"Playground: {playground.run.root.name}", analytics_enabled=False) as page:
        turns, asked, said, buttons = gr.State([]), gr.State(""), [], []
        # Plain text: what a model writes is never markup of this page.
        conversation = gr.Chatbot(label="Conversation", render_markdown=False, **messages)
        with gr.Row():
            for name in names:
                with gr.Column(min_width=240):
                    said.append(gr.Textbox(label=LABELS[name], interactive=False, lines=6))
                    buttons.append(gr.Button(f"{LABELS[name]} is best", size="sm"))
        status = gr.Textbox(show_label=False, interactive=False, placeholder="scores", container=False)
        prompt = gr.Textbox(label="Prompt", placeholder="Ask every model the same", submit_btn=True)
        temperature = gr.Number(recipe.generation.temperature, label="Temperature")
        if examples := playground.examples():
            gr.Examples(examples, prompt)
        answers = [*said, status, asked]
        prompt.submit(send, [prompt, temperature, turns], answers, api_name="ask")
        for place, name in enumerate(names):
            seen, shown = [asked, turns, *said], [conversation, turns, *answers]
            buttons[place].click(partial(voted, place), seen, shown, api_name=f"vote_{name}")
        gr.Button("New conversation").click(lambda: [[], []], None, [conversation, turns], api_name="new")
    return page


def serve(playground: Playground, port: int | None = None, **how: Any) -> tuple[Any, str]:
    """The chat page, served on 127.0.0.1 (in Colab by a link of gradio's), and its address."""
    how |= {"server_name": "127.0.0.1", "prevent_thread_lock": True, "quiet": True}
    page = chat_page(playground)
    try:
        _, url, shared = page.launch(server_port=port or None, **how)
    except (OSError, OverflowError) as error:
        raise InputError(f"port {port} cannot be used ({error}); leave it out for a free one") from None
    return page, shared or url
