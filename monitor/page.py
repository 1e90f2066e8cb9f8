"""The page: its head, its tabs, and what keeps them up to date."""

from collections.abc import Callable
from pathlib import Path

from nicegui import ui

from monitor import sections
from monitor.actions import Actions, Guard
from monitor.figures import Figures
from monitor.pace import Pace
from monitor.sections import Section, Seen
from monitor.widgets import clock
from utils.settings import Settings

#: Seconds between two updates of an open page, and the most of the time that they may take.
UPDATE_EVERY, UPDATE_SHARE = 0.5, 0.02
STYLE = Path(__file__).with_name("style.css")


class Page:
    """One open page.

    Args:
        settings: The pipeline's settings.
        figures: What is shown.
        guard: Decides who may press buttons.
        token: What the page's address carried.
    """

    def __init__(self, settings: Settings, figures: Figures, guard: Guard, token: str) -> None:
        self._figures = figures
        self._pipeline = settings.kafka.name
        self._actions = Actions(settings, figures, guard, token)
        self._shown: Seen | None = None
        self._pace = Pace(UPDATE_EVERY / 2, UPDATE_SHARE)
        ui.add_css(STYLE)
        ui.colors(primary="#00609c", positive="#00734f", negative="#b3400b")
        self._header()
        self._banner = ui.label("").classes("banner").props('role="alert"')
        with ui.tabs().props("dense align=left mobile-arrows").classes("w-full") as tabs:
            builders: dict[str, Callable[[], Section]] = {
                "Overview": lambda: sections.Overview(settings.training.retrain_every),
                "Models": lambda: sections.Models(self._actions),
                "Inputs": sections.Inputs,
                "Groups": sections.Groups,
                "Rejected": lambda: sections.Rejected(self._actions),
                "Request": lambda: sections.Request(settings),
            }
            for name in builders:
                ui.tab(name)
        self._sections: dict[str, Section] = {}
        with ui.tab_panels(tabs, value="Overview", animated=False).classes("w-full") as panels:
            for name, build in builders.items():
                with ui.tab_panel(name):
                    self._sections[name] = build()
        self._panels = panels
        panels.on_value_change(lambda: self._update(at_once=True))
        self._update()
        ui.timer(UPDATE_EVERY, self._update)

    def _header(self) -> None:
        with ui.header().classes("p-0"), ui.row().classes("head"):
            self._name = ui.label("pipeline").classes("name")
            self._state = ui.label("").classes("quiet")
            ui.space()
            dark = ui.dark_mode(None)  # as the browser says
            ui.button(
                icon="contrast",
                on_click=lambda: dark.set_value({None: True, True: False, False: None}[dark.value]),
            ).props('flat round dense color="grey" aria-label="light, dark or as the system"')
            ui.button("Retrain now", on_click=self._actions.retrain).props("dense no-caps")

    def _update(self, *, at_once: bool = False) -> None:
        if not at_once and not self._pace.is_due():
            return
        figures = self._figures
        now = Seen(figures.events, figures.cluster, figures.learning, figures.failure)
        if at_once or now != self._shown:  # mostly the same objects, which are not compared
            with self._pace.run():
                self._show(now)

    def _show(self, now: Seen) -> None:
        self._shown = now
        self._name.text = _heading(now.learning.target, self._pipeline)
        self._state.text = _state(now)
        found = problems(now)
        self._banner.text = " · ".join(found)
        self._banner.visible = bool(found)
        section = self._sections.get(str(self._panels.value))
        if section is not None:
            section.update(now)


def _heading(target: str, name: str) -> str:
    """What the page shows.

    >>> _heading("income_bracket", ""), _heading("income_bracket", "eu"), _heading("", "")
    ('income_bracket pipeline', 'income_bracket pipeline eu', 'pipeline')
    """
    return " ".join(part for part in (target, "pipeline", name) if part)


def _state(now: Seen) -> str:
    serving, cluster = now.learning.serving, now.cluster
    if not serving:
        return "no model serves yet"
    seen = f" · {clock(cluster.at)}" if cluster.at and not cluster.error else ""
    return f"model {serving} serves{seen}"


def problems(now: Seen) -> list[str]:
    """What a person should know before reading the figures."""
    cluster, found = now.cluster, []
    if now.failure:
        found.append(f"A fault of this page, please report it: {now.failure}")
    if error := cluster.error or now.events.error:
        since = clock(cluster.failed_at or now.events.failed_at)
        seen = f"; what Kafka shows is of {clock(cluster.at)}" if cluster.at else ""
        if not error.startswith(("there is no topic", "no Kafka broker")):
            error = f"the broker does not answer: {error}"
        found.append(f"{error[0].upper()}{error[1:]} (since {since}{seen})")
    elif cluster.at and not cluster.predictors:
        found.append("No predictor runs: messages wait for their predictions (predictor.py)")
    elif cluster.at and not cluster.trainers:
        found.append("No trainer runs: retrainings wait (trainer.py)")
    return found + list(dict.fromkeys(now.learning.problems.values()))


def build(settings: Settings, figures: Figures, guard: Guard) -> Callable[[str | None], None]:
    """The function that makes the page for one browser.

    Args:
        settings: The pipeline's settings.
        figures: What is shown.
        guard: Decides who may press buttons.
    """

    def show(token: str | None = None) -> None:
        figures.counts.viewers += 1

        def gone() -> None:
            figures.counts.viewers -= 1

        ui.context.client.on_delete(gone)
        Page(settings, figures, guard, token or "")

    return show
