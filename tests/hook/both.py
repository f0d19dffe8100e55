"""The hook's answer and Python's decision, side by side."""

from __future__ import annotations

import time

from hookrunner import Answer, Hook
from lockdb import database
from lockdb.decision import Decision, Verdict, decide
from lockdb.values import Operation


def ask_both(hook: Hook, document: str | bytes, operation: str = "start") -> Decision:
    """What both say; fails if they differ."""
    answer = hook.run(document, operation)
    with database.open_db(hook.database, read_only=True) as lock_db:
        decision = decide(lock_db, document, operation, now=int(time.time()))
    assert_same(answer, decision, operation)
    return decision


def assert_same(answer: Answer, decision: Decision, operation: str) -> None:
    """The hook's status and its one line say what the decision says."""
    if decision.verdict is Verdict.ALLOW:
        assert answer == Answer(0, b"", b"")
        return
    asked = Operation.MIGRATE if operation == "migrate" else Operation.START
    told = (
        f"{decision.text} [hold {decision.hold}]"
        if decision.verdict is Verdict.REFUSE
        else f"cannot decide: {decision.text}; see 'bootlock doctor'"
    )
    assert answer.status == 1
    assert answer.line.startswith(f"bootlock: {asked} refused: {told}")
