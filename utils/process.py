"""What all scripts share: arguments, signals, instance ids and one-line errors."""

import argparse
import gc
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from types import FrameType, TracebackType
from typing import get_args

from utils import home, interpreter, json_lines, version
from utils import settings as settings_module
from utils.durable_files import try_lock
from utils.errors import UserError, one_line
from utils.settings import LogFormat, Settings

#: Seconds without a failure after which an outage of a script is over.
SETTLED = 2.0
#: Prints one line of text for the user.
Report = Callable[[str], None]


def parser(description: str, *, log_format: bool = True) -> argparse.ArgumentParser:
    """An argument parser with `--version`, whose `--help` explains the environment variables.

    Args:
        description: The script's docstring.
        log_format: Whether the script reports lines, and so has `--log-format` for `run`.
    """
    made = argparse.ArgumentParser(
        description=description,
        epilog=settings_module.environment_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version.add_argument(made)
    if log_format:
        made.add_argument(
            "--log-format",
            choices=get_args(LogFormat),
            help="lines for people (text, the default) or machines (json)",
        )
    return made


def at_least(lowest: int) -> Callable[[str], int]:
    """An argparse type: an integer of at least `lowest`."""

    def whole_number(text: str) -> int:
        number = int(text)
        if number < lowest:
            raise argparse.ArgumentTypeError(f"must be {lowest} or more, not {number}")
        return number

    whole_number.__name__ = "whole number"  # argparse names it in its message
    return whole_number


def text(argument: str) -> str:
    """An argparse type: text in UTF-8, whatever the locale."""
    return interpreter.decode_text(argument)


def seconds(text: str) -> float:
    """An argparse type: a number of seconds, 0 or more."""
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text}")
    return number


def run(
    main: Callable[[Settings], int | None],
    *,
    errors: Sequence[type[Exception]] = (),
    log_format: LogFormat | None = None,
    any_name: bool = False,
    on_error: Report = lambda text: None,
) -> int:
    """Run a script's main with the settings; errors that a user can fix are printed in one line.

    Args:
        main: Takes the settings; returns the exit status (None is 0).
        errors: Further types whose text is meant for the user.
        log_format: The command line's `--log-format`, which overrides the settings.
        any_name: Whether the home may be that of a pipeline with another name.
        on_error: Called with the line of such an error before it is printed.

    Returns:
        The exit status: 1 after such an error.
    """
    expected: tuple[type[Exception], ...] = (UserError, *errors)
    shown = log_format or settings_module.log_format()

    def fail(text: str) -> int:
        on_error(text)
        _print_error(text, shown)
        return 1

    try:
        interpreter.prepare()
        settings = settings_module.load()
        if log_format is not None:
            settings = settings.model_copy(update={"log_format": log_format})
        shown = settings.log_format
        configure_logging(settings)
        if not any_name:
            home.check_name(settings)
        return main(settings) or 0
    except expected as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a missing folder for temporary files
        return fail(_describe(error))
    except UnicodeEncodeError as error:
        if error.encoding == "utf-8":
            raise
        return fail(
            f"{error.object!r} cannot be used where the encoding is {error.encoding}: "
            "set PYTHONUTF8=1"
        )
    finally:
        gc.freeze()  # otherwise the garbage collector scans all imported objects at exit


def _print_error(text: str, log_format: LogFormat) -> None:
    if log_format == "json":
        line = json_lines.encode(_process(), text, "error")
    else:
        line = f"{_program()}: {text}"
    sys.stderr.write(line + "\n")


def _describe(error: OSError) -> str:
    reason = error.strerror or one_line(error)
    return reason if error.filename is None else f"cannot use {error.filename}: {reason}"


def _program() -> str:
    """The name of the script, or of the package run with `python -m`."""
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name


def _process() -> str:
    """The script's name as its lines have it."""
    return _program().removesuffix(".py")


def configure_logging(settings: Settings) -> None:
    """Log to stderr at the level in PIPELINE_LOG, with secrets masked, Python's warnings too.

    The default level is high because the libraries log every lost connection; the scripts
    report what matters. At level debug, Kafka's client logs its whole configuration. If lines
    are JSON, an exception that nothing handles is logged, too.
    """
    handler = logging.StreamHandler()
    if settings.log_format == "json":
        handler.setFormatter(MaskingJson(settings.secrets))
        sys.excepthook = _log_exception
        threading.excepthook = _log_thread_exception
    else:
        handler.setFormatter(Masking(settings.secrets))
    logging.basicConfig(level=settings.log.upper(), handlers=[handler])
    logging.captureWarnings(True)  # of a library, with a line of its source


def _log_exception(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    logging.getLogger(_process()).critical("%s", one_line(error), exc_info=(kind, error, traceback))


def _log_thread_exception(hook: threading.ExceptHookArgs) -> None:
    error = hook.exc_value or hook.exc_type()
    _log_exception(hook.exc_type, error, hook.exc_traceback)


class Masking(logging.Formatter):
    r"""Replaces secrets and bearer tokens by *** in all log records.

    >>> sent = logging.makeLogRecord({"name": "x", "msg": "%s %r", "args": ("p\xe4", b"p\xc3\xa4")})
    >>> Masking(["p\xe4"]).format(sent)
    "x: *** b'***'"
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__("%(name)s: %(message)s")
        shapes = {
            shape
            for secret in secrets
            for shape in (secret, repr(secret)[1:-1], repr(secret.encode())[2:-1])
        }
        self._secrets = sorted(shapes, key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, with its traceback if there is one."""
        return self._mask(super().format(record))

    def _mask(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        # Tokens come and go; their alphabet is that of RFC 6750.
        return re.sub(r"(auth=Bearer )[\w.~+/=-]+", r"\1***", text)


class MaskingJson(Masking):
    """Formats log records as JSON lines with `logger`, and `exception` if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record, with its traceback if there is one."""
        fields = {"logger": record.name}
        if record.exc_info:
            fields["exception"] = self._mask(self.formatException(record.exc_info))
        message, level = self._mask(record.getMessage()), record.levelname.lower()
        return json_lines.encode(_process(), message, level, **fields)


class Stop:
    """A flag set by the first SIGINT or SIGTERM; the second ends the process at once.

    Args:
        before_exit: Called by the second signal, in the handler.
    """

    def __init__(self, before_exit: Callable[[], None] = lambda: None) -> None:
        self._event = threading.Event()
        self._before_exit = before_exit

    def __call__(self) -> bool:
        """Whether the script has to finish its current work and end."""
        return self._event.is_set()

    def set(self) -> None:
        """Set the flag without a signal."""
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """Sleep until the flag is set, at most for `seconds`; returns the flag."""
        return self._event.wait(seconds)

    def on_signals(self) -> "Stop":
        """Install the signal handlers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._event.is_set():
            self._before_exit()
            if sys.stdout.isatty():
                os.write(sys.stdout.fileno(), b"\n")  # the prompt comes after a live line
            os._exit(128 + number)
        self._event.set()


class Outage:
    """Reports an error that is retried: once when it begins, and once when it is over.

    It is over when no try has failed for a while: between two tries that fail there may be one
    with nothing to do.

    Args:
        report: Called with one line of text for the user.
        failing: The line when it begins; `{}` stands for the error.
        recovered: The line when it is over; none if empty.
        settled: How long no try may fail, in seconds.
        clock: Returns seconds; never goes back.

    >>> now = 0.0
    >>> outage = Outage(print, "waiting: {}", "recovered", settled=2, clock=lambda: now)
    >>> outage.begin("the disk is full")
    waiting: the disk is full
    >>> outage.end(); outage.begin("the disk is full"); outage.end()
    >>> now = 3.0
    >>> outage.end(); bool(outage)
    recovered
    False
    """

    def __init__(
        self,
        report: Report,
        failing: str = "{}",
        recovered: str = "",
        *,
        settled: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._report = report
        self._failing = failing
        self._recovered = recovered
        self._settled = settled
        self._clock = clock
        self._reason = ""
        self._failed_at = 0.0

    def __bool__(self) -> bool:
        """Whether a try has failed a moment ago."""
        return bool(self._reason)

    @property
    def reason(self) -> str:
        """The error that was noted last; empty once it is over."""
        return self._reason

    def begin(self, reason: str) -> None:
        """Note a failure; it is reported unless the last one had the same reason."""
        if reason != self._reason:
            self._report(self._failing.replace("{}", reason, 1))
        self._reason, self._failed_at = reason, self._clock()

    def end(self) -> None:
        """Note a success; the recovery is reported once no try fails any more."""
        if not self._reason or self._clock() < self._failed_at + self._settled:
            return
        if self._recovered:
            self._report(self._recovered)
        self._reason = ""


def be_nice(niceness: int) -> None:
    """Lower this process's CPU priority, also relative to processes of other terminals.

    Linux divides CPU time among sessions first (a terminal is one), and niceness counts only
    within a session (sched(7), "The autogroup feature"): a niced process alone in its terminal
    would get as much as a predictor in another. So this process starts its own session and
    sets the session's niceness. It then no longer receives the terminal's signals.

    Args:
        niceness: 1 to 19, as for os.nice.
    """
    os.nice(niceness)
    with suppress(OSError):  # a session leader already, not Linux, or Linux without autogroups
        os.setsid()
        Path("/proc/self/autogroup").write_text(str(niceness), "ascii")


@contextmanager
def claim_instance_id(settings: Settings, role: str, limit: int = 1000) -> Iterator[str]:
    """Claim an instance id that no other running process has; a restart claims it again.

    The id's number is that of a free lock file in `data/`; the kernel releases a lock when
    its process ends, for whatever reason. Ids of killed processes are claimed first, because
    an open transaction under such an id blocks other members until the id is used again. The
    id contains host and home, so that machines or homes on one cluster never share an id.

    Raises:
        UserError: All `limit` ids are taken.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    locks = settings.data_dir.glob(f".{role}-*.lock")
    killed = sorted(path for path in locks if path.stat().st_size)
    in_turn = (settings.data_dir / f".{role}-{number}.lock" for number in range(limit))
    for path in chain(killed, in_turn):
        with path.open("a", encoding="ascii") as lock:
            if not try_lock(lock):
                continue
            with suppress(OSError):  # on a full disk the id is just not claimed first later
                lock.write(f"{os.getpid()}\n")
                lock.flush()
            yield _instance_id(settings.home, path.stem[1:])
            lock.truncate(0)  # the process was not killed
            return
    raise UserError(f"{limit} {role}s are running in {settings.home} already")


def _instance_id(home: Path, place: str) -> str:
    role, number = place.rsplit("-", 1)
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:100]
    return f"{role}-{host}-{zlib.crc32(os.fsencode(home)):08x}-{number}"


@contextmanager
def single_instance(
    settings: Settings, role: str, stop: Stop, report: Report
) -> Iterator[str | None]:
    """Wait until no other process has the role in this home, and claim its instance id.

    Yields:
        The instance id; None if `stop` was set while waiting.
    """
    reported = False
    with ExitStack() as resources:
        while True:
            try:
                name = resources.enter_context(claim_instance_id(settings, role, limit=1))
            except UserError:
                if stop():
                    yield None
                    return
                if not reported:
                    report(f"another {role} is running in {settings.home}; waiting for it to end")
                reported = True
                stop.wait(0.5)
            else:
                yield name
                return
