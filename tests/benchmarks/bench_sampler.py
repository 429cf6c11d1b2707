"""What sampling costs: divmon's sampler against `generate`, and against TRL's `LogCompletionsCallback`.

    python tests/benchmarks/bench_sampler.py [--repeats 7] [--rows 64] [--tokens 32]     # about three minutes on a CPU

All ratios are divmon's time over the other's, so below 1 divmon is faster. Both are timed in turns in one run, in
process CPU seconds on a CPU and wall seconds elsewhere; printed is the median of the repeats' ratios with its range
from the second least to the second greatest. divmon's time holds everything: prompts to tokens, draws, entropies and
log-probabilities, texts. `generate` gets tokens and gives tokens. Models are random, three layers wide `--width`.

*fixed*: nothing ends before the cap. *varied*: a stop token comes with probability 3 / cap at each step, which leaves a
third of the tokens. *long prompts*: 8 prompts of 96 tokens, and as many completions of each as fill the rows.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from trl import LogCompletionsCallback

from divmon.demo.training import load_tokenizer
from divmon.probes import ProbeSet
from divmon.records import Decoding
from divmon.samplers.generate import GenerateSampler

VOCABULARIES = (51, 2048, 32000)
END = 2


@dataclass(frozen=True)
class Case:
    """A model, and the completions to draw from it."""

    vocabulary: int = 2048
    prompts: int = 8
    k: int = 8
    tokens: int = 32
    prompt_tokens: int = 16
    varied: bool = False
    width: int = 96

    @property
    def rows(self) -> int:
        return self.prompts * self.k

    def texts(self) -> list[str]:
        body = "1+2=" * (self.prompt_tokens // 4)
        return [f"{i % 10}{body[1:]}" for i in range(self.prompts)]


def device() -> torch.device:
    """The accelerator, or the CPU."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def timed(repeats: int, *functions: Callable[[], object]) -> np.ndarray:
    """float[repeats, functions]: seconds, taken in turns after one turn to warm up."""
    clock = time.perf_counter if torch.accelerator.is_available() else time.process_time
    seconds = np.zeros((repeats + 1, len(functions)))
    for turn in seconds:
        for i, function in enumerate(functions):
            start = clock()
            function()
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            turn[i] = clock() - start
    return seconds[1:]


def ratio(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Median and range of paired ratios."""
    each = np.sort(ours / theirs)
    trim = 1 if len(each) >= 5 else 0
    return f"{np.median(each):5.2f} ({each[trim]:.2f}-{each[len(each) - 1 - trim]:.2f})"


def tiny_llama(case: Case) -> LlamaForCausalLM:
    """A random model whose completions have the lengths of the case."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=case.vocabulary, hidden_size=case.width, intermediate_size=3 * case.width, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, pad_token_id=0,
        eos_token_id=END if case.varied else None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    if case.varied:  # logits are almost flat, so this is the stop token's chance
        bias = torch.zeros(case.vocabulary)
        chance = 3 / case.tokens
        bias[END] = np.log(chance / (1 - chance) * (case.vocabulary - 1))
        model.lm_head.bias = torch.nn.Parameter(bias)
    return model.to(device())


def contenders(case: Case) -> tuple[Any, Any, Callable[[], object], Callable[[], object]]:
    """Model, tokenizer, divmon's sampler, and `generate` on the same prompts in the same batch."""
    model, tokenizer = tiny_llama(case), load_tokenizer()
    if not case.varied:
        tokenizer.eos_token = None
    probes = ProbeSet.of(case.texts())
    sampler = GenerateSampler(model, tokenizer, case.k, Decoding(max_new_tokens=case.tokens), batch_size=case.rows)
    rows = [tokenizer(text)["input_ids"] for text in case.texts() for _ in range(case.k)]
    ids = torch.tensor(rows, device=device())
    mask = torch.ones_like(ids)

    def raw() -> object:
        return model.generate(ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=case.tokens)

    return model, tokenizer, lambda: sampler(probes, step=0), raw


def logger(case: Case, model: Any, tokenizer: Any, batch: int, folder: str) -> Callable[[], object]:
    """TRL's callback on the same prompts, each as often as divmon completes it, `batch` of them at a time."""
    prompts = Dataset.from_dict({"prompt": [text for text in case.texts() for _ in range(case.k)]})
    arguments = TrainingArguments(folder, per_device_eval_batch_size=batch, report_to=[], eval_steps=1)
    trainer = Trainer(model, arguments, eval_dataset=prompts, train_dataset=prompts, processing_class=tokenizer)
    decoding = GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=case.tokens, pad_token_id=0, eos_token_id=END if case.varied else None
    )
    callback = LogCompletionsCallback(trainer, generation_config=decoding, freq=1)

    def log() -> object:
        trainer.state.global_step += 1
        callback.table.clear()  # it grows with every call
        return callback.on_step_end(arguments, trainer.state, trainer.control, processing_class=tokenizer)

    return log


def against_generate(base: Case, repeats: int, vocabularies: Sequence[int]) -> None:
    """The sampler against `generate`, by vocabulary and kind of completions."""
    print(f"\n{'vocabulary':>10}  {'completions':<14}{'divmon s':>9}{'generate s':>11}   ratio")
    for vocabulary in vocabularies:
        shape = {"vocabulary": vocabulary, "tokens": base.tokens, "width": base.width, "k": base.k}
        kinds = {
            "fixed": Case(**shape),
            "varied": Case(**shape, varied=True),
            "varied, cap x4": Case(**{**shape, "tokens": 4 * base.tokens}, varied=True),
            "long prompts": Case(**shape, prompt_tokens=96),
        }
        for name, case in kinds.items():
            *_, ours, raw = contenders(case)
            a, b = timed(repeats, ours, raw).T
            print(f"{vocabulary:>10}  {name:<14}{np.median(a):>9.3f}{np.median(b):>11.3f}  {ratio(a, b)}", flush=True)


def against_logger(base: Case, repeats: int, vocabularies: Sequence[int]) -> None:
    """The sampler against `LogCompletionsCallback`, milliseconds a completion."""
    print(f"\n{'vocabulary':>10}  {'completions':<12}{'its batch':>10}{'divmon ms':>12}{'callback ms':>12}   ratio")
    for vocabulary in vocabularies:
        for varied in (False, True):
            case = Case(vocabulary, k=base.k, tokens=base.tokens, width=base.width, varied=varied)
            model, tokenizer, ours, _ = contenders(case)
            with tempfile.TemporaryDirectory() as folder:
                for batch in (8, case.rows):  # 8 is what trainers have by default
                    a, b = 1e3 / case.rows * timed(repeats, ours, logger(case, model, tokenizer, batch, folder)).T
                    kind = "varied" if varied else "fixed"
                    print(f"{vocabulary:>10}  {kind:<12}{batch:>10}{np.median(a):>12.2f}{np.median(b):>12.2f}", end="")
                    print(f"  {ratio(a, b)}", flush=True)


def growth(base: Case, repeats: int, vocabularies: Sequence[int]) -> None:
    """How time grows when one number doubles and doubles again."""
    print(f"\n{'':<14}{'':>8}{'divmon s':>10}{'generate s':>12}   ratio")
    sweeps: dict[str, Sequence[int]] = {
        "prompts": (4, 8, 16), "k": (4, 8, 16), "tokens": (16, 32, 64), "prompt_tokens": (16, 64, 128),
        "vocabulary": vocabularies,
    }  # fmt: skip
    for name, values in sweeps.items():
        for value in values:
            shape = {"tokens": base.tokens, "width": base.width, "k": base.k, name: value}
            *_, ours, raw = contenders(Case(**shape))
            a, b = timed(repeats, ours, raw).T
            print(f"{name:<14}{value:>8}{np.median(a):>10.3f}{np.median(b):>12.3f}  {ratio(a, b)}", flush=True)


TABLES = {"generate": against_generate, "callback": against_logger, "growth": growth}


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64, help="eight prompts, this many completions in all")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--vocabularies", nargs="+", type=int, default=list(VOCABULARIES))
    args = parser.parse_args()
    base = Case(k=args.rows // 8, tokens=args.tokens, width=args.width)
    print(f"{base.rows} completions of at most {base.tokens} tokens at a time, width {base.width}, ", end="")
    print(f"on {device()}, {torch.get_num_threads()} thread(s), {args.repeats} repeats")
    with torch.no_grad():
        for table in args.tables:
            TABLES[table](base, args.repeats, args.vocabularies)


if __name__ == "__main__":
    main()
