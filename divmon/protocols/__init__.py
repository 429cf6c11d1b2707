"""Named protocols of the literature: every choice behind a published number, measured in that study's own way.

What each cannot give exactly stands in its `not_reproducible`. A protocol's metrics keep the study's habits, faults
included, where these change numbers; for watching a run, divmon's own metrics are better.
"""

from __future__ import annotations

from divmon.errors import unknown
from divmon.metrics import METRICS
from divmon.metrics.likeness import intra_repetition_at
from divmon.protocols.base import Protocol, strip_think
from divmon.protocols.rules import (
    INTRA_SIMILARITY,
    JARVIS,
    KIRK_NLI,
    NOVELTYBENCH,
    SEMANTIC_ACROSS,
    VOCABULARY,
    ead_across,
    ead_of,
    karouzos_words,
    kirk_words,
    on_correct,
)

_KAROUZOS = "Karouzos, Tan & Aletras 2026, arXiv:2604.16027"
_KIRK = "Kirk et al. 2024, arXiv:2310.06452"
SKYWORK = (-7.71875, -6.28125, -6.0, -5.71875, -5.5, -5.0, -4.375, -3.4375, -2.046875)

KAROUZOS_2026 = Protocol(
    name="karouzos2026",
    title="Where diversity collapses in post-training: EAD, SBERT, Vendi, entailment, and correct outputs alone.",
    metrics=(
        ead_of(karouzos_words, clip=True, source=_KAROUZOS),
        METRICS["semantic_distance"],
        METRICS["vendi_1"],
        METRICS["nli_diversity"],
        on_correct(METRICS["semantic_distance"]),
        on_correct(METRICS["vendi_1"]),
        on_correct(METRICS["ast_distance_4"]),
    ),
    source=_KAROUZOS,
    k=16,
    prompts=500,
    decoding={"temperature": 0.6, "top_p": 0.95, "max_new_tokens": 32_768},
    encoder="sentence-transformers/all-mpnet-base-v2",
    nli="FacebookAI/roberta-large-mnli",
    prepare=strip_think,
    tokenisation="full stops and newlines deleted, split at white space, case kept",
    aggregator="mean over prompts, beside the population standard deviation",
    constants={"V": VOCABULARY, "n": (1, 5), "vendi_order": 1, "nli_positions": 3, "seed": 1234, "ast_height": 4},
    not_reproducible=(
        "the study samples sentence positions for entailment from one random stream over all prompts; here the draw "
        "hangs on the two texts alone, so single prompts differ by chance and means by very little",
        "EAD follows the released code (V = 50,257 whatever the model), not the text (the model's own vocabulary)",
        "AST follows the released code (subtrees of height exactly 4), not the text (up to 4)",
        "a prompt with one completion is missing here; the released code counts it 0 (Vendi: 1)",
        "the distance of correct programs by UniXcoder needs a second encoder: measure it apart, with "
        "--encoder microsoft/unixcoder-base and --metric semantic_distance_correct",
        "500 prompts is the usual number: 479 for MATH geometry, 541 for IFEval, 164 for HumanEval, 817 for TruthfulQA",
    ),
)

KIRK_2024 = Protocol(
    name="kirk2024",
    title="Effects of RLHF on diversity: EAD, sentence-BERT and entailment, per input and across inputs.",
    metrics=(
        ead_of(kirk_words, clip=False, source=_KIRK),
        METRICS["semantic_distance"],
        KIRK_NLI,
        ead_across(kirk_words, source=_KIRK),
        SEMANTIC_ACROSS,
    ),
    source=_KIRK,
    k=16,
    prompts=500,
    decoding={"temperature": 1.0},
    encoder="bert-large-nli-stsb-mean-tokens",
    nli="roberta-large-mnli",
    tokenisation="full stops and newlines deleted, split at single spaces, case kept",
    constants={"V": VOCABULARY, "n": (1, 5), "nli_weights": {"contradiction": 1, "neutral": 0, "entailment": -1}},
    not_reproducible=(
        "the sign of the published entailment numbers is inferred: the released code returns 1 - mean, the numbers "
        "look like the mean itself, which is what stands here (-2 entailment to 2 contradiction)",
        "the variant of entailment on sampled sentences is not computed: its draws are not seeded",
        "across inputs, EAD has no interval: a prompt drawn twice repeats its n-grams",
        "beyond 512 prompts EAD across inputs is taken from 512 of them, and it depends on their number",
    ),
)

NOVELTYBENCH_2025 = Protocol(
    name="noveltybench2025",
    title="NoveltyBench: how many of ten generations are different, and what they are worth to an impatient reader.",
    metrics=NOVELTYBENCH,
    source="Zhang et al. 2025, NoveltyBench, arXiv:2504.05228",
    k=10,
    prompts=1100,
    decoding={"temperature": 1.0, "max_new_tokens": 512},
    equivalence="noveltybench",
    tokenisation="none: texts are compared as they are; answers of up to five words by the words they share",
    constants={
        "patience": 0.8,
        "threshold": 0.102,
        "side_tokens": 128,
        "short_answer_words": 5,
        "reward_model": "Skywork/Skywork-Reward-Gemma-2-27B-v0.2",
        "reward_thresholds": SKYWORK,
    },
    not_reproducible=(
        "rewards must stand in the file as scores from 1 to 10: the reward model is not run here "
        "(`noveltybench_score` turns its raw rewards into them)",
        "the distinct numbers of the leaderboard may be one off: in the one row that can be recomputed, utility agrees "
        "and distinct differs by exactly 1",
    ),
)

HIVEMIND_2025 = Protocol(
    name="hivemind2025",
    title="Artificial Hivemind: the share of open-ended prompts that a model answers in much the same way each time.",
    metrics=(INTRA_SIMILARITY, intra_repetition_at(0.8)),
    source="Jiang et al. 2025, arXiv:2510.22954",
    k=50,
    prompts=100,
    decoding={"temperature": 1.0, "top_p": 0.9},
    encoder="text-embedding-3-small",
    supplied=("encoder",),
    tokenisation="the encoder's own",
    aggregator="share of prompts whose mean pairwise cosine exceeds 0.8",
    constants={"threshold": 0.8, "unit": "a prompt's mean over pairs", "published_share": 0.79},
    not_reproducible=(
        "text-embedding-3-small is a paid service: pass a function that calls it; 0.8 means something else for any "
        "other encoder",
        "the comparison of several models needs their completions: see `divmon.metrics.hivemind`",
    ),
)

ECHOCHAMBER_2025 = Protocol(
    name="echochamber2025",
    title="Echo Chamber: which of three output formats takes over, and how accurate each is.",
    metrics=(METRICS["format_dominance"], METRICS["pass_at_1"], METRICS["coverage"]),
    source="Zhao et al. 2025, arXiv:2504.07912",
    k=64,
    decoding={"temperature": 0.7, "top_p": 0.95, "max_new_tokens": 2048},
    formats="echo-chamber",
    tokenisation="none: a format is found by substrings",
    aggregator="shares of all completions; accuracy of each format in the details of format_dominance",
    constants={"labels": ("llm-code", "tinygsm-code", "text"), "execution_seconds": 3},
    not_reproducible=(
        "nothing is executed: a text with both <llm-code> and def is llm-code when its tag is closed, whether or not "
        "the code runs; and correctness comes from the file, not from running programs",
        "majority@64 and greedy pass@1 are not computed; coverage at K = 64 is pass@64",
    ),
)

JARVIS_2013 = Protocol(
    name="jarvis2013",
    title="Six dimensions of lexical diversity of single texts, to be held against texts by people.",
    metrics=JARVIS,
    source="after Jarvis 2013, Language Learning 63(s1); used by Kendro et al. 2025, arXiv:2508.00086",
    tokenisation="divmon's words, lower-cased, edge punctuation removed",
    constants={"mtld_threshold": 0.72},
    not_reproducible=(
        "the indices behind each dimension in the 2025 study were not available: these are after the 2013 scheme, and "
        "no parity with its tables is claimed",
        "disparity compares the spelling of words (character n-grams) where the scheme uses their senses",
    ),
)

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        KAROUZOS_2026,
        KIRK_2024,
        NOVELTYBENCH_2025,
        HIVEMIND_2025,
        ECHOCHAMBER_2025,
        JARVIS_2013,
    )
}


def get_protocol(name: str) -> Protocol:
    """A protocol by its name.

    >>> get_protocol("kirk2024").k
    16

    Raises:
        ConfigError: There is none; with a suggestion.
    """
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def noveltybench_score(reward: float) -> int:
    """A raw reward of NoveltyBench's reward model as its score from 1 to 10.

    >>> noveltybench_score(-8.0), noveltybench_score(-6.0), noveltybench_score(3.0)
    (1, 3, 10)

    Source: Zhang et al. (2025), arXiv:2504.05228.
    """
    return 1 + sum(reward > threshold for threshold in SKYWORK)


__all__ = ["PROTOCOLS", "Protocol", "get_protocol", "noveltybench_score", "strip_think"]
