"""Which set-ups of training are tested, unverified or refused: the table of ``divmon doctor --setups``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["tested", "unverified", "refused"]


@dataclass(frozen=True)
class Setup:
    """One row.

    Attributes:
        name: The set-up.
        sampling: Whether fresh completions are drawn there.
        scoring: Whether the baseline's completions are scored there.
        levers: Whether mitigations act there.
        note: What to know; where something is refused, the reason and what to do instead.
        tests: Tests that show it, as pytest names them. Every state that is "tested" has one.
    """

    name: str
    sampling: State
    scoring: State
    levers: State
    note: str
    tests: tuple[str, ...] = ()

    @property
    def states(self) -> tuple[State, State, State]:
        """Of sampling, scoring and levers."""
        return self.sampling, self.scoring, self.levers


_SETUPS = "tests/trainers/test_setups.py::test_bitwise_undisturbed"
_RANKS = "tests/ranks/test_ranks.py::"
_REFUSED = "tests/trainers/test_refused.py::"
_MEASURE = "Measure completions you made yourself with `divmon measure FILE.jsonl`"

SETUPS: tuple[Setup, ...] = (
    Setup(
        "one process, CPU: Trainer, SFT, DPO, GRPO",
        "tested", "tested", "tested",
        "losses and final weights are bitwise those of the run without divmon",
        (
            "tests/trainers/test_undisturbed.py::test_losses_and_weights_are_bitwise_equal",
            "tests/trainers/test_scores.py::test_a_run_that_is_scored_sampled_and_tapped_is_bitwise_undisturbed",
            "tests/trainers/test_levers.py",
        ),
    ),
    Setup(
        "DDP, 2 ranks",
        "tested", "tested", "tested",
        "each rank draws and scores its share; bitwise undisturbed",
        (
            f"{_RANKS}test_two_ranks_measure_what_one_measures",
            f"{_RANKS}test_two_ranks_are_undisturbed_by_scores_samplings_and_rollouts_together",
            f"{_RANKS}test_a_lever_sees_whole_groups_where_no_rank_has_one",
        ),
    ),
    Setup(
        "LoRA (PEFT)",
        "tested", "tested", "unverified",
        "bitwise undisturbed",
        (f"{_SETUPS}[lora sft]", f"{_SETUPS}[lora grpo]"),
    ),
    Setup(
        "gradient checkpointing",
        "tested", "tested", "tested",
        "reentrant or not; bitwise undisturbed; it is inert while divmon samples",
        (
            f"{_SETUPS}[checkpointing]",
            f"{_SETUPS}[checkpointing reentrant]",
            f"{_SETUPS}[checkpointing grpo]",
            "tests/trainers/test_levers.py",
        ),
    ),
    Setup(
        "bf16: autocast, weights",
        "tested", "tested", "unverified",
        "bitwise undisturbed; log-probabilities and entropies are computed in single precision",
        (f"{_SETUPS}[bf16 autocast]", f"{_SETUPS}[bf16 autocast grpo]", f"{_SETUPS}[bf16 weights]"),
    ),
    Setup(
        "fp16 weights",
        "tested", "tested", "unverified",
        "bitwise undisturbed",
        (f"{_SETUPS}[fp16 weights]",),
    ),
    Setup(
        "fp16 autocast with a gradient scaler",
        "unverified", "unverified", "unverified",
        "Accelerate runs it on accelerators only",
    ),
    Setup(
        "GRPO: `num_iterations`, `steps_per_generation` above 1",
        "tested", "tested", "unverified",
        "bitwise undisturbed; the series of rollouts has a point for each generation, not for each step",
        (f"{_SETUPS}[iterations]",),
    ),
    Setup(
        "models that think",
        "tested", "tested", "unverified",
        "`reasoning=`: stripped (default), kept, or suppressed by an empty block; completions that were cut while "
        "reasoning are left out and counted; scores and rewards see whole completions",
        (
            "tests/trainers/test_thinking.py::test_each_way_is_undisturbed_and_part_of_the_signature",
            "tests/trainers/test_thinking.py::test_what_is_measured_is_the_answer_and_what_was_cut_while_reasoning_is_left_out",
        ),
    ),
    Setup(
        "prompts longer than the model's window",
        "tested", "tested", "unverified",
        "a prompt loses its beginning, never its end, so that prompt and `max_new_tokens` fit; a warning counts such "
        "prompts; scores read what was sampled from",
        (
            "tests/trainers/test_setups.py::"
            "test_long_prompts_lose_their_beginning_and_scores_see_what_was_sampled_from",
        ),
    ),
    Setup(
        "FSDP2",
        "tested", "tested", "unverified",
        "on CPU (gloo, 2 ranks): bitwise undisturbed. Every rank draws and scores everything, as a forward pass needs "
        "them all; `rollback` and `resample` are refused (use `save`, or DDP). Not run on an accelerator",
        (f"{_RANKS}test_sharded_weights_are_sampled_and_scored_and_training_is_undisturbed",),
    ),
    Setup(
        "FSDP1",
        "refused", "refused", "refused",
        f"generation inside a callback corrupts its checkpoints. Use FSDP2. {_MEASURE}",
        (f"{_REFUSED}test_sharding_that_cannot_be_sampled_is_refused_when_training_starts",),
    ),
    Setup(
        "DeepSpeed ZeRO-3",
        "refused", "refused", "refused",
        f"no rank has whole weights. Use ZeRO-2. {_MEASURE}",
        (f"{_REFUSED}test_sharding_that_cannot_be_sampled_is_refused_when_training_starts",),
    ),
    Setup(
        "DeepSpeed ZeRO-1, ZeRO-2",
        "unverified", "unverified", "unverified",
        "weights are whole on each rank, as in DDP; `rollback` is refused",
    ),
    Setup(
        "vLLM (colocate, server)",
        "unverified", "unverified", "unverified",
        "probes are drawn with the trainer's own copy of the model, not by the engine; rollouts are the engine's. The "
        "start says so",
        (f"{_REFUSED}test_a_trainer_with_vllm_is_told_that_it_is_unverified",),
    ),
    Setup(
        "multimodal model, prompts of text",
        "tested", "tested", "unverified",
        "sampled and scored in training with probes of text",
        (f"{_REFUSED}test_a_multimodal_model_is_watched_on_prompts_of_text",),
    ),
    Setup(
        "multimodal data (images, sounds)",
        "refused", "refused", "refused",
        f"its prompts without them would be others. Pass `probes=[...]` of text. {_MEASURE}",
        (f"{_REFUSED}test_data_with_images_is_refused_unless_probes_are_named",),
    ),
    Setup(
        "encoder-decoder model",
        "refused", "refused", "refused",
        f"its completions do not continue their prompts. {_MEASURE}",
        (f"{_REFUSED}test_an_encoder_decoder_model_is_refused_when_the_trainer_is_made",),
    ),
    Setup(
        "CUDA, MPS",
        "unverified", "unverified", "unverified",
        "the random streams of every device are put back; bitwise equality is tested on CPU only",
    ),
)  # fmt: skip


def markdown(setups: Sequence[Setup] = SETUPS) -> str:
    """The table for the README."""
    lines = ["| set-up | sampling | scoring | levers | to know |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join((s.name, *s.states, s.note))} |" for s in setups]
    return "\n".join(lines)


def told(setups: Sequence[Setup] = SETUPS) -> str:
    """The table for a terminal."""
    width = max(len(s.name) for s in setups)
    head = f"{'set-up':<{width}}  {'sampling':<10}  {'scoring':<10}  levers"
    return "\n".join([head, *(f"{s.name:<{width}}  {s.sampling:<10}  {s.scoring:<10}  {s.levers}" for s in setups)])
