"""Random histories of rollouts under a broken network, and how many end in a wrong state.

    python -m benchmarks.histories [--json] [--runs 10000] [--seed 1]

The service is the real controller, gates and rollout machine on a ledger in memory; every device is the runtime's real update
machine. Between them messages are lost, repeated, reordered and late, a fifth of them each; devices restart and drop off;
versions crash, roll back or fail to download; a person pauses, resumes, approves, aborts and rolls back; the controller dies
between saving and telling. Then the network heals (a device that connects is given the retained desired document and sends its
last report again), stragglers arrive, and every device must be where the fleet wants it, or where it may refuse to leave; and
the fleet must want what its rollouts say.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import time
from dataclasses import asdict, dataclass, field, replace
from typing import Final

from benchmarks._memory import Kept, MemoryLedger
from edgeml.fleet.controller import Controller
from edgeml.fleet.ledger import Device, TelemetrySum, VersionFacts
from edgeml.fleet.rollout import Command, GateSpec, RolloutSpec, RolloutState, Wave, apply
from edgeml.runtime import updater
from edgeml.runtime.updater import Policy, Update
from edgeml.wire.errors import ServiceError
from edgeml.wire.messages import Desired, Report

MODEL: Final = "kws"
POLICY: Final = Policy(soak_s=20.0, health_s=10.0, backoff_s=5.0, backoff_cap_s=20.0)
TROUBLE: Final = 0.2  # share of messages that are lost, repeated, out of order, late: each
COMMANDS: Final[tuple[Command, ...]] = ("pause", "resume", "approve", "abort", "rollback")
HEAL_ROUNDS: Final = 60
END: Final = 1e9  # seconds


def facts(version: str) -> VersionFacts:
    digest = version.replace(".", "").ljust(64, "0")
    return VersionFacts(MODEL, version, digest, f"models/{MODEL}/{version}.edgeml", "s", frozenset({"onnxruntime"}))


OLD: Final = facts("1.0.0")
NEW: Final = (facts("1.1.0"), facts("1.2.0"))
VERSION_OF: Final = {v.manifest_sha256: v.version for v in (OLD, *NEW)}


@dataclass(slots=True)
class Node:
    """A device: the runtime's update machine, its outbox, and what reality does to each version on it."""

    id: str
    fate: dict[str, str]  # digest -> ok | crash | unhealthy | flaky
    update: Update = field(default_factory=lambda: Update(MODEL))
    seq: int = 0
    outbox: list[tuple[Report, str | None]] = field(default_factory=list)
    highest: int = 0


@dataclass(slots=True)
class World:
    rng: random.Random
    ledger: MemoryLedger
    controller: Controller
    nodes: dict[str, Node]
    now: float = 1000.0
    to_device: list[tuple[float, str, Desired]] = field(default_factory=list)
    to_fleet: list[tuple[float, Report, str | None]] = field(default_factory=list)
    announced: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Tally:
    runs: int
    wrong: int = 0
    messages: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    first_wrong: str | None = None


def build(rng: random.Random) -> World:
    ledger = MemoryLedger(versions={(MODEL, v.version): v for v in (OLD, *NEW)})
    world = World(rng, ledger, Controller(ledger), {})
    for _ in range(rng.randint(3, 9)):
        join(world)
    return world


def join(world: World) -> None:
    """A device with its factory's version is switched on for the first time."""
    rng, name = world.rng, f"d{len(world.nodes)}"
    fates = rng.choices(("ok", "crash", "unhealthy", "flaky"), weights=(8, 1, 1, 2), k=2)
    node = Node(name, dict(zip((v.manifest_sha256 for v in NEW), fates, strict=True)))
    shipped = updater.Booted((), OLD.manifest_sha256)
    node.update, _ = updater.step(node.update, shipped, 0.0, policy=POLICY, jitter=0.5)
    world.nodes[name] = node
    world.ledger.kept[name] = Kept(
        Device(
            name, {"site": rng.choice("ab")}, frozenset({"onnxruntime"}), "s", online=True, last_seen=world.now,
            version=OLD.version, manifest_sha256=OLD.manifest_sha256,
        )
    )  # fmt: skip


def start(world: World, version: VersionFacts) -> None:
    rng = world.rng
    canary = rng.choice((0.1, 0.3))
    gate = GateSpec(least_answers=rng.choice((0, 5)), silence_s=rng.choice((60.0, 10_000.0)), ceiling=0.3, limit=0.5)
    spec = RolloutSpec(
        f"r-{version.version}", MODEL, version.version, version.manifest_sha256, version.path, str(rng.random()),
        (Wave(canary, soak_s=20, longest_s=200), Wave(0.8, soak_s=20, longest_s=200)), strata=("site",), gate=gate,
        auto_rollback=rng.random() < 0.8, confirm_small=rng.random() < 0.3,
    )  # fmt: skip
    world.ledger.save(apply(RolloutState(spec), "start", "ann", world.now))


def tick(world: World, *, may_die: bool) -> None:
    """One tick of the controller, then its news on the way to devices."""
    world.ledger.is_dying = may_die and world.rng.random() < 0.1
    try:
        world.controller.tick(world.now)
    except KeyboardInterrupt:
        world.controller = Controller(world.ledger)  # a new process finds the ledger as it was left
    world.ledger.is_dying = False
    for name, kept in world.ledger.kept.items():
        if kept.rev != world.announced.get(name, 0):
            world.announced[name] = kept.rev
            _send_desired(world, name, troubled=may_die)


def _desired(world: World, name: str) -> Desired:
    kept = world.ledger.kept[name]
    return Desired(kept.rev, (kept.device.target,) if kept.device.target else ())


def _send_desired(world: World, name: str, *, troubled: bool) -> None:
    for delay in _fate_of_message(world.rng) if troubled else [0.0]:
        world.to_device.append((world.now + delay, name, _desired(world, name)))


def _fate_of_message(rng: random.Random) -> list[float]:
    """Delays of the copies that arrive; none if the message is lost."""
    if rng.random() < TROUBLE:
        return []
    copies = 2 if rng.random() < TROUBLE else 1
    return [_delay(rng) for _ in range(copies)]


def _delay(rng: random.Random) -> float:
    if rng.random() > TROUBLE:
        return rng.uniform(0, 12)
    return rng.choice((rng.uniform(20, 120), END))  # some turn up when everything else is over


def react(world: World, node: Node, event: updater.Event) -> None:
    """Step the device's machine, and do what it asks: effects happen at once, reports go to the outbox."""
    before = node.update.rev
    pending: list[updater.Event] = [event]
    while pending:
        node.update, actions = updater.step(node.update, pending.pop(0), world.now, policy=POLICY, jitter=world.rng.random())
        assert node.update.rev >= before, "a revision went back"
        for action in actions:
            match action:
                case updater.Fetch():
                    digest = action.target.manifest_sha256
                    assert digest is not None
                    if node.fate.get(digest) == "flaky" and world.rng.random() < 0.5:
                        pending.append(updater.Failed(digest, action.attempt, "download", "cut off", retryable=True))
                    else:
                        pending.append(updater.Fetched(digest, action.attempt, 1000, 1000))
                case updater.SelfTest():
                    bad = node.fate.get(action.digest) == "crash"
                    failure = updater.Failed(action.digest, action.attempt, "crash", "died", retryable=False)
                    pending.append(failure if bad else updater.Tested(action.digest, action.attempt))
                case updater.CheckHealth():
                    errors = 60 if node.fate.get(action.digest) == "unhealthy" else 0
                    pending.append(updater.Health(action.digest, 100, errors))
                case updater.Tell():
                    node.outbox.append((_report(world, node, action.stage), node.update.active))
                case _:
                    pass
    _send_reports(world, node, troubled=True)


def _report(world: World, node: Node, stage: updater.Stage) -> Report:
    node.seq += 1
    wanted = node.update.target
    return Report(
        node.id, 1, node.seq, world.now, node.update.rev, MODEL, stage, wanted.version if wanted else None,
        node.update.wanted, wanted.rollout if wanted else None, code=node.update.code, retryable=node.update.retryable,
    )  # fmt: skip


def _send_reports(world: World, node: Node, *, troubled: bool) -> None:
    for report, active in node.outbox:
        for delay in _fate_of_message(world.rng) if troubled else [0.0]:
            world.to_fleet.append((world.now + delay, report, active))
    if not troubled:
        return
    node.outbox = node.outbox[-1:]  # what a device repeats when it connects again: where it stands


def deliver(world: World) -> int:
    """Everything whose time has come, in any order."""
    due_devices = [m for m in world.to_device if m[0] <= world.now]
    due_fleet = [m for m in world.to_fleet if m[0] <= world.now]
    world.to_device = [m for m in world.to_device if m[0] > world.now]
    world.to_fleet = [m for m in world.to_fleet if m[0] > world.now]
    world.rng.shuffle(due_devices)
    world.rng.shuffle(due_fleet)
    for _, name, desired in due_devices:
        for wanted in desired.targets:
            react(world, world.nodes[name], updater.Wanted(desired.rev, wanted))
    for _, report, active in due_fleet:
        world.ledger.take(report, world.now, manifest=active)
    return len(due_devices) + len(due_fleet)


def live(world: World, seconds: float) -> None:
    """Time passes for devices: timers fire, restarts happen, answers are counted."""
    world.now += seconds
    for node in world.nodes.values():
        if world.rng.random() < 0.05:
            installed = tuple(node.update.installed)
            react(world, node, updater.Booted(installed, OLD.manifest_sha256))
        react(world, node, updater.Tick())
        kept = world.ledger.kept[node.id]
        if world.rng.random() < 0.5 and node.update.active in VERSION_OF:
            said = TelemetrySum(node.id, VERSION_OF[node.update.active], 50, 0, 0)
            world.ledger.windows.append((world.now, MODEL, said))
            kept.device = replace(kept.device, online=True, last_seen=world.now)


def run(seed: int) -> tuple[int, str | None, dict[str, str]]:
    """One history: messages delivered, what was wrong at the end if anything, and the phases it ended in."""
    world = build(random.Random(seed))
    rng, messages = world.rng, 0
    coming = list(NEW[: rng.randint(1, 2)])
    start(world, coming.pop(0))
    for _ in range(rng.randint(10, 40)):
        tick(world, may_die=True)
        messages += deliver(world)
        live(world, rng.uniform(2, 30))
        if rng.random() < 0.12:
            _command(world)
        if rng.random() < 0.03:
            join(world)
        if coming and all(s.phase in {"done", "rolled_back", "aborted"} for s in world.ledger.states.values()):
            start(world, coming.pop(0))
    messages += heal(world)
    return messages, wrong(world), {s.spec.id: s.phase for s in world.ledger.states.values()}


def _command(world: World) -> None:
    state = world.rng.choice(list(world.ledger.states.values()))
    with contextlib.suppress(ServiceError):  # refused in words, and nothing changed
        world.ledger.save(apply(state, world.rng.choice(COMMANDS), "ann", world.now))


def heal(world: World) -> int:
    """The network works again: retained documents and last reports get through, late ones too, until nothing moves."""
    messages = 0
    for turn in range(HEAL_ROUNDS):
        tick(world, may_die=False)
        for node in world.nodes.values():
            if turn % 5 == 0:
                _send_desired(world, node.id, troubled=False)
            _send_reports(world, node, troubled=False)
        messages += deliver(world)
        world.now += 30
        for node in world.nodes.values():
            react(world, node, updater.Tick())
    world.now += END  # the last stragglers: everything that ever got lost on the way arrives now
    messages += deliver(world)
    return messages


def wrong(world: World) -> str | None:
    """What is not as it should be, in words."""
    problems = [_astray(world, node) or _mistaken(world, node) for node in world.nodes.values()]
    problems += [_left_out(world, state) for state in world.ledger.rollouts() if state.phase == "done"]
    return next((problem for problem in problems if problem), None)


def _astray(world: World, node: Node) -> str | None:
    """A device that does not do what the fleet wants, without a reason of its own."""
    kept, update = world.ledger.kept[node.id], node.update
    wanted = kept.device.target
    if update.active is None:
        return f"{node.id} runs nothing"
    if wanted is None:
        return None if update.active == OLD.manifest_sha256 else f"{node.id} was told nothing and runs {update.active}"
    if update.rev != kept.rev or update.target != wanted:
        return f"{node.id} has rev {update.rev}, wanted {kept.rev}: {update.target} != {wanted}"
    may_refuse = node.fate.get(wanted.manifest_sha256 or "", "ok") != "ok"
    refused = may_refuse and update.stage in {"failed", "rejected", "rolled_back"}
    if update.active != wanted.manifest_sha256 and not refused:
        return f"{node.id} runs {update.active}, wanted {wanted.manifest_sha256}, {update.stage}"
    return None


def _mistaken(world: World, node: Node) -> str | None:
    """A fleet that believes or wants what its rollouts do not say."""
    device = world.ledger.kept[node.id].device
    if device.target is not None and device.manifest_sha256 != node.update.active:
        return f"{node.id} runs {node.update.active}, the fleet believes {device.manifest_sha256}"
    if device.target is not None and device.target.rollout is not None:
        phase = world.ledger.states[device.target.rollout].phase
        if phase in {"rolled_back", "rolling_back"}:
            return f"{node.id} is still wanted {device.target.version} by {device.target.rollout}, which is {phase}"
    return None


def _left_out(world: World, state: RolloutState) -> str | None:
    """A device that a finished rollout has forgotten."""
    ended = {"rolled_back", "aborted", "done"}
    if any(other.phase not in ended for other in world.ledger.states.values()):
        return None  # the other one's devices are its own
    aborted = {s.spec.id for s in world.ledger.states.values() if s.phase == "aborted"}  # hands out nothing, takes nothing back
    for name, kept in world.ledger.kept.items():
        told, wanted = (state.spec.id, name) in world.ledger.told, kept.device.target
        if not told and state.spec.manifest_sha256 not in kept.device.failed:
            return f"{name} was never told of {state.spec.id}, which is done"
        if told and (wanted is None or wanted.rollout not in {state.spec.id, *aborted}):
            return f"{name} was told of {state.spec.id}, which is done, and is wanted {wanted}"
    return None


def measure(runs: int, seed: int) -> Tally:
    tally, begun = Tally(runs), time.perf_counter()
    for number in range(runs):
        messages, problem, phases = run(seed * 1_000_003 + number)
        tally.messages += messages
        for phase in phases.values():
            tally.ended[phase] = tally.ended.get(phase, 0) + 1
        if problem is not None:
            tally.wrong += 1
            tally.first_wrong = tally.first_wrong or f"history {seed * 1_000_003 + number}: {problem}"
    tally.seconds = round(time.perf_counter() - begun, 1)
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.histories")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    tally = measure(asked.runs, asked.seed)
    print(f"{tally.runs} histories, {tally.messages} messages delivered, {tally.wrong} wrong final states, {tally.seconds} s")
    print("rollouts ended " + ", ".join(f"{phase}: {count}" for phase, count in sorted(tally.ended.items())))
    if tally.first_wrong:
        print(f"first: {tally.first_wrong}")
    if asked.json:
        print(json.dumps(asdict(tally)))


if __name__ == "__main__":
    main()
