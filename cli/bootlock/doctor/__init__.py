"""What must be true on a host for a hold to be worth anything, checked one by one.

Each module has checks of one subject. A check is a function of the ``Patient`` that yields
findings; it never raises for what it is there to find.
"""

from __future__ import annotations

from bootlock.doctor.daemon import daemon, enforced, metrics, preserving
from bootlock.doctor.finding import Finding, Level, Patient
from bootlock.doctor.hook import decision_text, hook_files
from bootlock.doctor.host import break_glass, confinement, sqlite3_shell, upgrading
from bootlock.doctor.neighbours import neighbours
from bootlock.doctor.polkit import access_driver
from bootlock.doctor.proof import armed, last_proofs
from bootlock.doctor.sources import sources
from bootlock.doctor.store import database, integrity, journal

#: What can be told at a glance; ``status`` runs these.
QUICK = (
    sqlite3_shell,
    database,
    decision_text,
    hook_files,
    upgrading,
    break_glass,
    daemon,
    preserving,
    enforced,
    sources,
    last_proofs,
)

#: In an order in which each builds on those before it; ``doctor`` runs these.
ALL = (
    sqlite3_shell,
    database,
    integrity,
    journal,
    decision_text,
    hook_files,
    neighbours,
    confinement,
    upgrading,
    break_glass,
    daemon,
    metrics,
    preserving,
    enforced,
    sources,
    access_driver,
    armed,
)

__all__ = ["ALL", "QUICK", "Finding", "Level", "Patient"]
