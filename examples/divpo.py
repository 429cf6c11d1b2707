"""DPO on pairs that ask for diversity: the most diverse right answer against the least diverse wrong one.

The tiny packaged model answers each sum several times; `divmon.divpo_pairs` makes the pairs, judging with a function,
and TRL's DPOTrainer trains on them. Two runs are set side by side: pairs of DivPO, and pairs whose right and wrong
answers are taken as they come. Both teach the same about right and wrong; the formats differ afterwards.

    python examples/divpo.py                # offline, on a CPU, about a minute
    python examples/divpo.py --steps 8 --out runs/short
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all of this is on disk; leave the line out to load a model of the Hub

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

import divmon  # <- divmon
from divmon.demo import sums
from divmon.demo.training import load_model, load_tokenizer


def is_right(probe: divmon.Probe, completion: str) -> bool:
    return sums.answer(completion) == int(probe.gold or -1)


def draw(k: int) -> divmon.SampleBatch:
    """k answers of the untrained model to every sum; a file read by `divmon.read_completions` would do as well."""
    model, tokenizer = load_model(), load_tokenizer()
    torch.manual_seed(0)
    probes, texts = [], []
    for s in sums.prompts():
        prompt = tokenizer([s.prompt] * k, return_tensors="pt")
        drawn = model.generate(**prompt, do_sample=True, top_k=0, max_new_tokens=32)
        found = tokenizer.batch_decode(drawn[:, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        probes.append(divmon.Probe(s.prompt, s.prompt, gold=str(s.answer)))
        texts.append(tuple(found))
    return divmon.SampleBatch(0, tuple(probes), tuple(texts))


def plain_pairs(batch: divmon.SampleBatch) -> list[dict[str, str]]:
    """The first right answer against the first wrong one."""
    pairs = []
    for probe, row in zip(batch.probes, batch.texts, strict=True):
        right = [text for text in row if is_right(probe, text)]
        wrong = [text for text in row if not is_right(probe, text)]
        if right and wrong:
            pairs.append({"prompt": str(probe.prompt), "chosen": right[0], "rejected": wrong[0]})
    return pairs


def train(pairs: list[dict[str, str]], out: Path, steps: int) -> divmon.History:
    probes = [{"prompt": s.prompt, "gold": s.answer, "domain": "sums"} for s in sums.prompts()[::4]]
    watching = divmon.DiversityCallback(  # <- divmon
        probes, every=max(1, steps // 2), formats=sums.label, quality=is_right, alarms=[], sinks=[]
    )
    DPOTrainer(
        model=load_model(),
        processing_class=load_tokenizer(),
        train_dataset=Dataset.from_list(pairs).select_columns(["prompt", "chosen", "rejected"]),
        args=DPOConfig(
            output_dir=str(out),
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=1e-4,
            loss_type=["sigmoid", "sft"],  # DPO alone pushes this tiny model out of every format
            loss_weights=[1.0, 1.0],
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            bf16=False,  # full precision; TRL's default is bfloat16
            use_cpu=True,
            disable_tqdm=True,
        ),
        callbacks=[watching],
    ).train()
    return divmon.History.read(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("runs/divpo"))
    args = parser.parse_args()

    batch = draw(12)
    diverse = divmon.divpo_pairs(batch, quality=is_right, by="formats", formats=sums.label)  # <- divmon
    kinds = {"as they come": plain_pairs(batch), "DivPO": diverse}
    print(f"{len(diverse)} of {len(batch.probes)} sums have a right and a wrong answer among 12.\n")
    print("pairs           pass@1           formats among right answers")
    for name, pairs in kinds.items():
        history = train(pairs, args.out / name.split()[0].lower(), args.steps)
        right, formats = (
            history.series(metric, "sums").values for metric in ("pass_at_1", "effective_correct_formats")
        )
        print(f"{name:<14}  {right[0]:.2f} -> {right[-1]:.2f}     {formats[0]:.2f} -> {formats[-1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
