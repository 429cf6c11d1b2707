"""How well a prompt's completions compress together: repetition of any kind, in any language, without tokens."""

from __future__ import annotations

import math
import zlib

from divmon.metrics.base import Metric, MetricContext, Result, per_prompt
from divmon.records import SampleBatch

LEVEL = 9
_LARGEST = 1032.0  # no deflate stream shrinks more


def compression_ratio(batch: SampleBatch, context: MetricContext) -> Result:
    """Bytes over zlib bytes of a prompt's K completions joined by newlines; lower is more diverse.

    Between about 0.1 (nothing but a header) and 1032 (the limit of deflate); English prose of one prompt has 2 to 4.
    Completions are sorted before they are joined, because zlib forgets what lies more than 32 kB back and the number
    would otherwise depend on their order.

    What moves it besides diversity: K and length (-26 % from 12 completions to 3), repetition *inside* a completion,
    and the alphabet (three bytes a character in CJK).

    Returns:
        float[P].

    >>> from divmon.records import Probe
    >>> batch = SampleBatch(0, (Probe("a", "?"),), (("abcdefgh",) * 50,))
    >>> bool(compression_ratio(batch, MetricContext(batch)).values[0] > 10)
    True

    Source: Shaib et al. (2024), arXiv:2403.00553, with zlib in memory for gzip in files.
    """

    def value(i: int) -> float:
        raw = "\n".join(sorted(batch.texts[i])).encode("utf-8", "surrogatepass")
        return len(raw) / len(zlib.compress(raw, LEVEL)) if raw else math.nan

    return per_prompt(batch, value, reason="no text")


COMPRESSION_RATIO = Metric(
    name="compression_ratio",
    fn=compression_ratio,
    summary="Bytes over compressed bytes of a prompt's completions taken together.",
    family="compression",
    direction="lower",
    bounds=(0.0, _LARGEST),
    source="Shaib et al. 2024, arXiv:2403.00553",
    signature=f"zlib:{LEVEL}|join:newline|order:sorted",
)
