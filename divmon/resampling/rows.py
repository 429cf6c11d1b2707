"""Accepted refinements as rows of the trainer's own data: templates, end tokens, masks and limits are the trainer's."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from divmon import compat
from divmon.errors import ConfigError
from divmon.records import Message, Probe

MASKS = ("labels", "completion_mask", "assistant_masks")  # TRL makes labels of the masks since 1.8, before it batches
DPO_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
_INDEX = "divmon_index"
_CARRIED = ("tools", "chat_template_kwargs")  # columns that TRL reads beside the prompt


@dataclass(frozen=True, slots=True)
class Learnt:
    """A refinement to learn, and the answer it refines.

    Attributes:
        probe: Id of the prompt.
        text: The refinement.
        rejected: The policy's own first answer.
        step: When it was accepted.
    """

    probe: str
    text: str
    rejected: str
    step: int

    def to_json(self) -> dict[str, Any]:
        """In plain JSON types."""
        return asdict(self)


Row = Mapping[str, Any]  # a prepared row: the trainer's columns, token ids in plain lists


def columns_of(trainer: Any) -> tuple[str, ...]:
    """The columns that make a row of this trainer; empty where it is neither SFT nor DPO."""
    known = set(getattr(trainer.train_dataset, "column_names", None) or ())
    if not hasattr(trainer, "_prepare_dataset"):
        return ()
    if hasattr(trainer, "completion_only_loss") and "input_ids" in known:
        return ("input_ids", *(name for name in MASKS if name in known))
    return DPO_COLUMNS if known >= set(DPO_COLUMNS) else ()


def check(trainer: Any) -> None:
    """Refuse a trainer whose later batches cannot be given refinements.

    Raises:
        ConfigError: With the reason, and what to do instead.
    """
    from datasets import Dataset

    kind, args, rows = type(trainer).__name__, trainer.args, trainer.train_dataset
    if hasattr(trainer, "num_generations") or hasattr(trainer, "reward_funcs") or compat.own_loop(trainer):
        raise ConfigError(
            f"{kind} trains on what it generates itself, not on rows that could be refinements. diversity_reward and "
            "gate act on its groups (GRPO, RLOO)."
        )
    if getattr(trainer, "_is_vision_dataset", False):
        raise ConfigError(f"The rows of this {kind} hold images, which refinements do not have.")
    if not isinstance(rows, Dataset):
        raise ConfigError(
            "resample serves refinements in place of rows of a datasets.Dataset, and the training data is a "
            f"{type(rows).__name__}. Streams are read ahead, so that refinements would come much too late: load the "
            "data in whole."
        )
    if not columns_of(trainer):
        raise ConfigError(
            f"resample knows the rows of TRL's SFTTrainer and DPOTrainer; those of {kind} have the columns "
            f"{sorted(rows.column_names)}."
        )
    _check_options(trainer)
    if args.dataloader_num_workers > 0:
        raise ConfigError(
            f"dataloader_num_workers={args.dataloader_num_workers}: worker processes hold copies of the data made when "
            "the epoch began, which refinements do not reach. Set dataloader_num_workers=0."
        )
    if rows.format["type"] not in (None, "python", "custom"):
        raise ConfigError(
            f"The training data has the format {rows.format['type']!r}. Call train_dataset.reset_format(); the "
            "trainer's collator makes tensors."
        )


def _check_options(trainer: Any) -> None:
    """Options of TRL under which a row is something else than one prompt with one completion."""
    args, columns = trainer.args, set(trainer.train_dataset.column_names)
    if getattr(args, "packing", False):
        raise ConfigError(
            "packing=True joins several prompts into a row, so no row can give way to a refinement. Set packing=False "
            "(padding_free=True saves the padding too)."
        )
    field = getattr(args, "dataset_text_field", "text") or "text"
    written = field in columns and bool({"prompt", "messages"} & columns)  # all that older versions show of it
    if written if not hasattr(trainer, "_skip_prepare_dataset") else getattr(trainer, "_formatting_func", None):
        raise ConfigError(
            "formatting_func writes the rows, and divmon cannot write refinements with it. Apply it to your data "
            "first, or give the trainer 'prompt' and 'completion' columns."
        )
    if getattr(args, "precompute_ref_log_probs", False) or "ref_chosen_logps" in columns:
        raise ConfigError(
            "precompute_ref_log_probs=True computes the reference's log-probabilities before training, and refinements "
            "are written later. Set precompute_ref_log_probs=False."
        )
    texts = {"prompt", "messages", field}
    if getattr(trainer, "_skip_prepare_dataset", False) or ("input_ids" in columns and not texts & columns):
        raise ConfigError(
            "The training data was tokenised before it came to the trainer, so divmon cannot know how a completion is "
            "written there. Give the trainer 'prompt' and 'completion' columns."
        )


def prepare(trainer: Any, learnt: Sequence[Learnt], probes: Mapping[str, Probe]) -> list[Row | None]:
    """A row for each of `learnt`, made by the trainer's own preparation.

    None for one that the trainer drops, and for one that the model's window cannot hold, which would end training.
    One rank may call it alone.

    Args:
        trainer: An SFT or DPO trainer that `check` has passed.
        learnt: To be prepared.
        probes: By id. Refinements of others are dropped.
    """
    found: list[Row | None] = [None] * len(learnt)
    plain: list[dict[str, Any]] = []
    chats: list[dict[str, Any]] = []
    for index, item in enumerate(learnt):
        probe = probes.get(item.probe)
        if probe is None or not _encodable(item.text, item.rejected, probe.text):
            continue
        row = {**_raw(trainer, probe, item), _INDEX: index}
        (plain if isinstance(probe.prompt, str) else chats).append(row)
    for rows in (plain, chats):  # TRL looks at the first row of a data set only
        for row in _by_trainer(trainer, rows) if rows else ():
            if _length(row, trainer.args) <= (compat.window_of(compat.policy_of(trainer.model)) or math.inf):
                found[row[_INDEX]] = {name: value for name, value in row.items() if name != _INDEX}
    return found


def _length(row: Row, args: Any) -> float:
    """The tokens of a row that the model will see, at most."""
    if "input_ids" in row:
        found = len(row["input_ids"])
    else:
        found = len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
    return min(found, getattr(args, "max_length", None) or math.inf)  # DPO cuts when it makes batches


def _raw(trainer: Any, probe: Probe, item: Learnt) -> dict[str, Any]:
    """The row as a user of the trainer would have written it."""
    carried = {name: probe.columns[name] for name in _CARRIED if probe.columns.get(name) is not None}
    prompt: Any = probe.prompt if isinstance(probe.prompt, str) else [dict(turn) for turn in probe.prompt]
    answer, first = _answer(probe, item.text), _answer(probe, item.rejected)
    columns = trainer.train_dataset.column_names
    if columns_of(trainer) == DPO_COLUMNS:
        return {"prompt": prompt, "chosen": answer, "rejected": first, **carried}
    if "prompt" in columns and "completion" in columns:
        return {"prompt": prompt, "completion": answer, **carried}
    if isinstance(prompt, str):
        return {trainer.args.dataset_text_field: prompt + answer, **carried}
    return {"messages": prompt + answer, **carried}


def _answer(probe: Probe, text: str) -> Any:
    turn: Message = {"role": "assistant", "content": text}
    return text if isinstance(probe.prompt, str) else [dict(turn)]


def _by_trainer(trainer: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`rows` through the preparation that the training data went through, one by one and in order."""
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

    args = copy.copy(trainer.args)
    args.dataset_num_proc, args.shuffle_dataset = None, False
    data, shown = Dataset.from_list(rows), is_progress_bar_enabled()
    given: tuple[Any, ...] = (data, trainer.processing_class, args)
    given += ("refinements",) if columns_of(trainer) == DPO_COLUMNS else (False, None, "refinements")
    disable_progress_bar()
    try:
        with compat.without_waiting():
            return list(trainer._prepare_dataset(*given))
    finally:
        if shown:
            enable_progress_bar()


def _encodable(*texts: str) -> bool:
    """Whether tokenizers can read them: half of a surrogate pair cannot be written down."""
    try:
        return all(text.encode("utf-8") is not None for text in texts)
    except UnicodeEncodeError:
        return False
