"""The clock of rollouts: read the ledger, judge, step, save, tell.

    controller = Controller(ledger)
    controller.tick(now)                      # every second or so; restart-safe, one leased controller per rollout

`Ledger` (declared in `ledger.py`) is everything it asks of the store. Operators' commands do not go through it: the API applies
`rollout.apply(state, command, by, now)` and saves, and the next tick does what follows.
"""

from __future__ import annotations

from edgeml.fleet.ledger import Assignment, Device, Event, Ledger, Order, Outcome, TelemetrySum, VersionFacts

__all__ = ["Assignment", "Device", "Event", "Ledger", "Order", "Outcome", "TelemetrySum", "VersionFacts"]
