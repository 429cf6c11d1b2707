"""Is my model becoming the same as everyone else's? Models that learned apart, post-trained towards one reward.

Several tiny models learn to describe things, each from a corpus with words of its own. Then GRPO pays all of them for
the same house style. The others' completions are banked, and divmon watches one model against that bank while it is
trained: likeness to the others, the models among the nearest neighbours, and how much it repeats itself.

    python examples/studies/hivemind.py --quick    # offline, on a CPU
"""

import argparse
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _study import Outcome, Study, run

STUDY = Study(
    name="Alike across models",
    question="Is my model becoming the same as everyone else's?",
    claim="Models that learned from different corpora say more of the same after post-training towards one reward.",
    feature="`divmon hivemind FILES`; `others=`: `hivemind_similarity`, `source_models`, `hivemind_repetition`",
    source="after Jiang et al. 2025, arXiv:2510.22954",
)
THINGS = ("river", "clock", "garden", "storm", "ladder", "violin", "harbour", "letter")
SLOTS = (  # the last of each is the house style, which every corpus knows and none prefers
    ("behold", "once", "listen", "truly", "certainly"),
    ("old", "grey", "loud", "thin", "wonderful"),
    ("waits", "turns", "sings", "breaks", "delights"),
    ("alone", "slowly", "twice", "tonight", "beautifully"),
    ("because", "though", "until", "while", "and"),
    ("nobody", "winter", "my", "every", "our"),
    ("asked", "came", "uncle", "stone", "journey"),
    ("again", "early", "laughed", "remembers", "continues"),
)
HOUSE = {slot[-1] for slot in SLOTS}
OWN = 0.7  # share of a corpus's words that are its own


def corpus(rng: random.Random, model: int) -> list[tuple[str, str]]:
    """A batch of descriptions; model `i` prefers the i-th word of each slot."""
    rows = []
    for _ in range(32):
        words = [slot[model] if rng.random() < OWN else rng.choice(slot) for slot in SLOTS]
        rows.append((f"the {rng.choice(THINGS)}", " ".join(words)))
    return rows


def house_style(completions: list[str], **_: Any) -> list[float]:
    """Share of eight places that hold a word of the house style; saying one twice pays once."""
    return [len(HOUSE & set(text.split())) / len(SLOTS) for text in completions]


def words_of(texts: list[str]) -> np.ndarray:
    """An encoder of our own: which words a text has. It is the same before and after."""
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(word for slot in SLOTS for word in slot))}
    found = np.zeros((len(texts), len(vocabulary)))
    for row, text in zip(found, texts, strict=True):
        for word in text.split():
            if word in vocabulary:
                row[vocabulary[word]] += 1
    return found


def banked(drawn: Mapping[str, list[list[str]]]) -> list[dict[str, Any]]:
    """Rows as a bank has them."""
    prompts = [f"the {thing}" for thing in THINGS]
    return [
        {"prompt": prompt, "model": name, "completions": row}
        for name, rows in drawn.items()
        for prompt, row in zip(prompts, rows, strict=True)
    ]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    from _tinylm import grpo, make_model, make_tokenizer, pretrain, sample

    import divmon
    from divmon.uncertainty import mean_interval

    rng = random.Random(args.seed)
    count, steps, rounds = (3, 60, 24) if args.quick else (4, 150, 60)
    k, length = 8, len(SLOTS) + 1
    prompts = [f"the {thing}" for thing in THINGS]
    tokenizer = make_tokenizer([*prompts, *(" ".join(slot) for slot in SLOTS)])
    names = [f"model{i}" for i in range(count)]
    models = {name: make_model(tokenizer, seed=args.seed + i, width=48) for i, name in enumerate(names)}
    for i, model in enumerate(models.values()):
        pretrain(model, tokenizer, lambda i=i: corpus(rng, i), steps=steps)

    def draw(name: str) -> list[list[str]]:
        return sample(models[name], tokenizer, prompts, k=k, length=length, seed=args.seed)

    before = divmon.hivemind(banked({name: draw(name) for name in names}), encoder=words_of)
    with tempfile.TemporaryDirectory() as folder:

        def train(name: str, callbacks: tuple[Any, ...] = ()) -> None:
            grpo(
                models[name], tokenizer, prompts, house_style, out=Path(folder), steps=rounds, length=length,
                callbacks=callbacks, seed=args.seed, learning_rate=2e-3,
            ).train()  # fmt: skip

        for name in names[1:]:
            train(name)
        others = {name: draw(name) for name in names[1:]}
        callback = divmon.DiversityCallback(
            prompts, k=k, every=max(1, rounds // 4), max_new_tokens=length, alarms=[], sinks=[],
            others=banked(others), encoder=words_of, quality=lambda probe, text: house_style([text])[0],
            metrics=["hivemind_similarity", "source_models", "hivemind_repetition", "mean_quality"],
            run_dir=Path(folder, "divmon"),
        )  # fmt: skip
        train(names[0], (callback,))
        history = divmon.History.read(Path(folder, "divmon"))
    after = divmon.hivemind(banked({names[0]: draw(names[0]), **others}), encoder=words_of)
    found: dict[str, Any] = {"models": count}
    for when, alike in (("before", before), ("after", after)):
        off = ~np.eye(count, dtype=bool)
        between = alike.similarity[:, off].mean(axis=1)
        found[f"between_{when}"], found[f"between_{when}_interval"] = (
            float(between.mean()),
            list(mean_interval(between)),
        )
        found[f"sources_{when}"] = float(alike.sources.mean())
        found[f"repetition_{when}"] = float(alike.similarity[:, ~off].mean())
    for name in ("hivemind_similarity", "source_models", "mean_quality"):
        found[f"watched_{name}"] = [float(x) for x in history.series(name, "default").values]
    return found


def judge(found: Mapping[str, Any]) -> Outcome:
    """Likeness between models rose beyond its intervals."""
    before, after = found["between_before"], found["between_after"]
    low, high = found["between_after_interval"]
    number = f"similarity between models {before:.2f} to {after:.2f} ({low:.2f} to {high:.2f})"
    sources = f"sources of the nearest neighbours {found['sources_before']:.1f} to {found['sources_after']:.1f}"
    own = f"each repeats itself {found['repetition_before']:.2f} to {found['repetition_after']:.2f}"
    told = f"{sources} of {found['models']} models; {own}."
    if low > found["between_before_interval"][1]:
        return Outcome(number, f"They became more alike: {told}", True)
    if high < found["between_before_interval"][0]:
        return Outcome(number, f"They became less alike: {told}", False)
    return Outcome(number, f"No change beyond the noise over prompts: {told}", None)


if __name__ == "__main__":
    run(STUDY, measure, judge)
