"""Answers of the service as a terminal shows them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Answer = Mapping[str, Any]


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as their widest cell."""
    cells = [list(heads), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines)


def devices(listed: Sequence[Answer]) -> str:
    if not listed:
        return "no devices; enrol one with `edgeml fleet devices add ID -o agent.toml`"
    rows = [
        (
            one["id"],
            "online" if one["online"] else "away",
            ago(one["last_seen"]),
            " ".join(f"{model}@{version}" for model, version in one["installed"].items()) or "-",
            " ".join(f"{model}@{version or 'none'}" for model, version in one["wanted"].items()) or "-",
            " ".join(f"{model}:{','.join(streams)}" for model, streams in one["drift"].items()) or "-",
            " ".join(f"{key}={value}" for key, value in one["tags"].items()),
        )
        for one in listed
    ]
    return table(("device", "is", "seen", "runs", "wanted", "drifts", "tags"), rows)


def models(listed: Sequence[Answer]) -> str:
    if not listed:
        return "nothing is published; `edgeml fleet publish BUNDLE`"
    rows = [
        (
            f"{one['model']}@{one['version']}",
            size(one["bytes"]),
            ago(one["created_at"]),
            one["manifest_sha256"][:12],
            one["state"],
        )
        for one in listed
    ]
    return table(("version", "size", "published", "manifest", "state"), rows)


def rollouts(listed: Sequence[Answer]) -> str:
    if not listed:
        return "no rollouts; `edgeml fleet rollout create MODEL@VERSION`"
    rows = [(one["id"], one["phase"], f"{one['share']:.0%}", one["told"], one["sentence"]) for one in listed]
    return table(("rollout", "phase", "share", "told", "evidence"), rows)


def rollout(one: Answer) -> str:
    """One rollout with the sentences its gates said, oldest first."""
    waves = one["spec"]["waves"]
    wave = f"wave {one['wave'] + 1} of {len(waves)}" if one["wave"] >= 0 else "not begun"
    lines = [
        f"{one['id']}: {one['phase']}, {wave}, {one['share']:.0%} of the fleet",
        f"  {one['sentence']}",
        f"  told {one['told']} device{'' if one['told'] == 1 else 's'}"
        + (f", took back {one['taken_back']}" if one["taken_back"] else ""),
    ]
    if one["positions"]:
        lines.append("  " + ", ".join(f"{count} {state}" for state, count in sorted(one["positions"].items())))
    if one["shadow"]:
        lines.append(f"  {shadow(one['shadow'])}")
    lines += [f"  [{verdict['outcome']}] {verdict['sentence']}" for verdict in one["verdicts"]]
    lines += [f"  {sentence}" for sentence in one.get("forecast", ())]
    return "\n".join(lines)


def shadow(sums: Answer) -> str:
    """`beside the old version on 3 devices: 198 of 200 answers as its, 1.04 times its time, 0 errors`."""
    slower = f"{sums['shadow_s'] / sums['served_s']:.2f} times its time, " if sums["served_s"] > 0 else ""
    where = f"{sums['devices']} device{'' if sums['devices'] == 1 else 's'}"
    agreed = f"{sums['agreed']} of {sums['runs']} answers as its"
    return f"beside the old version on {where}: {agreed}, {slower}{sums['errors']} errors"


def events(listed: Sequence[Answer]) -> str:
    if not listed:
        return "nothing happened yet"
    rows = [
        (stamp(one["at"]), one["actor"], one["kind"], one["subject"], one["body"].get("text", "")) for one in reversed(listed)
    ]
    return table(("at", "who", "what", "of", ""), rows)


def samples(listed: Sequence[Answer]) -> str:
    if not listed:
        return "no samples: devices send none unless their owner has turned it on ([samples] in agent.toml)"
    rows = []
    for one in listed:
        header = one["header"]
        score = "" if header.get("score") is None else f"{header['score']:.3f}"
        inputs = ", ".join(f"{tensor['name']} {tensor['shape']}" for tensor in header["tensors"])
        what = f"{header['model']}@{header['version']}"
        rows.append((header["id"], one["device"], what, score, header.get("label") or "", inputs, ago(one["received_at"])))
    return table(("id", "device", "model", "score", "label", "inputs", "came"), rows)


def ago(at: float | None) -> str:
    """How long ago, in one unit."""
    if at is None:
        return "never"
    seconds = max(0.0, time.time() - at)
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def stamp(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
