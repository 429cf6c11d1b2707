"""Two GRPO runs on the toy task: one with the ordinary reward, which collapses, and its healthy twin."""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from divmon.demo import sums

MODEL_DIR = Path(__file__).parent / "model"
"""The packaged model; `examples/make_demo_model.py` makes it."""

PROMPTS_PER_STEP = 8
COMPLETIONS_PER_PROMPT = 8
MAX_COMPLETION_LENGTH = 32
LEARNING_RATE = 2.5e-4


def load_model() -> LlamaForCausalLM:
    """Load a fresh copy of the tiny model (about 0.3M parameters, float32), from the package alone."""
    return LlamaForCausalLM.from_pretrained(MODEL_DIR, local_files_only=True)


def load_tokenizer() -> PreTrainedTokenizerFast:
    """Load its tokenizer: one token a character, padding on the left as generation needs."""
    tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(MODEL_DIR, local_files_only=True)
    return tokenizer


def grpo_trainer(
    *,
    output_dir: str | Path,
    healthy: bool,
    steps: int,
    seed: int = 0,
    callbacks: Sequence[TrainerCallback] = (),
    report_to: str = "none",
    prompts: Sequence[sums.Sum] | None = None,
) -> GRPOTrainer:
    """Build a GRPO run on the toy task that a laptop's CPU finishes in about a minute.

    Args:
        output_dir: where the trainer may write; no checkpoint is saved.
        healthy: False for the ordinary reward, under which one format takes over; True for the twin, also
            rewarded for answering one prompt in several formats. Nothing else differs between the two.
        steps: optimiser steps; 40 show the collapse.
        seed: of the order of prompts and of the sampling.
        callbacks: attached to the trainer.
        report_to: TRL's loggers, such as ``"wandb"``.
        prompts: trained on; all hundred when not given.

    Returns:
        The trainer, ready for ``.train()``.
    """
    reward = sums.set_diversity(COMPLETIONS_PER_PROMPT) if healthy else sums.correctness
    return GRPOTrainer(
        model=load_model(),
        processing_class=load_tokenizer(),
        reward_funcs=reward,
        train_dataset=Dataset.from_list([{"prompt": s.prompt, "answer": s.answer} for s in prompts or sums.prompts()]),
        args=_config(output_dir=output_dir, steps=steps, seed=seed, report_to=report_to),
        callbacks=list(callbacks),
    )


def _config(*, output_dir: str | Path, steps: int, seed: int, report_to: str) -> GRPOConfig:
    return GRPOConfig(
        output_dir=str(output_dir),
        max_steps=steps,
        seed=seed,
        report_to=report_to,
        per_device_train_batch_size=PROMPTS_PER_STEP * COMPLETIONS_PER_PROMPT,
        num_generations=COMPLETIONS_PER_PROMPT,
        max_completion_length=MAX_COMPLETION_LENGTH,
        temperature=1.0,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        beta=0.0,
        # Dividing by a group's standard deviation magnifies a lone wrong answer among right ones; with steps
        # a little longer than these, one such group late in a run made the model forget how to write.
        scale_rewards="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
