"""Does a writing assistant erase its users' voices? Rewrites before and after post-training for polish.

Writers differ in how often they say "i", "can't", "maybe", plain verbs and "!". A tiny model first learns to give their
texts back, with slips either way. GRPO then rewards polish: the smooth variant of each word, in its place. divmon
watches the rewrites: how far each attribute moves (shift), and whether writers still differ (spread), next to the
reward.

    python examples/studies/voice.py --quick    # offline, on a CPU
"""

import argparse
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _study import Outcome, Study, run

STUDY = Study(
    name="Polish and distortion",
    question="Does my writing assistant erase its users' voices?",
    claim="Post-training for polish raises what readers reward while rewrites by different writers become more alike.",
    feature="`divmon voice FILE`; the `rewrite` pack: `voice_spread`, `voice_shift`; `attributes=`",
    source="after Roettger et al. 2026, arXiv:2604.22503",
)
PAIRS = (("i", "one"), ("can't", "cannot"), ("maybe", "certainly"), ("get", "acquire"), ("!", "."))
NOUNS = ("bread", "a boat", "the keys", "some rest", "a map", "the news", "a lamp", "help")
SENTENCES = 3
SMOOTH = dict(PAIRS)
OTHER = SMOOTH | {smooth: raw for raw, smooth in PAIRS}
SLIP = 0.2


def write(rng: random.Random, rates: list[float]) -> str:
    """A text by a writer who takes the raw variant of each pair at a rate of their own."""
    sentences = []
    for _ in range(SENTENCES):
        who, can, sure, get, end = (pair[rng.random() >= rate] for pair, rate in zip(PAIRS, rates, strict=True))
        sentences.append(f"{who} {sure} {can} {get} {rng.choice(NOUNS).replace(' ', '_')} {end}")
    return " ".join(sentences)


def writers(rng: random.Random, n: int) -> list[list[float]]:
    return [[rng.betavariate(0.6, 0.6) for _ in PAIRS] for _ in range(n)]


def slips(rng: random.Random, text: str) -> str:
    """The text with a word in five in the other variant: a model that keeps voices, with room to go either way."""
    words = text.split()
    return " ".join(OTHER[word] if word in OTHER and rng.random() < SLIP else word for word in words)


def original(prompt: str) -> str:
    return prompt.removeprefix("rewrite : ").removesuffix(" =>")


def polish(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """Share of places that hold the smooth variant of the writer's word, or the same word where there is none."""
    scores = []
    for prompt, completion in zip(prompts, completions, strict=True):
        wanted = [SMOOTH.get(word, word) for word in original(prompt).split()]
        made = completion.split()
        scores.append(sum(a == b for a, b in zip(wanted, made, strict=False)) / max(len(wanted), len(made)))
    return scores


def plainness(text: str) -> float:
    """An attribute of our own: share of the words that have a smoother variant."""
    words = text.split()
    return sum(word in SMOOTH for word in words) / max(1, len(words))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    from _tinylm import grpo, make_model, make_tokenizer, pretrain

    import divmon

    rng = random.Random(args.seed)
    people, steps, rounds = (16, 220, 12) if args.quick else (40, 600, 40)
    size = SENTENCES * 6
    tokenizer = make_tokenizer(
        ["rewrite : =>", *(" ".join(pair) for pair in PAIRS), " ".join(noun.replace(" ", "_") for noun in NOUNS)]
    )
    model = make_model(tokenizer, seed=args.seed, width=64)

    def draw() -> list[tuple[str, str]]:
        texts = [write(rng, rates) for rates in writers(rng, 32)]
        return [(f"rewrite : {text} =>", slips(rng, text)) for text in texts]

    pretrain(model, tokenizer, draw, steps=steps, lr=5e-3)
    texts = [write(rng, rates) for rates in writers(rng, people)]
    probes = [{"prompt": f"rewrite : {text} =>", "reference": text, "domain": "rewrite"} for text in texts]
    with tempfile.TemporaryDirectory() as folder:
        callback = divmon.DiversityCallback(
            probes,
            k=4,
            every=rounds,
            max_new_tokens=size + 1,
            attributes=["default", plainness],  # the shipped counts, and one of our own
            metrics=["voice_spread", "voice_shift", "voice_spread_plainness", "voice_shift_plainness", "mean_quality"],
            quality=lambda probe, completion: polish([probe.text], [completion])[0],
            alarms=[],
            sinks=[],
            run_dir=Path(folder, "divmon"),
        )
        prompts = [f"rewrite : {write(rng, rates)} =>" for rates in writers(rng, 64)]
        trainer = grpo(
            model, tokenizer, prompts, polish, out=Path(folder), steps=rounds, length=size + 1, callbacks=[callback],
            per_device_train_batch_size=64, learning_rate=2e-3, seed=args.seed,
        )  # fmt: skip
        trainer.train()
        history = divmon.History.read(Path(folder, "divmon"))
        return numbers(history)


def numbers(history: Any) -> dict[str, Any]:
    """First and last values, with intervals, and the spread of each attribute at the end."""
    found: dict[str, Any] = {}
    for key, name in (("spread", "voice_spread"), ("shift", "voice_shift"), ("reward", "mean_quality")):
        series = history.series(name, "rewrite")
        for when, i in (("before", 0), ("after", -1)):
            found[f"{key}_{when}"] = float(series.values[i])
            found[f"{key}_{when}_interval"] = [float(series.low[i]), float(series.high[i])]
    last = {m.metric: m for m in history.evaluations[-1].measurements}
    found["spread_after_by_attribute"] = dict(last["voice_spread"].details["spread"])
    found["shift_after_by_attribute"] = dict(last["voice_shift"].details["shift_sd"])
    return found


def judge(found: Mapping[str, Any]) -> Outcome:
    """The reward rose, and the spread fell, both beyond their intervals."""
    rewarded = found["reward_after_interval"][0] > found["reward_before_interval"][1]
    narrower = found["spread_after_interval"][1] < found["spread_before_interval"][0]
    low, high = found["spread_after_interval"]
    number = f"spread ratio {found['spread_before']:.2f} to {found['spread_after']:.2f} ({low:.2f} to {high:.2f})"
    reward = f"{found['reward_before']:.2f} to {found['reward_after']:.2f}"
    if not rewarded:
        return Outcome(number, f"The reward did not rise ({reward}), so nothing was bought with voices.", None)
    alike = sum(ratio < 1 for ratio in found["spread_after_by_attribute"].values())
    share = f"{alike} of {len(found['spread_after_by_attribute'])} attributes"
    if narrower:
        verdict = f"The reward rose from {reward}, and {share} differ less between rewrites than between writers."
        return Outcome(number, verdict, True)
    return Outcome(number, f"The reward rose from {reward}, and voices kept their spread ({share} differ less).", False)


if __name__ == "__main__":
    run(STUDY, measure, judge)
