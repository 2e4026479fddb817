"""The models of a run side by side: one prompt, every model's response, what reward model and judge say of it; in
notebook cells, or as a chat in a browser by gradio."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import ValidationError

from rlhf_utils.data.prepared import PreparedData
from rlhf_utils.data.tokens import start_tokens
from rlhf_utils.evaluation import LABELS
from rlhf_utils.evaluation.compare import compared_models
from rlhf_utils.evaluation.judge import gold_judge
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
        self.judge = gold_judge(run.recipe)

    def ask(self, prompt: str, turns: Mapping[str, Turns] | None = None, seed: int = 0, **decoding) -> list[dict]:
        """Every model's response to `prompt`, sampled with the same random numbers, decoded as in the evaluation unless
        `temperature` or `max_new_tokens` say otherwise. `turns`: the earlier turns of each model's dialogue.

        A row per model: `model`, `response`, `ended`, `tokens`, `reward` (None without a reward model) and `gold` (0 to
        10; None outside the synthetic data). InputError for a prompt that is empty or too long, and for bad settings.
        """
        if not prompt.strip():
            raise InputError("the prompt is empty; ask something")
        try:
            settings = GenerationSettings.model_validate({**self.run.recipe.generation.model_dump(), **decoding})
        except ValidationError as error:
            problem = error.errors()[0]
            raise InputError(f"{problem['loc'][0]}: {problem['msg']}, not {problem['input']!r}") from None
        rows, template = [], self.run.recipe.template
        for name, model in self.models.items():
            whole = self.conversation(prompt, (turns or {}).get(name, ()))
            text, limit = template.format(whole), getattr(model.config, "max_position_embeddings", None)
            length = len(start_tokens(self.tokenizer, [text])[0]) + settings.max_new_tokens
            if limit and length > limit:
                raise InputError(
                    f"{length} tokens are more than the {limit} that {LABELS[name]} reads; ask something shorter"
                )
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

    def vote(self, best: str, dialogues: Mapping[str, Turns]) -> int:
        """Write that model `best` gave the best last response, as rows (prompt, chosen, rejected) of
        `evaluation/votes.jsonl`: one for each model that said something else after the same turns. Returns how many.
        """
        said = {name: (self.conversation(turns[-1][0], turns[:-1]), turns[-1][1]) for name, turns in dialogues.items()}
        prompt, chosen = said[best]
        rejected = {text for asked, text in said.values() if asked == prompt and text.strip() != chosen.strip()}
        rows = [{"prompt": prompt, "chosen": chosen, "rejected": text} for text in sorted(rejected)]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        append_text(self.run.evaluation / VOTES, lines)
        return len(rows)

    def examples(self, most: int = 6) -> list[str]:
        """Held-out prompts to begin with; none where the run has no data."""
        if not self.run.is_complete("data"):
            return []
        return list(PreparedData.load(self.run.folder("data")).first("evaluation", most)["prompt"])


def chat_page(playground: Playground) -> Any:
    """A `gradio.Blocks` with a conversation for each model side by side; its votes are preference rows. After a vote
    every model goes on from the response that was chosen, so that the next rows have one prompt too."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
    try:
        import gradio as gr
    except ImportError:
        raise InputError("the playground needs gradio: `pip install 'gradio>=5.50,<7'`") from None
    names, keep_turns = list(playground.models), playground.run.recipe.form == "dialogue"
    # Version 5 has to be told what version 6 takes for granted.
    messages = {"type": "messages"} if "type" in inspect.signature(gr.Chatbot).parameters else {}

    def shown(dialogues: Mapping[str, Turns], status: str) -> list:
        """The value of everything on the page: a chat for each model, the line below them, and the dialogues."""
        chats = []
        for name in names:
            said = [zip(("user", "assistant"), turn, strict=True) for turn in dialogues.get(name, ())]
            chats.append([{"role": role, "content": text} for turn in said for role, text in turn])
        return [*chats, status, dialogues]

    def send(prompt, temperature, dialogues):
        earlier = dialogues if keep_turns else {}
        try:
            rows = playground.ask(prompt, earlier, temperature=temperature)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from None
        scores = [
            f"{row['model']} {row[key]:.2f} ({key})"
            for key in ("reward", "gold")
            for row in rows
            if row[key] is not None
        ]
        turns = [[*earlier.get(name, ()), (prompt, row["response"])] for name, row in zip(names, rows, strict=True)]
        return shown(dict(zip(names, turns, strict=True)), ", ".join(scores))

    def voted(best, dialogues):
        if not dialogues:
            raise gr.Error("there is nothing to compare yet; ask something first", print_exception=False)
        count = playground.vote(best, dialogues)
        return shown(dict.fromkeys(names, dialogues[best]), f"{count} preference rows added to evaluation/{VOTES}")

    with gr.Blocks(title=f"Playground: {playground.run.root.name}", analytics_enabled=False) as page:
        dialogues, chats, buttons = gr.State({}), [], []
        with gr.Row():
            for name in names:
                with gr.Column(min_width=240):
                    # Plain text: what a model writes is never markup of this page.
                    chats.append(gr.Chatbot(label=LABELS[name], render_markdown=False, **messages))
                    buttons.append(gr.Button(f"{LABELS[name]} is best", size="sm"))
        status = gr.Textbox(show_label=False, interactive=False, placeholder="scores", container=False)
        prompt = gr.Textbox(label="Prompt", placeholder="Ask every model the same", submit_btn=True)
        with gr.Row():
            temperature = gr.Number(playground.run.recipe.generation.temperature, label="Temperature")
            new = gr.Button("New conversation")
        if examples := playground.examples():
            gr.Examples(examples, prompt)
        everything = [*chats, status, dialogues]
        prompt.submit(send, [prompt, temperature, dialogues], everything, api_name="ask")
        for name, button in zip(names, buttons, strict=True):
            button.click(partial(voted, name), dialogues, everything, api_name=f"vote_{name}")
        new.click(lambda: shown({}, ""), None, everything, api_name="new")
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
