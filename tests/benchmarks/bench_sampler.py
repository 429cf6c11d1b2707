"""What sampling costs: divmon's sampler against `generate`, and its draw against `torch.multinomial`.

    python tests/benchmarks/bench_sampler.py [--rows 64] [--tokens 32] [--repeats 5]

Times are the least of several repeats, taken in turns, in process CPU seconds on a CPU and wall seconds elsewhere.
Ratios below 1 mean that divmon is faster.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from divmon.demo.training import load_tokenizer
from divmon.probes import ProbeSet
from divmon.records import Decoding
from divmon.samplers import keyed
from divmon.samplers.generate import GenerateSampler

VOCABULARIES = (51, 2048, 32000)
PROMPT_TOKENS = 16


def least(repeats: int, *functions: Callable[[], object]) -> list[float]:
    """The least seconds that each function took."""
    clock = time.perf_counter if torch.accelerator.is_available() else time.process_time
    best = [float("inf")] * len(functions)
    for repeat in range(repeats + 1):
        for i, function in enumerate(functions):
            start = clock()
            function()
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            if repeat:  # the first one warms up
                best[i] = min(best[i], clock() - start)
    return best


def device() -> torch.device:
    """The accelerator, or the CPU."""
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def tiny_llama(vocabulary: int, width: int) -> LlamaForCausalLM:
    """A random model that never ends a completion by itself, so that everybody draws the same number of tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().to(device())


def sampling(vocabulary: int, args: argparse.Namespace) -> list[float]:
    """Seconds of divmon, of divmon without records of entropy and log-probability, and of plain sampling."""
    model = tiny_llama(vocabulary, args.width)
    tokenizer = load_tokenizer()
    tokenizer.eos_token = None
    probes = ProbeSet.of(["1+2=" * (PROMPT_TOKENS // 4)])
    sampler = GenerateSampler(model, tokenizer, args.rows, Decoding(max_new_tokens=args.tokens), batch_size=args.rows)
    ids = torch.tensor([tokenizer(probes.probes[0].text)["input_ids"]] * args.rows, device=device())

    def raw() -> object:
        return model.generate(ids, do_sample=True, top_k=0, max_new_tokens=args.tokens, min_new_tokens=args.tokens)

    def unrecorded() -> object:
        names = torch.arange(args.rows, device=device())
        noise = keyed.KeyedSampling(names, prompt_length=ids.shape[1], record=False)
        return model.generate(ids, do_sample=False, max_new_tokens=args.tokens, logits_processor=[noise])

    return least(args.repeats, lambda: sampler(probes, step=0), unrecorded, raw)


def drawing(vocabulary: int, args: argparse.Namespace) -> list[float]:
    """Seconds of one keyed draw, of its records, and of softmax with `torch.multinomial`."""
    logits = 3 * torch.randn(args.rows, vocabulary, device=device())
    names = torch.arange(args.rows, device=device())

    def ours() -> object:
        return keyed.draw(torch.log_softmax(logits, -1), names, 3)

    def records() -> object:
        return keyed.entropy(logits)

    return least(20 * args.repeats, ours, records, lambda: torch.multinomial(torch.softmax(logits, -1), 1))


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    where = f"width {args.width}, on {device()}, {torch.get_num_threads()} thread(s)"
    print(f"{args.rows} completions of {args.tokens} tokens, {where}")
    print(f"{'vocabulary':>10} {'divmon s':>9} {'generate s':>11} {'ratio':>6} {'of it records':>14}", end="")
    print(f" {'draw ms':>9} {'multinomial ms':>15} {'ratio':>6} {'entropy ms':>11}")
    with torch.no_grad():
        for vocabulary in VOCABULARIES:
            ours, unrecorded, raw = sampling(vocabulary, args)
            draw, entropy, multinomial = (1e3 * seconds for seconds in drawing(vocabulary, args))
            share = max(0.0, (ours - unrecorded) / ours)
            print(f"{vocabulary:>10} {ours:>9.3f} {raw:>11.3f} {ours / raw:>6.2f} {share:>14.0%}", end="")
            print(f" {draw:>9.2f} {multinomial:>15.2f} {draw / multinomial:>6.2f} {entropy:>11.2f}")


if __name__ == "__main__":
    main()
