"""The page in a real browser, on a real service with two hundred devices and a rollout that was stopped."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import uvicorn

from edgeml.fleet.api.app import build_app
from edgeml.fleet.config import Config
from edgeml.fleet.ingest import Inbound
from edgeml.fleet.ledger import Device
from edgeml.fleet.plan import NewRollout, specify
from edgeml.fleet.rollout import RolloutState, apply
from edgeml.fleet.serve import bind
from edgeml.fleet.service import Fleet
from edgeml.fleet.store import versions
from edgeml.runtime.bundle import write_bundle
from edgeml.wire.canonical import sha256_hex
from edgeml.wire.manifest import Reference
from edgeml.wire.messages import Kind, Report, ShadowCounts, Slot, State, Telemetry, encode
from edgeml.wire.samples import SampleHeader, SampleTensor, encode_sample
from edgeml.wire.sketches import Histogram
from tests.unit.fleet_bundles import make_manifest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

EDGES = (0.5, 0.6, 0.7, 0.8, 0.9)
REFERENCE = Reference(n=1000, confidence=Histogram(EDGES, (20, 30, 100, 150, 300, 400)))
SURE, UNSURE = (0, 2, 10, 15, 33, 40), (60, 30, 10, 0, 0, 0)
DEVICES = 200
PICTURE = bytes(range(0, 256, 4))  # 8 x 8, from black to nearly white


@dataclass(slots=True)
class Story:
    """A service whose clock and devices the test moves."""

    fleet: Fleet
    folder: Path
    now: list[float] = field(default_factory=lambda: [time.time() - 3600])
    seq: int = 0
    said: list[Inbound] = field(default_factory=list)

    def enrol(self) -> None:
        names = [f"meter-{number:03d}" for number in range(DEVICES)]
        for site in ("Aachen", "Bremen", "Celle", "Dessau"):
            mine = names[("Aachen", "Bremen", "Celle", "Dessau").index(site) :: 4]
            self.fleet.inventory.enrol(mine, {"site": site, "hardware": "pi-4"}, self.now[0], "operator")
        for name in names:
            born = State(
                name, 1, online=name != "meter-007", engines={"onnxruntime": "1.27.0"}, arch="aarch64", runtime="0.1.0"
            )
            self.say(name, "state", encode(born))
        self.deliver()

    def publish(self, version: str) -> None:
        model = version.encode()
        manifest = msgspec.structs.replace(make_manifest(model, "digits", version), reference=REFERENCE)
        path = self.folder / f"{version}.edgeml"
        write_bundle(manifest, {sha256_hex(model): model}, path)
        self.fleet.registry.publish(path, self.now[0], "operator")

    def rollout(self, version: str) -> str:
        with self.fleet.store.read() as connection:
            row = versions.find(connection, "digits", version)
        assert row is not None
        asked = NewRollout("digits", version, canary=0.1, waves=(0.5,), soak_s=60, limit=0.25)
        state = apply(RolloutState(specify(asked, row, self.now[0], "ann")), "start", "ann", self.now[0])
        self.fleet.ledger.save(state)
        return state.spec.id

    def live(self, ticks: int, *, unsure: str | None = None) -> None:
        """Every device that is on installs what it is told and answers; those on `unsure` have lost their confidence."""
        for _ in range(ticks):
            self.now[0] += 65
            self.fleet.controller.tick(self.now[0])
            for device in self.fleet.ledger.devices("digits"):
                if device.online:
                    self._install(device)
            self.deliver()
            for device in self.fleet.ledger.devices("digits"):
                if device.online and device.version is not None:
                    self._answer(device, UNSURE if device.version == unsure else SURE)
            self.deliver()

    def _install(self, device: Device) -> None:
        wanted = device.target
        if wanted is None or wanted.version is None or wanted.version == device.version:
            return
        assert wanted.manifest_sha256 is not None
        slot = Slot(wanted.version, wanted.manifest_sha256, active=True)
        report = Report(
            device.id, 1, self._next(), self.now[0], 1, "digits", "confirmed", wanted.version, wanted.manifest_sha256,
            wanted.rollout, slots=(slot,),
        )  # fmt: skip
        self.say(device.id, "report", encode(report))

    def _answer(self, device: Device, counts: tuple[int, ...]) -> None:
        assert device.version is not None
        assert device.manifest_sha256 is not None
        window = Telemetry(
            device.id, 1, self._next(), "digits", device.version, device.manifest_sha256, self.now[0], 60.0, 100,
            confidence=Histogram(EDGES, counts),
        )  # fmt: skip
        self.say(device.id, "telemetry", encode(window))

    def compare(self, version: str, names: list[str]) -> None:
        """These devices run `version` beside the one that answers, and say how it did."""
        with self.fleet.store.read() as connection:
            row = versions.find(connection, "digits", version)
        assert row is not None
        counts = ShadowCounts(version, row.manifest_sha256, runs=200, agreed=197, errors=1, served_s=2.0, shadow_s=2.3)
        for name in names:
            window = Telemetry(
                name, 1, self._next(), "digits", "1.0.0", "0" * 64, self.now[0], 60.0, 201, shadow=counts
            )  # fmt: skip
            self.say(name, "telemetry", encode(window))
        self.deliver()

    def show_samples(self, names: list[str]) -> None:
        """Each of these devices sends the fleet an input that it was not sure of."""
        with self.fleet.store.read() as connection:
            row = versions.find(connection, "digits", "1.1.0")
        assert row is not None
        tensors = (SampleTensor("image", "uint8", (1, 8, 8, 1)),)
        for number, name in enumerate(names):
            header = SampleHeader(
                str(uuid.UUID(int=number)), self.now[0], "digits", "1.1.0", row.manifest_sha256, tensors,
                score=0.3 + number / 100, label=str(number % 10),
            )  # fmt: skip
            assert self.fleet.samples.take(name, encode_sample(header, [PICTURE]), self.now[0])

    def _next(self) -> int:
        self.seq += 1
        return self.seq

    def say(self, device: str, kind: Kind, payload: bytes) -> None:
        self.said.append(Inbound(device, kind, payload))

    def deliver(self) -> None:
        assert self.fleet.ingest.take(self.said) == len(self.said), self.fleet.ingest.dropped
        self.said.clear()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Story, str]]:
    folder = tmp_path_factory.mktemp("web")
    now = [time.time() - 3600]
    with Fleet(Config(folder / "data", port=0, broker="none", tick_s=3600), clock=lambda: now[0]) as fleet:
        told = Story(fleet, folder, now)
        told.enrol()
        for version in ("1.0.0", "1.1.0", "1.2.0"):
            told.publish(version)
        told.rollout("1.0.0")
        told.live(8)
        told.rollout("1.1.0")
        told.compare("1.1.0", ["meter-001", "meter-002"])
        told.live(8)
        told.show_samples([f"meter-{number:03d}" for number in range(25)])
        told.rollout("1.2.0")
        told.live(5, unsure="1.2.0")
        listener = bind("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(build_app(fleet), log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        yield told, f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join(10)
        listener.close()


def shot(page: Page, name: str) -> None:
    """Keep a picture where `EDGEML_SHOTS` says."""
    if folder := os.environ.get("EDGEML_SHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def test_the_page_says_in_one_sentence_why_a_rollout_was_stopped(story: tuple[Story, str], page: Page) -> None:
    told, url = story
    page.goto(f"{url}#key={told.fleet.operator_key}")
    card = page.locator("article[data-phase=rolled_back]")
    card.wait_for()
    sentence = card.locator(".evidence").inner_text()
    assert "devices on 1.2.0 lost confidence, 0 of" in sentence
    assert "less than once in" in sentence
    assert page.locator("article[data-phase=done]").count() == 2
    assert page.locator(".figures dd").first.inner_text() == "200"
    assert told.fleet.operator_key not in page.url
    shot(page, "fleet")


def test_the_page_is_readable_on_a_phone_and_in_the_dark(story: tuple[Story, str], browser: Browser) -> None:
    told, url = story
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark", device_scale_factor=2)
    page = context.new_page()
    page.goto(f"{url}#key={told.fleet.operator_key}")
    page.locator("article[data-phase=rolled_back]").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    shot(page, "phone-dark")
    context.close()


def test_the_page_says_how_a_version_did_beside_the_old_one(story: tuple[Story, str], page: Page) -> None:
    told, url = story
    page.goto(f"{url}#key={told.fleet.operator_key}")
    card = page.locator("article", has=page.get_by_role("heading", name="digits 1.1.0"))
    card.get_by_text("Beside the old version").wait_for()
    assert "on 2 devices: 394 of 400 answers the same, 1.15 times its time, 2 errors" in card.inner_text()
    assert page.get_by_text("Beside the old version").count() == 1


def test_the_page_counts_devices_by_how_far_their_update_is(story: tuple[Story, str], page: Page) -> None:
    told, url = story

    def still_running(route: Route) -> None:
        answer = route.fetch()
        overview = answer.json()
        newest = overview["rollouts"][0]
        newest |= {"phase": "running", "ended_at": None, "positions": {"shadow": 3, "downloading": 1, "failed": 2}}
        route.fulfill(response=answer, json=overview)

    page.route("**/v1/overview", still_running)
    page.goto(f"{url}#key={told.fleet.operator_key}")
    steps = page.locator("article[data-phase=running]").get_by_label("Devices by their newest")
    steps.wait_for()
    assert steps.locator("li").all_inner_texts() == ["1 downloading", "3 beside the old version", "2 failed"]
    assert page.get_by_label("Devices by their newest").count() == 1, "of what is over, only what went wrong"


def test_the_page_lists_the_newest_samples_and_the_command_that_gets_them(story: tuple[Story, str], page: Page) -> None:
    told, url = story
    page.goto(f"{url}#key={told.fleet.operator_key}")
    samples = page.get_by_role("region", name="Samples").last
    samples.wait_for()
    rows = samples.locator("tbody tr")
    assert rows.count() == 20
    assert rows.first.locator("td").all_inner_texts()[:4] == ["meter-024", "4 digits 1.1.0", "54 %", "image 1x8x8x1"]
    page.get_by_text("25 inputs that 25 devices were not sure of").wait_for()
    page.get_by_text("edgeml fleet samples get --model digits").wait_for()


def test_samples_that_are_pictures_are_shown_when_somebody_asks(story: tuple[Story, str], page: Page) -> None:
    told, url = story
    page.goto(f"{url}#key={told.fleet.operator_key}")
    page.get_by_role("button", name="Show pictures").wait_for()
    assert page.locator("canvas").count() == 0
    page.get_by_role("button", name="Show pictures").click()
    page.get_by_role("img", name="the input as a picture").nth(19).wait_for()
    shown = page.locator("canvas").first.evaluate("c => [...c.getContext('2d').getImageData(0, 0, 8, 8).data]")
    assert shown[:4] == [0, 0, 0, 255]
    assert shown[-4:] == [255, 255, 255, 255]
    assert all(abs(grey - value * 255 / 252) <= 1 for grey, value in zip(shown[::4], PICTURE, strict=True))
    shot(page, "samples")
    page.get_by_role("button", name="Hide pictures").click()
    page.get_by_role("button", name="Show pictures").wait_for()
    assert page.locator("canvas").count() == 0


def test_a_wrong_key_is_refused_in_words_and_the_right_one_opens(story: tuple[Story, str], page: Page) -> None:
    told, url = story
    page.goto(url)
    page.get_by_label("Operator's key").fill("guess")
    page.get_by_role("button", name="Open").click()
    page.get_by_text("That is not this service's key.").wait_for()
    assert page.locator("#all").is_hidden()
    shot(page, "key")
    page.get_by_label("Operator's key").fill(told.fleet.operator_key)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Rollouts").wait_for()


def test_devices_are_found_by_name_tag_and_version(story: tuple[Story, str], page: Page) -> None:
    told, url = story
    page.goto(f"{url}#key={told.fleet.operator_key}")
    find = page.get_by_label("Find a device")
    find.fill("meter-007")
    page.get_by_text("never seen").wait_for()
    assert page.locator("#devices tbody tr").count() == 1
    find.fill("bremen")
    page.get_by_role("cell", name="meter-001").wait_for()
    assert page.locator("#devices tbody tr").count() == DEVICES // 4
    find.fill("nothing like it")
    page.get_by_text("No device matches").wait_for()


def test_a_name_full_of_markup_stays_text(story: tuple[Story, str], page: Page) -> None:
    told, url = story
    told.fleet.inventory.set_tags("meter-000", {"site": "<img src=x onerror=alert(1)>"}, told.now[0], "operator")
    page.goto(f"{url}#key={told.fleet.operator_key}")
    page.get_by_text("<img src=x onerror=alert(1)>").wait_for()
    assert page.locator("#devices img").count() == 0


def test_a_service_that_went_away_is_said_and_the_last_picture_stays(story: tuple[Story, str], page: Page) -> None:
    told, url = story
    page.goto(f"{url}#key={told.fleet.operator_key}")
    page.get_by_role("heading", name="Rollouts").wait_for()
    page.route("**/v1/overview", lambda route: route.abort())
    page.get_by_text("service out of reach").wait_for()
    assert page.locator("article").count() == 3
