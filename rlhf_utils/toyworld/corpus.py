"""Text to pre-train on, in the words of questions, tips and courtesies but never in the form of the prompt template: a
base model knows the language, and yet rambles on when it is asked something."""

from random import Random

from rlhf_utils.toyworld.questions import content


def corpus(documents: int, seed: int) -> list[str]:
    """`documents` texts of several paragraphs each, the same for the same arguments."""
    rng = Random(f"{seed}/corpus")
    return [_document(rng) for _ in range(documents)]


def _document(rng: Random) -> str:
    text, topics = content("corpus"), content("questions").topics
    kinds, weights = zip(*((kind["sentences"], kind["weight"]) for kind in text.kinds.values()), strict=True)
    topic = rng.choice(topics)
    obj = rng.choice(topic["objects"])
    people = rng.sample(text.people, 3)
    paragraphs = []
    for _ in range(rng.randint(*text.paragraphs)):
        if rng.random() < text.new_topic_share:
            topic = rng.choice(topics)
            obj = rng.choice(topic["objects"])
        sentences = [rng.choice(kind) for kind in rng.choices(kinds, weights, k=rng.randint(*text.sentences))]
        if rng.random() < text.speaker_share:
            sentences.insert(0, rng.choice(text.speakers))
        paragraphs.append(" ".join(_fill(sentence, topic, obj, people, rng) for sentence in sentences))
    return "\n\n".join(paragraphs)


def _fill(sentence: str, topic: dict, obj: str, people: list[str], rng: Random) -> str:
    text, questions = content("corpus"), content("questions")
    a, b, c = rng.sample(people, 3)
    task = rng.choice(topic["tasks"])
    near = rng.choice([other for other in topic["tasks"] if other is not task])
    tip, tip2, tip3 = rng.sample(task["tips"], 3)
    harm = rng.choice(questions.harms)
    ask = f"{task['ask'].replace(' my ', ' the ').format(obj)} {rng.choice(text.contexts)}".rstrip()
    return sentence.format(
        a=a, b=b, c=c, o=obj, ask=ask, tip=tip, tip2=tip2, tip3=tip3, near=rng.choice(near["tips"]),
        harm=harm["ask"].format(rng.choice(harm["targets"])).replace(" my ", " the "),
        bad=rng.choice(questions.harmful_tips), place=rng.choice(text.places), time=rng.choice(text.times),
    )  # fmt: skip
