"""PPO with a reward model that likes programs: every other format dies out, divmon saves and stops the run.

The tiny packaged model answers sums in four formats. TRL's PPOTrainer pays what a reward model scores, and that model
is biased on purpose: its head is fitted here, in a second, to score programs 1 and the other formats 0. It does not
look at the sums at all. This stands for raters who happen to like one style, much exaggerated so that it shows soon.
PPO trains in a loop of its own that ignores the stop flag of callbacks, so `divmon.watch(trainer)` is needed to stop.

PPO's last release is TRL 1.12. With a newer TRL this says how to set up an environment for it, and ends.

    python examples/ppo.py                  # offline, on a CPU, about half a minute
    python examples/ppo.py --steps 8 --out runs/short
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all of this is on disk; leave the line out to load a model of the Hub
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # TRL's note that its PPO is experimental

import torch
from datasets import Dataset
from transformers import LlamaForSequenceClassification, PrinterCallback, set_seed

try:
    from trl.experimental.ppo import PPOConfig, PPOTrainer
except ImportError:
    PPOTrainer = None

import divmon  # <- divmon
from divmon.demo import sums
from divmon.demo.training import load_model, load_tokenizer

NO_PPO = """\
This TRL has no PPO; its last release that has one is 1.12. From the folder of this repository:

    python -m venv .venv-ppo
    .venv-ppo/bin/python -m pip install -e . 'trl==1.12.0'

Then run .venv-ppo/bin/python examples/ppo.py"""

ALARMS = [  # <- divmon: without rules of your own, the default ones warn and never act
    {
        "name": "one-format-takes-over",
        "metric": "effective_formats",  # 4.0 when four formats are used equally, 1.0 when only one is left
        "rule": "drop",
        "by": "35%",  # more than this below the value at step 0 ...
        "for": 2,  # ... at two evaluations in a row
        "severity": "critical",
        "then": ["save", "stop"],
    },
]


def scorer() -> LlamaForSequenceClassification:
    """The packaged model with a head that gives one number, 0 for everything as yet."""
    policy = load_model()
    policy.config.num_labels = 1
    model = LlamaForSequenceClassification(policy.config)
    model.model = policy.model
    torch.nn.init.zeros_(model.score.weight)
    return model


@torch.no_grad()
def reward_model(favourite: str) -> LlamaForSequenceClassification:
    """Least squares on what the packaged model thinks at the end of an answer: 1 for the favourite format, else 0."""
    model, tokenizer = scorer(), load_tokenizer()
    ends, scores = [], []
    for name in sums.FORMATS:
        texts = [s.prompt + sums.write(name, s.a, s.b, s.answer) + tokenizer.eos_token for s in sums.prompts()]
        ends.append(model.model(**tokenizer(texts, return_tensors="pt", padding=True)).last_hidden_state[:, -1])
        scores += [float(name == favourite)] * len(texts)
    model.score.weight.copy_(torch.linalg.lstsq(torch.cat(ends), torch.tensor(scores)[:, None]).solution.T)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("runs/ppo"))
    args = parser.parse_args()
    if PPOTrainer is None:
        print(NO_PPO, file=sys.stderr)
        sys.exit(2)

    set_seed(0)  # PPO's loop seeds torch, and not numpy, with which it shuffles
    tokenizer = load_tokenizer()
    trainer = PPOTrainer(
        model=load_model(),
        ref_model=load_model(),
        reward_model=reward_model("program"),
        value_model=scorer(),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"input_ids": tokenizer(s.prompt)["input_ids"]} for s in sums.prompts()]),
        args=PPOConfig(
            output_dir=str(args.out),
            total_episodes=64 * args.steps,
            per_device_train_batch_size=64,
            gradient_accumulation_steps=1,
            num_ppo_epochs=2,
            response_length=32,
            stop_token="eos",
            missing_eos_penalty=1.0,
            temperature=1.0,
            learning_rate=2e-4,
            lr_scheduler_type="constant",
            save_strategy="no",  # divmon saves when the alarm fires
            report_to="none",  # "wandb" draws divmon's curves beside the reward
            bf16=False,  # full precision; TRL's default is bfloat16
            gradient_checkpointing=False,
            use_cpu=True,
            disable_tqdm=True,
        ),
    )
    trainer.remove_callback(PrinterCallback)  # a row of 20 numbers a step would hide what is to be seen here
    divmon.watch(trainer, every=4, formats=sums.label, alarms=ALARMS)  # <- divmon: all of it
    trainer.train()

    history = divmon.History.read(args.out)
    print(f"\nTraining ended at step {trainer.state.global_step} of {args.steps}.")
    print(f"Checkpoints: {', '.join(map(str, sorted(args.out.glob('checkpoint-*')))) or 'none'}")
    print(f"Every number and every completion: {history.path}")


if __name__ == "__main__":
    main()
