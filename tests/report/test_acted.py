"""What was done about alarms, on the page: a table, marks on the charts, and only ever text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from divmon.alarms import Rule
from divmon.history import History
from divmon.records import LeverEvent
from divmon.report import write
from divmon.report.acted import acted, deeds

DONE = (
    LeverEvent(10, "gate", "applied", 0.5, "narrow", "vendi fell."),
    LeverEvent(20, "rollback", "failed", 1.0, "narrow", "This healthy policy could not be kept."),
    LeverEvent(20, "rollback", "applied", 0.5, "narrow, long", "Went back to the healthy checkpoint of step 10."),
    LeverEvent(30, "gate", "armed", 0.0, "", ""),
)


def cells(page: str) -> list[list[str]]:
    """The table of what was done."""
    table = page[page.index('id="acted"') :].split("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)[1:]
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[dh].*?>(.*?)</t[dh]>", row)] for row in rows]


def test_the_page_says_what_was_done_and_marks_where(kit: Any, tmp_path: Path) -> None:
    history = kit.recorded(tmp_path / "run")
    _, quiet = kit.checked(write(history, out=tmp_path / "q.html"))
    assert "What was done about it" not in quiet
    assert "a lever was applied" not in quiet
    for change in DONE:
        history.note(change)
    page, text = kit.checked(write(History.read(tmp_path / "run"), out=tmp_path / "r.html"))
    assert cells(page) == [
        ["10", "gate applied", "50 % of full strength", "narrow", "vendi fell."],
        ["20", "rollback failed", "learning rate unchanged", "narrow", "This healthy policy could not be kept."],
        ["20", "rollback applied", "learning rate × 0.5", "narrow, long", DONE[2].reason],
        ["30", "gate armed", "does not act", "–", "–"],
    ]
    assert acted(history) == (10, 20)
    assert page.count("var(--calm)") > kit.checked(tmp_path / "q.html")[0].count("var(--calm)")
    assert "acted on at step 10, 20" in page  # for those who do not see the marks
    assert "▲ a lever was applied, or the policy taken back" in text


def test_a_resolved_alarm_did_not_resolve_by_itself(kit: Any, tmp_path: Path) -> None:
    rules = (Rule("low", metric="length", rule="above", level=0.5, for_=1, clear_for=1),)

    def text(p: int, k: int, step: int) -> str:
        return "" if step == 30 else kit.varied(p, k, step)

    history = kit.recorded(tmp_path / "run", text, rules=rules)
    said = kit.checked(write(history, out=tmp_path / "a.html"))[1]
    assert "within its limits by itself" in said
    history.note(DONE[2])
    assert "after what was done about it" in kit.checked(write(history, out=tmp_path / "b.html"))[1]


def test_what_was_done_is_only_ever_read(kit: Any, tmp_path: Path) -> None:
    evil = "<script>x</script>{{ 7 * 7 }}\x00\u202e\ud800"
    history = kit.recorded(tmp_path / "run")
    for step in range(150):
        history.note(LeverEvent(step, evil, evil, 1.0, evil, evil * 500))
    page, text = kit.checked(write(History.read(tmp_path / "run"), out=tmp_path / "r.html"))
    assert "<script" not in page
    assert "<script>x</script>{{ 7 * 7 }}\\x00\\u202e\\ud800" in text
    assert len(deeds(history)) == 100
    assert "50 later changes are not listed" in text
