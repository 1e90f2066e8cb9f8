"""The bundle that serves, and its successors."""

from collections.abc import Callable

from utils.model_store import Bundle
from utils.telemetry.counts import ServingCounts
from utils.telemetry.reporter import Reporter


class ServingBundle:
    """The bundle that serves; a request reads it once, so it is scored by one model.

    Args:
        bundle: The one that serves first.
        take: Returns a newer one that is loaded, once.
        counts: The swaps are counted there.
        report: Prints the lines for the user.
    """

    def __init__(
        self,
        bundle: Bundle,
        counts: ServingCounts,
        report: Reporter,
        take: Callable[[], Bundle | None] = lambda: None,
    ) -> None:
        self.bundle = bundle
        self._take = take
        self._counts = counts
        self._report = report
        counts.model_id = bundle.model_id

    def follow(self) -> None:
        """Swap to a newer bundle, if one is loaded."""
        bundle = self._take()
        if bundle is not None:
            self.bundle = bundle
            self._counts.model_id = bundle.model_id
            self._counts.swaps += 1
            self._report(f"NEW MODEL RELOADED {bundle.model_id}", model_id=bundle.model_id)
