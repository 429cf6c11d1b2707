"""What a user may set about critique-guided resampling; `divmon.resampling` carries it out.

Sources: Xi et al. (2024), arXiv:2411.16579: critiques only of wrong answers, refinements at temperature 0.7, one kept,
the rule against shortcuts. Ding et al. (2024), arXiv:2411.00750: eight plain samples, a prompt with fewer than four
correct ones is needy and gets at most eight guided ones; the answer, a worked solution or a teacher as guidance. Suzuki
and Banaei-Kashani (2025), arXiv:2511.20471: the three creative modes. What is said to be "own" below is none of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

from divmon.errors import ConfigError, unknown
from divmon.mitigations.checked import LeverSettings, need

VARIANTS = ("critique", "answer", "rationale", "interactive")
MODES = ("combinational", "exploratory", "transformational")


@dataclass(frozen=True, kw_only=True)
class ResampleSettings(LeverSettings):
    """Of critique-guided resampling; see `divmon.resampling`.

    Attributes:
        min_correct: A prompt with fewer correct attempts, and at least one wrong one, is needy. With `mode`: a prompt
            whose attempts fall into fewer clusters.
        k: Plain attempts a prompt, where none are at hand.
        critiques: Attempts a prompt that are criticised.
        refinements: Refinements written from each critique.
        most: Cap of refinements a prompt and pass.
        keep: Cap of accepted refinements a prompt and pass.
        budget: Cap of refinements a pass, spent on the hardest prompts first (own).
        variant: "critique" (a critic says what is wrong), "answer" (the policy sees the right answer), "rationale" (it
            sees a worked solution and writes its own) or "interactive" (a critic who sees the right answer names the
            wrong step; one refinement a round, each round from the start, until one is accepted).
        mode: For creative prompts, where nothing is wrong: the critic names what is redundant, and refinements are
            "combinational" (join distant ideas), "exploratory" (go to the edge of what is there) or "transformational"
            (change a rule).
        temperature: Of refinements.
        shortcut: Turn away refinements with fewer numbers than the gold solution and the wrong attempt have, less 2.
        novelty: Smallest distance (0 to 1, character n-grams) to what was kept for the prompt before. 0.1 when not
            given, which turns away copies with a word changed; 0.5 with `mode`, the distance from which two completions
            are no longer alike, and there to all attempts too (own).
        overlap: Largest share of a refinement's word 4-grams that stand in the critique, or in the solution that was
            shown (own).
        logprob: Smallest mean log p a token of a refinement under the bare prompt; null lets all through. -3 is a
            perplexity of 20: unlike anything the policy writes, yet beyond the tail (perplexities of 6 and more in
            arXiv:2411.00750) that self-training loses and that is to be kept (own).
        good: A completion of at least this quality is correct; the run's own threshold (`divmon.Settings.correct_at`)
            when not given.
        reveal: Whether gold answers may be shown to critics, and to the policy where the variant asks for it.
    """

    min_correct: int = 4
    k: int = 8
    critiques: int = 2
    refinements: int = 4
    most: int = 8
    keep: int = 1
    budget: int = 256
    variant: str = "critique"
    mode: str | None = None
    temperature: float = 0.7
    shortcut: bool = True
    novelty: float | None = None
    overlap: float = 0.5
    logprob: float | None = -3.0
    good: float | None = None
    reveal: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("min_correct", "k", "critiques", "refinements", "most", "keep", "budget"):
            need(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        need(self.temperature >= 0, "temperature", self.temperature, "0 or more")
        need(0 <= self.least_novelty <= 1, "novelty", self.novelty, "0 or more and at most 1")
        need(0 < self.overlap <= 1, "overlap", self.overlap, "above 0 and at most 1")
        need(self.logprob is None or self.logprob < 0, "logprob", self.logprob, "below 0, or null")
        if self.variant not in VARIANTS:
            raise unknown("variant", self.variant, VARIANTS)
        if self.mode is not None and self.mode not in MODES:
            raise unknown("mode", self.mode, MODES)
        if self.mode is not None and self.variant != "critique":
            raise ConfigError(
                f"`mode` is for prompts where nothing is wrong: it goes without `variant: {self.variant}`."
            )
        if self.variant != "critique" and not self.reveal:
            who = "a critic" if self.variant == "interactive" else "the policy"
            raise ConfigError(
                f"`variant: {self.variant}` shows {who} the gold answer, which is off unless you say so: set "
                "`reveal: true`, or use `variant: critique`."
            )

    @property
    def threshold(self) -> float:
        """The quality from which a completion is correct."""
        return 0.5 if self.good is None else self.good

    @property
    def least_novelty(self) -> float:
        """The smallest distance to what is there already."""
        return self.novelty if self.novelty is not None else 0.1 if self.mode is None else 0.5

    @property
    def kind(self) -> str:
        """The mode, else the variant: what the lineage calls it."""
        return self.mode or self.variant
