"""What a command has made so far, so that it is deleted again if the command fails."""

from collections.abc import Callable

from utils.errors import UserError


class Made:
    """What was made, in its order; what came first is needed by what came later."""

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], object]]] = []

    def add(self, what: str, undo: Callable[[], object]) -> None:
        """Note a thing that was made, and how to delete it."""
        self._steps.append((what, undo))

    def keep(self) -> None:
        """Forget everything: the command has succeeded."""
        self._steps.clear()

    def delete_again(self) -> str:
        """Delete everything, the latest first; returns what became of it, for a reader.

        If a thing stays, so does what it needs.
        """
        deleted, trouble = [], ""
        while self._steps and not trouble:
            what, undo = self._steps[-1]
            try:
                undo()
            except UserError as error:
                trouble = str(error)
            else:
                deleted.append(what)
                self._steps.pop()
        text = [f"deleted again: {', '.join(deleted)}"] if deleted else []
        if trouble:
            left = ", ".join(what for what, _ in self._steps)
            text.append(f"left, because of {trouble}: {left}")
        return "; ".join(text) or "nothing had been made"
