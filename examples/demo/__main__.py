"""Tells the whole story on real input: export, publish, roll out, stop, roll back, fall back.

`python -m examples.demo [digits|kws] [--keep] [--folder DIR]`. Everything is real and on this machine: the converters, a signed
repository, a broker, a fleet service, one device in a process of its own and 200 more that share a process.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from edgeml.fleet.client import Client, find_access
from edgeml.wire.errors import EdgemlError, EnvironmentProblem
from examples.demo.stage import Company, Narrator, edgeml, follow, run, wait_for
from examples.demo.stories import STORIES, Release, Story

DEVICES = 200
REAL_DEVICE = "gate-1"
WINDOW_S = 2.0  # telemetry, so that the story is short; a minute by default
SOAK_S = 4.0
RUNS_PER_S = 8.0  # per device: two windows are enough for a gate to see
TICK_S = 0.5
# 40 devices in the canary: none bad among them bounds the share of bad devices by 10 %.
ROLLOUT = (
    "--canary", "20%", "--waves", "100", "--hold-back", "10%", "--soak", "6s", "--limit", "25%", "--min-devices", "20",
)  # fmt: skip
STEP_LIMIT_S = 120.0
ANSWERS_WATCHED_S = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("story", nargs="?", choices=sorted(STORIES), default="digits")
    parser.add_argument("--keep", action="store_true", help="leave the fleet running and print the page's address")
    parser.add_argument("--folder", type=Path, help="work here and keep it (default: a temporary folder)")
    arguments = parser.parse_args()
    try:
        story = STORIES[arguments.story]()
        with tempfile.TemporaryDirectory(prefix="edgeml-demo-") as temporary:
            folder = (arguments.folder or Path(temporary)).absolute()
            with Company(folder / "logs") as company:
                try:
                    Demo(story, folder, company).tell(keep=arguments.keep)
                except EdgemlError:
                    shutil.copytree(folder / "logs", "edgeml-demo-logs", dirs_exist_ok=True)
                    print("the processes' logs are in edgeml-demo-logs/", file=sys.stderr)
                    raise
    except EdgemlError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


class Demo:
    """One telling. Each act is a method; `tell` is the order."""

    def __init__(self, story: Story, folder: Path, company: Company) -> None:
        self.story = story
        self.folder = folder
        self.company = company
        self.narrator = Narrator()
        self.fleet_data = folder / "fleet"
        self.lines: list[str] = []  # what the end says

    def tell(self, *, keep: bool) -> None:
        print(f"edgeml demo: {self.story.title}, from a trained model to a fleet that updates itself")
        good, better, bad = self.story.releases
        self.export()
        self.open_fleet(good)
        self.first_rollout(good)
        self.good_rollout(better)
        self.bad_rollout(bad, back_to=better)
        self.fall_back()
        self.end(keep=keep)

    # act 1
    def export(self) -> None:
        self.narrator.act("Export three versions, each proved against its source")
        self.story.prepare(self.folder / "data")
        with ThreadPoolExecutor(2) as two:
            reports = list(two.map(self._export, self.story.releases))
        for release, report in zip(self.story.releases, reports, strict=True):
            self.narrator.say(f"{release.version}  {_verdict(report)}")
        self.lines.append(
            f"Three versions left the workshop with a clean report; {bad_version(self.story)} was {self.story.releases[2].who}."
        )

    def _export(self, release: Release) -> dict[str, Any]:
        data, story = self.folder / "data", self.story
        run(
            "export", release.source, "--to", release.formats, "--precision", release.precisions,
            "--calib", str(data / release.calib), "--eval", str(data / release.evaluation), "--max-drop", release.max_drop,
            "--name", story.model, "--version", release.version, "-o", str(self.folder / "bundles"), "--json",
        )  # fmt: skip
        path = self.folder / "bundles" / f"{story.model}-{release.version}.report.json"
        report: dict[str, Any] = json.loads(path.read_text())
        return report

    # act 2
    def open_fleet(self, first: Release) -> None:
        self.narrator.act(f"Start the service, enrol {DEVICES + 1} devices, publish {first.version}")
        port, mqtt_port, cloud_port = free_port(), free_port(), free_port()
        serve = ["fleet", "serve", "--data", str(self.fleet_data), "--port", str(port), "--mqtt-port", str(mqtt_port)]
        self.company.start("service", edgeml(*serve, "--tick-s", str(TICK_S)))
        self.url = f"http://127.0.0.1:{port}"
        self.client = wait_for("the fleet service", self._try_client, self.company, limit_s=40)
        view = wait_for("the broker", self._connected, self.company, limit_s=40)
        self.narrator.say(f"service {self.url}, broker {view['service']['broker']['name']}, signed repository (TUF, Ed25519)")
        self._publish(first)

        self._fleet("devices", "add", REAL_DEVICE, "--tag", "site=hall", "-o", str(self.folder / "agent.toml"))
        crowd = self.folder / "crowd"
        crowd.mkdir()
        self._fleet("devices", "add", "--bulk", str(DEVICES), "--prefix", "cam", "-o", str(crowd / "devices.jsonl"))
        self._write_settings(crowd, cloud_port)
        self.cloud = f"http://127.0.0.1:{cloud_port}"
        good = self._bundle(self.story.releases[1])
        self.company.start("cloud", edgeml("serve", str(good), "--port", str(cloud_port)))
        device = [sys.executable, "-m", "examples.demo.device", str(self.folder / "agent.toml"), self.story.model]
        self.company.start("device", [*device, str(self.folder / "data" / "field.npz")])
        self.company.start("crowd", [sys.executable, "-m", "edgeml.simulation", "--config", str(crowd / "swarm.toml")])
        wait_for("every device", lambda: self._overview() if self._online() >= DEVICES + 1 else None, self.company, limit_s=60)
        self.narrator.say(
            f"{self._online()} devices online: one in a process of its own, {DEVICES} sharing a process and an engine"
        )

    def _write_settings(self, crowd: Path, cloud_port: int) -> None:
        """The demo is impatient: minutes become seconds."""
        first = json.loads((crowd / "devices.jsonl").read_text().splitlines()[0])
        broker = f'broker = "{first["broker"]}"\n' if first["broker"] else ""
        (crowd / "swarm.toml").write_text(
            f'service = "{self.url}"\n{broker}devices = "devices.jsonl"\nroot = "root.json"\ndata = "data"\n'
            f'samples = "{self.folder / "data" / "field.npz"}"\nruns_per_s = {RUNS_PER_S}\nwindow_s = {WINDOW_S}\n'
            f"soak_s = {SOAK_S}\nhealth_s = 2.0\nbackoff_s = 1.0\npoll_s = 5.0\npoll_after_s = 10.0\n"
        )
        with (self.folder / "agent.toml").open("a") as file:
            file.write(
                f"\n[update]\nsoak_s = {SOAK_S}\nhealth_s = 2.0\n\n[telemetry]\nwindow_s = {WINDOW_S}\n\n"
                f'[models.{self.story.model}]\n\n[fallback]\nurl = "http://127.0.0.1:{cloud_port}"\n'
                f"least_score = {self.story.least_score}\ndeadline_ms = 200\n"
            )

    # act 3
    def first_rollout(self, release: Release) -> None:
        self.narrator.act(f"Roll out {release.version} to devices that have nothing yet")
        self._rolled_out(release)
        self.lines.append(
            f"{release.version} went to all {DEVICES + 1} devices in waves; each proved it on its own engine first."
        )

    # act 4
    def good_rollout(self, release: Release) -> None:
        self.narrator.act(f"Roll out {release.version} ({release.who}) on top")
        self._publish(release)
        self._rolled_out(release)
        self.lines.append(f"{release.version} replaced it: the gate found it no worse than the hold-back, wave by wave.")

    def _rolled_out(self, release: Release) -> None:
        rollout = self._create(release)
        seen = ""

        def done() -> dict[str, Any] | None:
            nonlocal seen
            view = self._rollout(rollout)
            if view["phase"] == "holding":
                raise EnvironmentProblem(f"the rollout of {release.version} is held: {view['sentence']}")
            if view["phase"] in {"stopped", "rolling_back", "rolled_back", "aborted"}:
                raise EnvironmentProblem(f"the rollout of {release.version} was stopped: {view['sentence']}")
            passed = [v["sentence"] for v in view["verdicts"] if v["outcome"] == "proceed"]
            if passed and passed[-1] != seen:
                seen = passed[-1]
                self.narrator.say(seen)
            everywhere = self._running().get(release.version, 0) >= DEVICES + 1
            return view if view["phase"] == "done" and everywhere else None

        wait_for(f"{release.version} everywhere", done, self.company, limit_s=STEP_LIMIT_S)
        self.narrator.say(f"{release.version} runs on {self._running()[release.version]} of {DEVICES + 1} devices")

    # act 5
    def bad_rollout(self, release: Release, *, back_to: Release) -> None:
        self.narrator.act(f"Roll out {release.version} ({release.who})")
        self._publish(release)
        before = self._downloads()
        rollout = self._create(release)
        decided = {"stopped", "rolling_back", "rolled_back", "done", "aborted", "holding"}
        self._until(rollout, decided)
        fetched = self._downloads()
        view = self._until(rollout, decided - {"stopped", "rolling_back"})
        if view["phase"] != "rolled_back":
            raise EnvironmentProblem(f"expected the gate to stop {release.version}, got {view['phase']}: {view['sentence']}")
        stop = next(verdict for verdict in view["verdicts"] if verdict["outcome"] == "stop")
        self.narrator.say(stop["sentence"])
        wait_for(
            f"{back_to.version} everywhere again",
            lambda: True if self._running().get(back_to.version, 0) >= DEVICES + 1 else None, self.company, limit_s=60,
        )  # fmt: skip
        after = self._downloads()
        told = view["told"]
        self.narrator.say(
            f"{told} of {DEVICES + 1} devices ever saw it ({fetched - before} downloads); all are back on {back_to.version}, "
            f"after the stop the service was asked for {after - fetched or 'no'} more"
        )
        self.lines.append(f"{release.version} reached {told} devices and no more: {stop['sentence']}")
        self.lines.append(f"Why: {self.story.moral}. They went back to the copy they had kept.")

    def _until(self, rollout: str, phases: set[str]) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            view = self._rollout(rollout)
            return view if view["phase"] in phases else None

        return wait_for("the gate", look, self.company, limit_s=STEP_LIMIT_S)

    # act 6
    def fall_back(self) -> None:
        self.narrator.act("Ask the cloud when in doubt, then lose the cloud")
        log = self.company.log("device")
        answers = follow(log)

        def from_cloud() -> dict[str, Any] | None:
            line = next(answers)
            answer = json.loads(line) if line and line.startswith("{") else None
            return answer if answer and answer["source"] == "cloud" else None

        answer = wait_for("an answer from the cloud", _draining(from_cloud), self.company, limit_s=60)
        label = self.story.labels[answer["answer"]]
        self.narrator.say(
            f"sample {answer['sample']}: not sure enough on the device ({answer['fallback']}), the cloud said {label!r} "
            f"({answer['score']:.0%}) in {answer['latency_ms']:.0f} ms"
        )
        self.company.stop("cloud", how=signal.SIGKILL)
        watched, sources, slowest = 0, set(), 0.0
        deadline = time.monotonic() + ANSWERS_WATCHED_S
        fresh = follow(log)
        while time.monotonic() < deadline:
            line = next(fresh)
            if line is None:
                self.company.check()
                time.sleep(0.02)
            elif line.startswith("{"):
                answer = json.loads(line)
                watched, slowest = watched + 1, max(slowest, answer["latency_ms"])
                sources.add(answer["source"])
        if watched == 0 or sources != {"device"}:
            raise EnvironmentProblem(f"expected answers from the device alone, got {watched} from {sorted(sources)}")
        self.narrator.say(
            f"cloud killed: {watched} answers in {ANSWERS_WATCHED_S:.0f} s, all from the device, slowest {slowest:.1f} ms"
        )
        self.lines.append(
            f"The cloud helped with a doubtful sample; killed, it was not missed: {watched} of {watched} answers came."
        )

    def end(self, *, keep: bool) -> None:
        self.narrator.act("What happened, and why")
        for line in self.lines:
            self.narrator.say(line)
        if keep:
            key = (self.fleet_data / "operator.key").read_text().strip()
            self.narrator.say("")
            self.narrator.say(f"The fleet is still running: {self.url}/#key={key}")
            self.narrator.say(f"Try: edgeml fleet rollout status --data {self.fleet_data}     Ctrl-C ends it.")
            while True:
                self.company.check()
                time.sleep(1)

    # what the acts share
    def _bundle(self, release: Release) -> Path:
        return self.folder / "bundles" / f"{self.story.model}-{release.version}.edgeml"

    def _publish(self, release: Release) -> None:
        self.narrator.say(self._fleet("publish", str(self._bundle(release))).strip())

    def _create(self, release: Release) -> str:
        created = json.loads(self._fleet("rollout", "create", f"{self.story.model}@{release.version}", *ROLLOUT, "--json"))
        return str(created["id"])

    def _fleet(self, *arguments: str) -> str:
        return run("fleet", *arguments, "--data", str(self.fleet_data))

    def _try_client(self) -> Client | None:
        try:
            client = Client(find_access(self.fleet_data, self.url))
            client.get("/v1/overview")
        except EdgemlError:
            return None
        return client

    def _overview(self) -> dict[str, Any]:
        view: dict[str, Any] = self.client.get("/v1/overview")
        return view

    def _connected(self) -> dict[str, Any] | None:
        view = self._overview()
        return view if view["service"]["broker"]["connected"] else None

    def _online(self) -> int:
        return int(self._overview()["fleet"]["online"])

    def _running(self) -> dict[str, int]:
        counts: dict[str, int] = self._overview()["fleet"]["by_version"].get(self.story.model, {})
        return counts

    def _rollout(self, rollout: str) -> dict[str, Any]:
        view: dict[str, Any] = self.client.get(f"/v1/rollouts/{rollout}")
        return view

    def _downloads(self) -> int:
        """Downloads of bundles that the service has served."""
        return int(self._overview()["service"]["bundle_requests"])


def _draining(look: Callable[[], dict[str, Any] | None]) -> Callable[[], dict[str, Any] | None]:
    """Looks many times per call, since a log grows by many lines between two."""

    def looked() -> dict[str, Any] | None:
        return next((found for _ in range(100) if (found := look()) is not None), None)

    return looked


def _verdict(report: dict[str, Any]) -> str:
    artifacts = report["artifacts"]
    passed = sum(artifact["status"] == "pass" for artifact in artifacts)
    small = min((a for a in artifacts if a["status"] == "pass" and a["task"]), key=lambda a: int(a["bytes"]))
    task = small["task"]
    return (
        f"{passed} of {len(artifacts)} artifacts pass; the smallest ({small['format']} {small['precision']}, "
        f"{small['bytes']:,} bytes): {task['metric']} {task['value']:.1%}, source {task['source_value']:.1%}, "
        f"drop at most {task['upper95']:.1f} points"
    )


def bad_version(story: Story) -> str:
    return story.releases[2].version


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
