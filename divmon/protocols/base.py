"""What a protocol is, and in what a measurement deviates from it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from divmon.errors import unknown
from divmon.metrics.base import Metric
from divmon.reasoning import strip_think


@dataclass(frozen=True)
class Protocol:
    """Every choice behind a published number.

    Attributes:
        name: Author and year, or benchmark and year.
        title: One sentence.
        metrics: What is measured, in the study's own way.
        source: The study.
        k: Completions a prompt; None where the study has none.
        prompts: How many; None where it varies.
        decoding: temperature, top_p, max_new_tokens, as far as the study fixes them.
        encoder: Name of the sentence encoder; empty without one.
        nli: Name of the model of entailment.
        equivalence: Name of the judge of equivalence, as `divmon.models.judges.load_equivalence` knows it.
        formats: Name of the format classifier.
        supplied: Which of "encoder", "nli", "equivalence" cannot be loaded by name, so that the user must pass one.
        prepare: What is done to a completion before it is measured.
        tokenisation: How texts become words.
        aggregator: How prompts become one number.
        constants: What else is fixed, by name.
        not_reproducible: What this cannot give exactly, and why.
    """

    name: str
    title: str
    metrics: tuple[Metric, ...]
    source: str
    k: int | None = None
    prompts: int | None = None
    decoding: Mapping[str, float] = field(default_factory=dict)
    encoder: str = ""
    nli: str = ""
    equivalence: str = ""
    formats: str = ""
    supplied: tuple[str, ...] = ()
    prepare: Callable[[str], str] | None = None
    tokenisation: str = ""
    aggregator: str = "mean over prompts"
    constants: Mapping[str, Any] = field(default_factory=dict)
    not_reproducible: tuple[str, ...] = ()

    def chosen(self, names: tuple[str, ...]) -> tuple[Metric, ...]:
        """The metrics called `names`; all of them without any.

        Raises:
            ConfigError: One is not of this protocol; with a suggestion.
        """
        table = {metric.name: metric for metric in self.metrics}
        for name in names:
            if name not in table:
                raise unknown(f"metric of the protocol {self.name}", name, table)
        return tuple(table[name] for name in names) or self.metrics

    def page(self) -> str:
        """Every choice and what cannot be had exactly, as plain text."""
        decoding = ", ".join(f"{name} {value:g}" for name, value in self.decoding.items())
        facts = {
            "metrics": ", ".join(metric.name for metric in self.metrics),
            "source": self.source,
            "K": self.k,
            "prompts": self.prompts,
            "decoding": decoding,
            "encoder": self.encoder,
            "nli": self.nli,
            "equivalence": self.equivalence,
            "formats": self.formats,
            "words": self.tokenisation,
            "aggregator": self.aggregator,
            "constants": ", ".join(f"{name} {value}" for name, value in self.constants.items()),
        }
        lines = [f"{name}: {value}" for name, value in facts.items() if value]
        told = [f"- {sentence}" for sentence in self.not_reproducible]
        shown = [textwrap.fill(line, 100, subsequent_indent="  ") for line in (*lines, "not exactly:", *told)]
        return "\n".join((f"{self.name}: {self.title}", *shown))

    def deviations(
        self,
        *,
        k: tuple[int, int],
        prompts: int,
        decoding: Mapping[str, set[float]],
        lenses: Mapping[str, str],
    ) -> tuple[str, ...]:
        """In what a measurement is not the study's: sentences, for people.

        Args:
            k: Fewest and most completions of a prompt.
            prompts: How many.
            decoding: Values that the file states, by name.
            lenses: Names of the "encoder", "nli" and "equivalence" in use.
        """
        found = []
        if self.k is not None and k != (self.k, self.k):
            there = str(k[0]) if k[0] == k[1] else f"{k[0]} to {k[1]}"
            found.append(f"K: {there} instead of {self.k}")
        if self.prompts is not None and prompts != self.prompts:
            found.append(f"prompts: {prompts} instead of {self.prompts}")
        for name, value in self.decoding.items():
            stated = decoding.get(name, set())
            if not stated:
                found.append(f"{name}: not stated in the file; the protocol has {value:g}")
            elif stated != {value}:
                found.append(f"{name}: {', '.join(f'{v:g}' for v in sorted(stated))} instead of {value:g}")
        return (*found, *(f"{kind}: {name}" for kind, name in lenses.items() if " instead of " in name))


__all__ = ["Protocol", "strip_think"]
