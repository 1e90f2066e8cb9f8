"""What the page's buttons do, each after a confirmation, with its result shown."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable

from nicegui import run, ui

from monitor.figures import Figures
from ops import dead_letters, models, retrain
from utils import kafka_io
from utils.errors import UserError, one_line
from utils.home import identify
from utils.kafka_io import KafkaError
from utils.settings import Settings

#: Seconds that the page waits for the end of a retraining.
TRAINING_TIMEOUT = 600.0


class Guard:
    """Decides who may press a button.

    Args:
        token: What has to be known; None where everybody may who can reach the page.
    """

    def __init__(self, token: str | None) -> None:
        self._token = token

    @property
    def is_needed(self) -> bool:
        """Whether a token is needed."""
        return self._token is not None

    def allows(self, given: str) -> bool:
        """Whether a token is the right one.

        >>> [Guard("secret").allows(given) for given in ("guess", "secret")]
        [False, True]
        >>> Guard(None).allows("")
        True
        """
        if self._token is None:
            return True
        return secrets.compare_digest(self._token.encode(), given.encode())


class Actions:
    """The actions of one open page.

    Args:
        settings: The pipeline's settings.
        figures: Shows the trainings that were requested.
        guard: Decides who may act.
        token: What the page's address carried; asked for if it is not right.
    """

    def __init__(self, settings: Settings, figures: Figures, guard: Guard, token: str) -> None:
        self._settings = settings
        self._figures = figures
        self._guard = guard
        self._token = token

    async def retrain(self) -> None:
        """Request a retraining, and say what came of it."""
        if await self._confirmed(
            "Retrain now?",
            "A trainer that runs starts at once; one that is down answers when it starts.",
            "Retrain",
        ):
            await self._do("retraining", self._request_training, self._training)

    def _request_training(self) -> str:
        kafka_io.claim_topics(self._settings)
        return retrain.request(self._settings)

    async def _training(self, batch_id: str) -> str:
        """Wait for the training that answers a request; returns what came of it."""
        until = time.monotonic() + TRAINING_TIMEOUT
        while time.monotonic() < until:
            if (done := self._figures.events.answers.get(batch_id)) is not None:
                return retrain.text(done)
            await asyncio.sleep(0.5)
        return "retraining requested; it waits for a trainer"

    async def roll_back(self, model_id: int | None, reason: str) -> None:
        """Serve another model."""
        if model_id is None:
            ui.notify("Choose a model first.", type="warning")
        elif await self._confirmed(
            f"Serve model {model_id}?",
            "Running predictors load it at once. Later retrainings are compared with it.",
            f"Serve model {model_id}",
        ):
            await self._do("rollback", lambda: self._roll_back(model_id, reason))

    def _roll_back(self, model_id: int, reason: str) -> str:
        kafka_io.check_owner(self._settings)
        return models.rollback(self._settings, model_id, reason or "requested on the page")

    async def resend(self, offsets: set[int], resent: set[int]) -> None:
        """Send rejected records again, to where they were rejected.

        Args:
            offsets: Their offsets on `dead_letters`.
            resent: Those of them that were sent again before.
        """
        if not offsets:
            ui.notify("Select records first.", type="warning")
            return
        twice = offsets & resent
        again = f" {len(twice)} of them were sent again before." if twice else ""
        if await self._confirmed(
            f"Send {_records(len(offsets))} again?",
            f"As they are, to where they were rejected.{again} Records that are still wrong are "
            "rejected again.",
            "Send again",
        ):
            await self._do("sending again", lambda: self._resend(offsets, bool(twice)))

    def _resend(self, offsets: set[int], again: bool) -> str:
        kafka_io.check_owner(self._settings)
        home = identify(self._settings).id
        count = dead_letters.resend(self._settings.kafka, offsets, home=home, again=again)
        return f"{_records(count)} sent again"

    async def _do(
        self,
        what: str,
        work: Callable[[], str],
        then: Callable[[str], Awaitable[str]] | None = None,
    ) -> None:
        """Do something in a thread, then perhaps wait for its result, and show that."""
        running = ui.notification(f"{what} ...", spinner=True, timeout=None)
        try:
            text, kind = await run.io_bound(work) or "", "positive"
            if then is not None:
                text = await then(text)
        except (UserError, KafkaError) as error:
            text, kind = f"{what} failed: {one_line(error)}", "negative"
        running.spinner = False
        running.message = text
        running.type = kind  # type: ignore[assignment]
        running.timeout = 15.0
        running.close_button = "Close"

    async def _confirmed(self, title: str, text: str, button: str) -> bool:
        """Ask whether to go on, and for the token where it is needed."""
        ask = self._guard.is_needed and not self._guard.allows(self._token)
        with ui.dialog() as dialog, ui.card().classes("confirm"):
            ui.label(title).classes("card-title")
            ui.label(text)
            token = ui.input("Token", password=True) if ask else None
            with ui.row().classes("justify-end w-full"):
                ui.button("Cancel", on_click=lambda: dialog.submit(False)).props("flat no-caps")
                ui.button(button, on_click=lambda: dialog.submit(True)).props("autofocus no-caps")
        confirmed = bool(await dialog)
        given = token.value if token is not None else self._token
        dialog.delete()
        if confirmed and not self._guard.allows(given):
            ui.notify(
                "This is not the token that `python -m monitor` has printed.", type="negative"
            )
            return False
        if confirmed:
            self._token = given
        return confirmed


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count} records"
