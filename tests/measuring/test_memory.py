"""Four times the completions do not need more memory: the peak of the whole process, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import random, resource, sys
from divmon.measuring import measure

words = [f"w{i}" for i in range(2000)]

def rows(prompts):
    for i in range(prompts):
        rng = random.Random(i)
        texts = [" ".join(rng.choices(words, k=12)) for _ in range(8)]
        for text in texts:  # one completion a line, so that prompts must be put together
            yield {"prompt": f"question {i}", "completion": text, "reward": float(rng.random() < 0.5), "step": i % 4}

metrics = ["tfidf_distance", "distinct_2", "effective_formats", "pass_at_1"]
results = measure(rows(int(sys.argv[1])), metrics=metrics, group_by=["step"] if sys.argv[2:] else ())
assert results.source.completions == 8 * int(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak(prompts: int, *options: str) -> float:
    """Megabytes."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(prompts), *options], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout) / 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss has another unit elsewhere")
@pytest.mark.parametrize("options", [(), ("grouped",)], ids=["whole", "by step"])
def test_peak_memory_does_not_grow_with_the_file(options) -> None:
    small, large = peak(1200, *options), peak(4800, *options)  # both beyond what idf is fitted on
    assert large < 1.1 * small + 5
