"""Does resampling by modes of thinking widen what a model writes, more than as many plain samples do?

A tiny model first learns to tell tales made of parts (who, does, what, where), most of them of the usual parts, and to
tell one again in three ways when it is shown the first and what is said against it: join two worlds, take rare parts,
or break the rule that somebody acts. GRPO then rewards the favourite tale, and nearly nothing else is told. divmon
resamples in each mode, beside as many plain draws through the same gate, and measures both.

    python examples/studies/creative_modes.py --quick    # offline, on a CPU
"""

import argparse
import random
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _study import Outcome, Study, run

STUDY = Study(
    name="Modes of creative reasoning",
    question="Which kinds of thinking do my samples use, and can resampling widen them?",
    claim="Critique and refinement in a creative mode widen a collapsed model's completions more than as many plain "
    "draws.",
    feature="`divmon widen FILE --model MODEL`; `divmon.widen`",
    source="after Suzuki and Banaei-Kashani 2025, arXiv:2511.20471",
)
WORLDS = {  # who, does, what, where: the usual three first, then the rare three
    "sea": (
        ("whale", "sailor", "crab", "kraken", "mermaid", "oyster"),
        ("dives", "fishes", "drifts", "harpoons", "surfaces", "anchors"),
        ("pearl", "net", "wreck", "trident", "bottle", "coral"),
        ("reef", "harbour", "tide", "trench", "lagoon", "iceberg"),
    ),
    "wood": (
        ("fox", "hunter", "owl", "badger", "druid", "stag"),
        ("prowls", "climbs", "gathers", "burrows", "whittles", "howls"),
        ("acorn", "axe", "honey", "mushroom", "feather", "lantern"),
        ("clearing", "hollow", "thicket", "ravine", "treetop", "swamp"),
    ),
    "town": (
        ("baker", "mayor", "tailor", "beggar", "juggler", "clerk"),
        ("haggles", "marches", "votes", "smuggles", "paints", "gossips"),
        ("bread", "coin", "ledger", "violin", "umbrella", "clockwork"),
        ("market", "chapel", "alley", "sewer", "attic", "theatre"),
    ),
    "sky": (
        ("pilot", "eagle", "angel", "comet", "balloonist", "zephyr"),
        ("soars", "glides", "signals", "plummets", "hovers", "thunders"),
        ("cloud", "kite", "star", "parachute", "rainbow", "satellite"),
        ("runway", "orbit", "summit", "stratosphere", "horizon", "eyrie"),
    ),
}
TWISTS = ("remembers", "forgives", "becomes", "outlives", "imagines", "divorces")
TELLERS = ("ann", "bo", "cy", "di", "ed", "flo")
WORLD_OF = {word: world for world, slots in WORLDS.items() for slot in slots for word in slot}
SLOT_OF = {word: i for slots in WORLDS.values() for i, slot in enumerate(slots) for word in slot}
RANK_OF = {word: i for slots in WORLDS.values() for slot in slots for i, word in enumerate(slot)}
HINTS = {"combinational": "join", "exploratory": "edge", "transformational": "rule"}
TEMPLATES = {mode: f"{{question}} {{answer}} ; same {{critique}} ; {hint} =>" for mode, hint in HINTS.items()}
PLAIN = {None: 0.7, "exploratory": 0.1, "combinational": 0.1, "transformational": 0.1}


def tell(rng: random.Random, world: str, mode: str | None, avoided: frozenset[str] = frozenset()) -> str:
    """A tale of `world` in a way of thinking, without the words in `avoided` where that can be."""

    def one(where: str, slot: int, *, rare: bool = False) -> str:
        words = WORLDS[where][slot][3:] if rare else WORLDS[where][slot][:3]
        return rng.choice([word for word in words if word not in avoided] or words)

    if mode == "transformational":
        return f"{one(world, 3, rare=rng.random() < 0.5)} {rng.choice(TWISTS)} {one(world, 0, rare=rng.random() < 0.5)}"
    if mode == "combinational":
        other = rng.choice([name for name in WORLDS if name != world])
        return f"{one(world, 0)} {one(world, 1)} {one(other, 2)} {one(other, 3)}"
    return " ".join(one(world, slot, rare=mode == "exploratory") for slot in range(4))


def kind(text: str) -> str | None:
    """In which way a tale was thought up, by its parts; "infeasible" when it is none.

    Who acts must act in their own world, and things are only found where they belong.
    """
    words = text.split()
    slots, worlds = [SLOT_OF.get(word) for word in words], [WORLD_OF.get(word) for word in words]
    if slots == [3, None, 0] and words[1] in TWISTS and worlds[0] == worlds[2]:
        return "transformational"
    if slots != [0, 1, 2, 3] or worlds[0] != worlds[1] or worlds[2] != worlds[3]:
        return "infeasible"
    if worlds[0] != worlds[2]:
        return "combinational"
    return "exploratory" if sum(RANK_OF[word] >= 3 for word in words) >= 2 else None


def on_topic(probe: Any, text: str) -> float:
    """Quality: share of the words that are of the world that was asked for (a twist is of every world)."""
    world, words = probe.text.split()[1], text.split()
    return sum(word in TWISTS or WORLD_OF.get(word) == world for word in words) / max(1, len(words))


def favourite(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """The reward of the collapse: share of the places that hold the best-liked part."""
    liked = [[slot[0] for slot in WORLDS[prompt.split()[1]]] for prompt in prompts]
    pairs = zip(liked, (text.split() for text in completions), strict=True)
    return [sum(a == b for a, b in zip(want, got, strict=False)) / max(4, len(got)) for want, got in pairs]


def critic(request: Any) -> str:
    """The words of the completion that at least half of the others have too; all of them when it stands alone."""
    counts = Counter(word for text in request.others for word in set(text.split()))
    words = request.attempt.text.split()
    return " ".join(word for word in words if 2 * counts[word] >= len(request.others)) or " ".join(words)


def lesson(rng: random.Random) -> tuple[str, str]:
    """A prompt and what to write: a tale, or a tale told again in the way that is asked for."""
    world, teller = rng.choice(list(WORLDS)), rng.choice(TELLERS)
    question = f"tell {world} by {teller} =>"
    if rng.random() < 0.4:
        return question, tell(rng, world, rng.choices(list(PLAIN), list(PLAIN.values()))[0])
    first = tell(rng, world, rng.choices(list(PLAIN), list(PLAIN.values()))[0])
    said = [word for word in first.split() if rng.random() < 0.8] or first.split()
    mode = rng.choice(list(HINTS))
    prompt = f"{question} {first} ; same {' '.join(said)} ; {HINTS[mode]} =>"
    return prompt, tell(rng, world, mode, frozenset(said))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    from _tinylm import grpo, make_model, make_tokenizer, pretrain, sample

    import divmon

    steps, rounds, tellers = (220, 14, 3) if args.quick else (700, 40, 6)
    rng = random.Random(args.seed)
    hints = " ".join(HINTS.values())
    tokenizer = make_tokenizer([f"tell by => ; same {hints}", *WORLDS, *TELLERS, *WORLD_OF, *TWISTS])
    model = make_model(tokenizer, seed=args.seed, width=64)
    pretrain(model, tokenizer, lambda: [lesson(rng) for _ in range(64)], steps=steps, lr=5e-3)
    prompts = [f"tell {world} by {teller} =>" for world in WORLDS for teller in TELLERS[:tellers]]
    base = sample(model, tokenizer, prompts, k=8, length=6, seed=args.seed)
    with tempfile.TemporaryDirectory() as folder:
        grpo(
            model, tokenizer, [f"tell {world} by {teller} =>" for world in WORLDS for teller in TELLERS], favourite,
            out=Path(folder), steps=rounds, length=6, learning_rate=2e-3 if args.quick else 1e-3, seed=args.seed,
        ).train()  # fmt: skip
    now = sample(model, tokenizer, prompts, k=8, length=6, seed=args.seed + 1)
    found = divmon.widen(
        [{"prompt": prompt, "completions": row} for prompt, row in zip(prompts, now, strict=True)],
        (model, tokenizer),
        critic,
        quality=on_topic,
        feasible=lambda probe, text: kind(text) != "infeasible",
        thinking=lambda prompt, text, others: None if kind(text) == "infeasible" else kind(text),
        templates=TEMPLATES,
        max_new_tokens=6,
        good=0.5,
        logprob=None,  # a collapsed model finds everything else unlikely
        key=args.seed,
    )
    print(found.table())
    return numbers(found, divmon, prompts, base, now)


def numbers(found: Any, divmon: Any, prompts: list[str], base: Any, now: Any) -> dict[str, Any]:
    from divmon.resampling.modes import WordThinking

    def wordings(rows: Any) -> float:
        given = [{"prompt": prompt, "completions": row} for prompt, row in zip(prompts, rows, strict=True)]
        results = divmon.measure(given, metrics=["surface_vendi_1"])
        return float(results.get("surface_vendi_1").measurement.value)

    def kinds(rows: Any) -> dict[str, float]:
        tally = Counter(kind(text) or "none" for row in rows for text in row)
        return {name: count / tally.total() for name, count in tally.most_common()}

    rule, checked = WordThinking(), [text for row in base[:: max(1, len(base) // 4)] for text in row]
    told = [(kind(t), rule("", t, checked[:i] + checked[i + 1 :])) for i, t in enumerate(checked)]
    arms = found.arms.items()
    return {
        "wordings_base": wordings(base),
        "wordings_collapsed": wordings(now),
        "kinds_base": kinds(base),
        "kinds_collapsed": kinds(now),
        "prompts": found.served,
        "draws_each": found.arms["plain"].budget,
        "feasible": {name: arm.feasible for name, arm in arms},
        "accepted": {name: len(arm.accepted) for name, arm in arms},
        "as_asked": {name: arm.thinking.get(name, 0.0) for name, arm in arms if name != "plain"},
        "wordings_gain": {mode: interval(found.get(mode, "surface_vendi_1")) for mode in HINTS},
        "quality_gain": {mode: interval(found.get(mode, "mean_quality")) for mode in HINTS},
        "word_rule_agrees": sum(a == b for a, b in told if a != "infeasible") / max(1, len(told)),
    }


def interval(gain: Any) -> list[float]:
    return [gain.gain, gain.low, gain.high]


def judge(found: Mapping[str, Any]) -> Outcome:
    """Every mode's gain lies above zero with its whole interval."""
    gains = found["wordings_gain"]
    number = "; ".join(f"{mode} {g:+.2f} ({low:+.2f} to {high:+.2f})" for mode, (g, low, high) in gains.items())
    number = f"effective wordings over plain draws: {number}"
    before, after = found["wordings_base"], found["wordings_collapsed"]
    if not after < 0.8 * before:
        return Outcome(number, f"Nothing collapsed ({before:.1f} to {after:.1f} wordings), so nothing to widen.", None)
    wider = [mode for mode, (_, low, _) in gains.items() if low > 0]
    feasible = ", ".join(f"{100 * share:.0f} %" for share in found["feasible"].values())
    cost = ", ".join(f"{change:+.2f}" for change, _, _ in found["quality_gain"].values())
    text = (
        f"{', '.join(wider) or 'no mode'} widened; feasible (plain, then modes): {feasible}; quality changed by {cost}."
    )
    return Outcome(number, text[0].upper() + text[1:], len(wider) == len(gains))


if __name__ == "__main__":
    run(STUDY, measure, judge)
