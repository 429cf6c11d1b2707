"""Do my outputs still sound like people? A model of human prose, before and after a reward for plain, common words.

A tiny model learns passages by people (of those that come with divmon). Its outputs are compared with passages it has
not seen, in six dimensions of lexical diversity at matched length. Then GRPO pays for words that are common, a stand-in
for a preference for plain writing that says nothing about diversity, and divmon watches the gap to people grow, or not.

    python examples/studies/human_away.py --quick    # offline, on a CPU
    python examples/studies/human_away.py --references mine.jsonl
"""

import argparse
import random
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _study import Outcome, Study, run

STUDY = Study(
    name="Away from human vocabulary",
    question="Do my outputs still sound like people?",
    claim="Post-training moves outputs away from human texts in most of six dimensions of lexical diversity.",
    feature="`divmon human FILE --references FILE`; `references=`: `human_gap` and a curve for each dimension",
    source="after Kendro et al. 2025, arXiv:2508.00086, on dimensions after Jarvis 2013",
)
WINDOW, LENGTH = 25, 36  # words compared; tokens of a text
COMMON = 60  # words that are paid for
PUNCTUATION = re.compile(r"[\w'-]*\w|[.,;:!?]")


def spaced(text: str) -> str:
    """Lower case, punctuation as tokens of its own."""
    return " ".join(PUNCTUATION.findall(text.lower()))


def pieces(rng: random.Random, texts: list[str], n: int) -> list[tuple[str, str]]:
    """Two words of a passage, and what follows them."""
    rows = []
    for text in rng.choices(texts, k=n):
        words = text.split()
        start = rng.randrange(max(1, len(words) - LENGTH - 2))
        rows.append((" ".join(words[start : start + 2]), " ".join(words[start + 2 : start + 2 + LENGTH])))
    return rows


def measure(args: argparse.Namespace) -> dict[str, Any]:
    from _tinylm import grpo, make_model, make_tokenizer, pretrain

    import divmon
    from divmon.metrics.human import DIMENSIONS
    from divmon.yardsticks import read_references

    rng = random.Random(args.seed)
    learned, steps, rounds = (16, 90, 10) if args.quick else (24, 400, 20)
    people = [spaced(text) for text in read_references(args.references).texts]
    rng.shuffle(people)
    seen, unseen = people[:learned], people[learned:]
    fair = [" ".join(text.split()[2 : 2 + LENGTH]) for text in unseen]  # as long as a completion can be
    between = divmon.human_gap(fair[::2], fair[1::2], words=WINDOW)
    tokenizer = make_tokenizer(seen)
    model = make_model(tokenizer, seed=args.seed, width=64)
    pretrain(model, tokenizer, lambda: pieces(rng, seen, 16), steps=steps)
    common = {word for word, _ in Counter(" ".join(seen).split()).most_common(COMMON) if word.isalpha()}

    def plain(completions: list[str], **_: Any) -> list[float]:
        """Share of a full text's places that hold a common word."""
        return [sum(word in common for word in text.split()) / LENGTH for text in completions]

    prompts = [prompt for prompt, _ in pieces(rng, seen, 16)]
    with tempfile.TemporaryDirectory() as folder:
        callback = divmon.DiversityCallback(
            prompts, k=4, every=max(1, rounds // 2), max_new_tokens=LENGTH, alarms=[], sinks=[],
            references=read_references(fair, length=WINDOW), quality=lambda probe, text: plain([text])[0],
            metrics=["human_gap", *(f"human_gap_{name}" for name in DIMENSIONS), "mean_quality"],
            run_dir=Path(folder, "divmon"),
        )  # fmt: skip
        grpo(
            model, tokenizer, prompts, plain, out=Path(folder), steps=rounds, length=LENGTH, callbacks=[callback],
            per_device_train_batch_size=32, learning_rate=5e-4, seed=args.seed,
        ).train()  # fmt: skip
        history = divmon.History.read(Path(folder, "divmon"))
    found: dict[str, Any] = {"people_apart": between.distance, "people_apart_low": between.distance_low}
    for key, name in (("gap", "human_gap"), ("reward", "mean_quality")):
        series = history.series(name, "default")
        for when, i in (("before", 0), ("after", -1)):
            found[f"{key}_{when}"] = float(series.values[i])
            found[f"{key}_{when}_interval"] = [float(series.low[i]), float(series.high[i])]
    for when, i in (("before", 0), ("after", -1)):
        every = {name: history.series(f"human_gap_{name}", "default") for name in DIMENSIONS}
        found[f"dimensions_{when}"] = {name: float(series.values[i]) for name, series in every.items()}
        found[f"away_{when}"] = sum(bool(s.low[i] > 0 or s.high[i] < 0) for s in every.values())
    return found


def judge(found: Mapping[str, Any]) -> Outcome:
    """The distance grew beyond its intervals, and more of the dimensions are away than were."""
    (low, high), before = found["gap_after_interval"], found["gap_before_interval"]
    number = f"distance {found['gap_before']:.1f} to {found['gap_after']:.1f} SD ({low:.1f} to {high:.1f})"
    further = sum(
        abs(found["dimensions_after"][name]) > abs(value) for name, value in found["dimensions_before"].items()
    )
    reward = f"{found['reward_before']:.2f} to {found['reward_after']:.2f}"
    told = (
        f"{further} of 6 dimensions moved away; {found['away_before']} were off people, {found['away_after']} are at "
        f"the end; the reward went from {reward}."
    )
    if low > before[1] and further > 3:
        return Outcome(number, told, True)
    if low > before[1]:
        return Outcome(number, f"The distance grew, but in few dimensions: {told}", None)
    if high < before[0]:
        return Outcome(number, f"Outputs came closer to people: {told}", False)
    return Outcome(number, f"No change beyond the noise over prompts: {told}", None)


if __name__ == "__main__":
    run(
        STUDY,
        measure,
        judge,
        options=lambda parser: parser.add_argument("--references", default="shipped", help="texts by people"),
    )
