"""The live page in a real browser, on a pipeline that runs."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from tests.conftest import MakePipeline
from tests.harness import Pipeline, Script, until
from utils import messages
from utils.broker import Broker
from utils.kafka_io.clients import open_admin

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
TABS = ("Overview", "Models", "Inputs", "Groups", "Rejected", "Request")

pytestmark = [
    pytest.mark.optional,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium"),
]


class Viewer:
    """A browser that looks at one page, and what its console says."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.faults: list[str] = []
        page.on("console", self._note)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.goto(address)
        page.wait_for_selector(".tile")

    def _note(self, message: object) -> None:
        if getattr(message, "type", "") in ("error", "warning"):
            self.faults.append(getattr(message, "text", ""))

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def shows(self, text: str | re.Pattern[str], timeout: float = 20.0) -> None:
        self.page.get_by_text(text).first.wait_for(timeout=timeout * 1000)

    def tile(self, label: str) -> str:
        """The figure of a tile."""
        tile = self.page.locator(".tile", has=self.page.get_by_text(label, exact=True))
        return tile.locator(".value").inner_text()

    def press(self, button: str) -> None:
        self.page.get_by_role("button", name=button, exact=True).click()

    def tab_to(self, name: str) -> None:
        """Move the keyboard's focus to a button."""
        for _ in range(80):
            self.page.keyboard.press("Tab")
            focused = self.page.evaluate("document.activeElement.innerText")
            if focused and focused.strip() == name:
                return
        raise AssertionError(f"the keyboard does not reach {name!r}")


@pytest.fixture
def view() -> Iterator[Callable[..., Viewer]]:
    """Opens a page in a browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def view(address: str, width: int = 1280, scheme: str = "light") -> Viewer:
            page = browser.new_page(
                viewport={"width": width, "height": 900},
                color_scheme=scheme,  # type: ignore[arg-type]
            )
            return Viewer(page, address)

        yield view
        browser.close()


def start_monitor(pipeline: Pipeline, *options: str, **environment: str) -> tuple[Script, str]:
    """Start the monitor on a free port; returns its address, too."""
    monitor = pipeline.start("-m", "monitor", "--port", "0", *options, **environment)
    monitor.says("shows the pipeline")
    (address,) = re.findall(r"(http://\S+) shows", monitor.text())
    return monitor, address


@pytest.mark.timeout(240)
def test_page_follows_the_pipeline(
    view: Callable[..., Viewer],
    make_pipeline: MakePipeline,
    broker: Broker,
    tmp_path: Path,
) -> None:
    pipeline = make_pipeline(RETRAIN_EVERY="100", EXTRA_MODELS_TO_KEEP="50")
    predictor = pipeline.start("predictor.py")
    predictor.says("serves partitions")
    pipeline.start("trainer.py", "--evals", "1").says("ready")
    monitor, address = start_monitor(pipeline)
    viewer = view(address)
    pipeline.send(
        [(messages.APP_MESSAGES, b"bad", {"request_id": "<i>bad</i>", "data": {"age": []}})]
    )
    pipeline.start(
        *("sample_app.py", "--messages", "100000", "--interval", "0.04"),
        *("--outcome-delay", "0.2"),
    )
    check_overview(viewer)
    check_swap(viewer, pipeline)
    check_rollback_by_keyboard(viewer, pipeline)
    check_rejected(viewer, pipeline)
    check_request(viewer, pipeline)
    check_groups(viewer)
    check_inputs(viewer)
    check_sizes(view, address)
    assert viewer.faults == []
    groups = {messages.PREDICTOR_GROUP, messages.TRAINER_GROUP}
    with closing(open_admin(pipeline.settings.kafka)) as admin:
        assert {group["group_id"] for group in admin.list_groups()} == groups
    check_restart_of_broker(viewer, broker)
    assert viewer.faults == []
    assert monitor.end() == 0, monitor.text()
    assert "Traceback" not in monitor.text()


def check_overview(viewer: Viewer) -> None:
    """Figures move while messages flow."""
    until(lambda: viewer.tile("predictions a second") not in ("-", "0", "0.0"), 30)
    seen = set()
    for _ in range(20):
        seen.add(viewer.tile("predictions a second"))
        time.sleep(0.25)
    assert len(seen) > 2, seen
    until(lambda: viewer.tile("latency p50").endswith("ms"), 20)
    until(lambda: re.fullmatch(r"0\.\d{4}", viewer.tile("live log loss")) is not None, 30)
    viewer.shows(re.compile(r"predictor-\S+-0"))
    viewer.shows("retraining requested, count: 100 outcomes")


def check_swap(viewer: Viewer, pipeline: Pipeline) -> None:
    """A swap shows up within two seconds of the predictor's word for it."""
    shown = viewer.page.locator(".panel", has_text="Predictors").locator("td b").first
    before = int(re.findall(r"model (\d+)", shown.inner_text())[0])
    until(lambda: f"model {before} " not in shown.inner_text() + " ", 60)
    at = time.time()
    (now,) = re.findall(r"model (\d+)", shown.inner_text())[:1]
    loaded = [
        record.timestamp / 1000
        for record in pipeline.records(messages.RETRAIN_TOPIC)
        if (event := json.loads(record.value)).get("model_loaded") and event["model_id"] == int(now)
    ]
    assert at - loaded[0] < 2.0


def check_rollback_by_keyboard(viewer: Viewer, pipeline: Pipeline) -> None:
    """The button rolls back, by the keyboard alone."""
    viewer.tab("Models")
    viewer.shows(re.compile(r"^\d+ models"))
    choice = viewer.page.get_by_label("model", exact=True)
    choice.focus()
    viewer.page.keyboard.press("Enter")
    option = viewer.page.get_by_role("option").first
    option.wait_for()
    (wanted,) = re.findall(r"model (\d+)", option.inner_text())
    viewer.page.keyboard.press("ArrowDown")
    viewer.page.keyboard.press("Enter")
    viewer.tab_to("Roll back")
    viewer.page.keyboard.press("Enter")
    confirm = viewer.page.get_by_role("button", name=re.compile("^Serve model"))
    confirm.wait_for()
    (asked,) = re.findall(r"\d+", confirm.inner_text())
    viewer.tab_to(confirm.inner_text())
    viewer.page.keyboard.press("Enter")
    viewer.shows(re.compile(rf"bundle {asked} serves instead of"))
    assert int(asked) <= int(wanted)
    assert pipeline.wait_for_events("rollback", 1)[0]["model_id"] == int(asked)


def check_rejected(viewer: Viewer, pipeline: Pipeline) -> None:
    """A rejected record is shown as text and sent again, and rejected again."""
    viewer.tab("Rejected")
    viewer.shows("age: [] is nested")
    viewer.shows("<i>bad</i>")
    viewer.page.get_by_role("checkbox").nth(1).click()
    viewer.press("Send selected again")
    viewer.press("Cancel")
    viewer.press("Send selected again")
    viewer.press("Send again")
    viewer.shows("1 record sent again")
    viewer.shows("sent again")
    assert pipeline.wait_for_events("resent", 1)[0]["offsets"] == [0]
    pipeline.wait_for(messages.DEAD_LETTERS, 2)


def check_request(viewer: Viewer, pipeline: Pipeline) -> None:
    """A request is explained with a picture."""
    made = pipeline.values(messages.PREDICTIONS)[-1]
    viewer.tab("Request")
    viewer.page.get_by_label("request_id").fill("nobody")
    viewer.page.keyboard.press("Enter")
    viewer.shows("no request 'nobody'")
    viewer.page.get_by_label("request_id").fill(made["request_id"])
    viewer.press("Explain")
    viewer.shows(re.compile(rf"predicted {made['prediction']}.*by model {made['model_id']}"))
    viewer.shows("What each feature adds")
    picture = viewer.page.locator(".chart:visible")
    until(lambda: picture.locator("svg path").count() > 10, 10)


def check_groups(viewer: Viewer) -> None:
    """Groups are compared."""
    viewer.tab("Groups")
    for text in ("gender", "race", "Female", "White", "missed among >50K"):
        viewer.shows(text)


def check_inputs(viewer: Viewer) -> None:
    """The shift of inputs and predictions is shown, and the share of missing values."""
    viewer.tab("Inputs")
    viewer.shows(re.compile("of all [\\d,]+ messages"))
    viewer.shows("workclass")
    viewer.shows("prediction: >50K", timeout=40)


def check_sizes(view: Callable[..., Viewer], address: str) -> None:
    """The page fits a phone and a desk, light and dark."""
    for width, scheme in ((400, "dark"), (1280, "light")):
        viewer = view(address, width, scheme)
        for tab in TABS:
            viewer.tab(tab)
            time.sleep(0.8)
            wide = viewer.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, (tab, width, wide)
        colour = viewer.page.evaluate("getComputedStyle(document.body).backgroundColor")
        light = sum(map(int, re.findall(r"\d+", colour)[:3])) > 384
        assert light == (scheme == "light")
        assert viewer.faults == []
        viewer.page.close()


def check_restart_of_broker(viewer: Viewer, broker: Broker) -> None:
    """The page says that the broker is gone, and goes on when it is back."""
    viewer.tab("Overview")
    banner = viewer.page.locator(".banner")

    def says_so() -> bool:
        return banner.is_visible() and "broker" in banner.inner_text()

    broker.stop()
    until(says_so, 20)
    broker.start()
    until(lambda: not says_so(), 40)
    until(lambda: viewer.tile("predictions a second") not in ("-", "0", "0.0"), 60)


@pytest.mark.timeout(120)
def test_other_addresses_need_a_token(
    view: Callable[..., Viewer], make_pipeline: MakePipeline
) -> None:
    pipeline = make_pipeline()
    monitor, address = start_monitor(pipeline, "--host", "0.0.0.0", MONITOR_TOKEN="open sesame")
    address = address.replace("0.0.0.0", "127.0.0.1")
    viewer = view(address)
    for token, expected in (("wrong", "This is not the token"), ("open sesame", "retraining")):
        viewer.press("Retrain now")
        viewer.page.get_by_label("Token").fill(token)
        viewer.press("Retrain")
        viewer.shows(expected)
        if token == "wrong":
            assert pipeline.events("retrain") == []
    assert len(pipeline.wait_for_events("retrain", 1)) == 1
    viewer = view(f"{address}/?token=open+sesame")
    viewer.press("Retrain now")
    assert viewer.page.get_by_label("Token").count() == 0
    viewer.press("Retrain")
    assert len(pipeline.wait_for_events("retrain", 2)) == 2
    assert monitor.end() == 0
