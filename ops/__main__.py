"""Operate the pipeline, and inspect what it did.

    python -m ops list                         every model, and which one serves
    python -m ops show 2                       a model's manifest
    python -m ops rollback 1                   serve model 1 again
    python -m ops retrain --wait 60            request a retraining, and wait for it
    python -m ops why REQUEST_ID               explain a prediction
    python -m ops replay --from 0 --to 999     score the log again and compare the bits
    python -m ops rebuild 2                    train model 2 again and compare the bytes
    python -m ops report                       live quality of each model
    python -m ops backtest [FILE.csv]          what another N or memory would have cost
    python -m ops dead-letters list            the rejected records
    python -m ops dead-letters show 7 > record.json
    python -m ops dead-letters resend 7 --value record.json
    python -m ops mlflow                       log models to MLflow, once
    python -m ops demo                         the whole pipeline for about a minute

Each command has a --help of its own.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from ops import dead_letters
from utils import kafka_io, process
from utils.errors import UserError
from utils.kafka_io import KafkaError, KafkaUnavailable
from utils.model_store.bundle import to_pretty_json
from utils.settings import Settings

if TYPE_CHECKING:
    from ops.backtest import Replay

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
Arguments = argparse.Namespace
Command = Callable[[Settings, Arguments], int | None]

# Each command imports its own modules: importing pandas takes longer than some commands run.


def _list(settings: Settings, arguments: Arguments) -> None:
    """Every model ever published, and which one serves."""
    from ops import models

    _console().print(models.table(settings))


def _show(settings: Settings, arguments: Arguments) -> None:
    """A model's manifest: data, parameters, metrics, hashes."""
    from ops import models

    _print_json(models.manifest(settings, arguments.model_id))


def _rollback(settings: Settings, arguments: Arguments) -> None:
    """Serve an older model, in every running predictor too."""
    from ops import models

    with suppress(KafkaUnavailable):  # then predictors read which model serves when they start
        kafka_io.check_owner(settings)
    print(models.rollback(settings, arguments.model_id, arguments.reason))


def _retrain(settings: Settings, arguments: Arguments) -> int:
    """Request a retraining; a trainer that is down answers it when it starts."""
    from ops import retrain

    kafka_io.claim_topics(settings)
    return 0 if retrain.retrain(settings, arguments.wait, print) else 1


def _why(settings: Settings, arguments: Arguments) -> None:
    """Explain a prediction: message, model, and what each feature contributed."""
    from ops import explain, explanation_text

    found = explain.why(settings, arguments.request_id, log=arguments.log)
    if arguments.json:
        _print_json(found)
    else:
        explanation_text.show(found, _console())


def _replay(settings: Settings, arguments: Arguments) -> None:
    """Score the log again and compare the predictions bit for bit."""
    from ops import replay

    with _progress() as bar:
        task = bar.add_task("scoring again", total=None)
        try:
            replayed = replay.replay(
                settings,
                first=arguments.first,
                last=arguments.last,
                partition=arguments.partition,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        except replay.Difference as difference:
            raise UserError(f"DIFFERENT: {difference}") from None
    for line in replayed.lines():
        print(line)


def _rebuild(settings: Settings, arguments: Arguments) -> None:
    """Train a model again from its manifest and the log, and compare the bytes."""
    from ops import rebuild

    differences = rebuild.rebuild(settings, arguments.model_id)
    if differences:
        raise UserError(f"model {arguments.model_id} came out DIFFERENT: {'; '.join(differences)}")
    print(f"model {arguments.model_id} was trained again: model.txt and features.json are the same")


def _report(settings: Settings, arguments: Arguments) -> None:
    """The live quality of each model's predictions."""
    from ops import report

    report.show(settings, arguments.last, _console(160))


def _backtest(settings: Settings, arguments: Arguments) -> None:
    """Replay a file, or the stored messages, with another N, delay or policy.

    Each row is predicted by the model that would have served, then learnt from, by the code of
    predictor and trainer. Nothing is written into the pipeline's home, and no broker is needed.
    """
    from ops import backtest_report as report
    from ops import backtest_stream
    from ops.backtest import Plan

    bundle = backtest_stream.serving_of(settings)
    stream = (
        backtest_stream.read_store(settings, bundle)
        if arguments.file is None
        else backtest_stream.read_file(settings, bundle, arguments.file)
    )
    plan = Plan(
        every=arguments.every or settings.training.retrain_every,
        delay=stream.delay if arguments.delay is None else arguments.delay,
        evals=arguments.evals,
        policy=arguments.policy,
        first=backtest_stream.first_parameters(settings, bundle),
    )

    def run(plan: Plan) -> "Replay":
        with _progress() as bar:
            task = bar.add_task(f"N {plan.every}, delay {plan.delay}", total=None)
            return report.run(
                settings,
                bundle,
                stream,
                plan,
                lambda done, total: bar.update(task, completed=done, total=total),
            )

    found = run(plan)
    contenders = report.contenders_of(settings, bundle, stream, plan, found, forest=arguments.arf)
    figures = report.figures_of(stream, plan, found, contenders)
    if arguments.plot is not None:
        try:
            arguments.plot.write_text(report.picture(found, contenders), encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {arguments.plot}: {error.strerror}") from None
    if arguments.json:
        _print_json(figures)
    else:
        report.show(figures, _console(160))
    if arguments.compare:
        lines = sys.stderr if arguments.json else sys.stdout
        for each in (plan, *report.other_plans(plan)):
            print(report.line_of(each, found if each is plan else run(each)), file=lines)


def _letters_list(settings: Settings, arguments: Arguments) -> None:
    """List the rejected records: where they were, and why."""
    # The records are untrusted text: shown as they are, without markup.
    console = Console(markup=False, emoji=False, highlight=False)
    console.print(dead_letters.table(settings.kafka) or "no record was rejected")


def _letters_show(settings: Settings, arguments: Arguments) -> None:
    """Write one record's bytes to standard output, to be corrected in a file."""
    _print_bytes(dead_letters.content(settings.kafka, arguments.offset))


def _letters_resend(settings: Settings, arguments: Arguments) -> None:
    """Send records again, to where they were rejected."""
    offsets = set(arguments.offsets)
    if bool(offsets) == arguments.all:
        raise UserError("give either offsets from `list` or --all")
    if arguments.value is not None and len(offsets) != 1:
        raise UserError("--value replaces one record: give exactly one offset")
    try:
        value = None if arguments.value is None else arguments.value.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {arguments.value}: {error.strerror}") from None
    home = kafka_io.claim_topics(settings).home
    count = dead_letters.resend(
        settings.kafka, offsets, home=home, value=value, again=arguments.again
    )
    print(f"sent {count} again")


def _mlflow(settings: Settings, arguments: Arguments) -> None:
    """Log to MLflow what it lacks, once (trainer.py --mlflow does so continuously)."""
    from train import tracking

    tracking.log_once(settings)


def _demo(settings: Settings, arguments: Arguments) -> int:
    """Run the whole pipeline for about a minute in this terminal."""
    from ops import demo

    return demo.main(arguments, settings)


def _print_json(value: object) -> None:
    _print_bytes(to_pretty_json(value))  # JSON is UTF-8, whatever the terminal's encoding


def _print_bytes(content: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def _console(width: int = 120) -> Console:
    console = Console()
    if not console.is_terminal:
        console.width = width  # whole lines for grep
    return console


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)


def _parser() -> argparse.ArgumentParser:
    parser = process.parser(__doc__ or "", log_format=False)
    parser.prog = "python -m ops"
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_models(commands)
    _add_looking_back(commands)
    _add_backtest(commands)
    _add_dead_letters(commands)
    _add(commands, "mlflow", _mlflow)
    demo = _add(commands, "demo", _demo)
    for option, kind, default, text in (
        ("--messages", process.at_least(1), 150, "rows"),
        ("--interval", process.seconds, 0.2, "seconds between two rows"),
        ("--outcome-delay", process.seconds, 2.0, "seconds until an outcome is known"),
        ("--evals", process.at_least(1), 10, "evaluations in each search"),
    ):
        demo.add_argument(option, type=kind, default=default, help=f"{text} (%(default)s)")
    return parser


def _add_models(commands: "Commands") -> None:
    _add(commands, "list", _list)
    for name, run in (("show", _show), ("rollback", _rollback), ("rebuild", _rebuild)):
        _add(commands, name, run).add_argument(
            "model_id", type=int, metavar="N", help="the model's number"
        )
    _add(commands, "retrain", _retrain).add_argument(
        "--wait",
        type=process.seconds,
        default=0.0,
        metavar="SECONDS",
        help="wait for the training and print what came of it (%(default)s)",
    )
    commands.choices["rollback"].add_argument(
        "--reason",
        type=process.text,
        default="requested by hand",
        help="kept in the history (%(default)s)",
    )


def _add_looking_back(commands: "Commands") -> None:
    why = _add(commands, "why", _why)
    why.add_argument(
        "request_id", type=process.text, metavar="REQUEST_ID", help="the request to explain"
    )
    why.add_argument("--json", action="store_true", help="print everything as JSON")
    why.add_argument(
        "--log", action="store_true", help="read the log even if the message store has it"
    )
    replay = _add(commands, "replay", _replay)
    offset = process.at_least(0)
    for option, name, text in (
        ("--from", "first", "the first offset of app_messages (the first in the log)"),
        ("--to", "last", "the last offset, inclusive (the last in the log)"),
        ("--partition", "partition", "only this partition (all)"),
    ):
        replay.add_argument(option, dest=name, type=offset, metavar="N", help=text)
    replay.set_defaults(first=0)
    _add(commands, "report", _report).add_argument(
        "--last",
        type=process.at_least(1),
        default=500,
        metavar="K",
        help="also report each model's last K outcomes (%(default)s)",
    )


def _add_backtest(commands: "Commands") -> None:
    backtest = _add(commands, "backtest", _backtest)
    backtest.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE.csv",
        help="rows with outcomes, in the order in which to send them (the stored messages)",
    )
    for option, lowest, name, text in (
        ("--delay", 0, "ROWS", "after how many more rows an outcome is known (0; as really seen)"),
        ("--every", 1, "N", "outcomes from one training to the next ([training] retrain_every)"),
        ("--evals", 1, "N", "evaluations in each search; 1 keeps the parameters (%(default)s)"),
    ):
        backtest.add_argument(option, type=process.at_least(lowest), metavar=name, help=text)
    backtest.set_defaults(evals=1)
    backtest.add_argument(
        "--policy",
        choices=("adaptive", "everything", "frozen"),
        default="adaptive",
        help="what the trainer does, one model of everything, or no training (%(default)s)",
    )
    backtest.add_argument(
        "--compare", action="store_true", help="also other N and delays, one line each"
    )
    backtest.add_argument(
        "--arf", action="store_true", help="also river's adaptive random forest (needs river)"
    )
    backtest.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the log loss")
    backtest.add_argument("--json", action="store_true", help="print everything as JSON")


def _add_dead_letters(commands: "Commands") -> None:
    about = "Rejected records: list them, show a record's bytes, send records again."
    letters = commands.add_parser(
        "dead-letters",
        help=about,
        description=dead_letters.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = letters.add_subparsers(required=True, metavar="list | show | resend")
    _add(kinds, "list", _letters_list)
    _add(kinds, "show", _letters_show).add_argument(
        "offset", type=int, metavar="OFFSET", help="the offset that `list` shows"
    )
    again = _add(kinds, "resend", _letters_resend)
    again.add_argument(
        "offsets", nargs="*", type=int, metavar="OFFSET", help="the offsets that `list` shows"
    )
    again.add_argument("--all", action="store_true", help="every record not sent again yet")
    again.add_argument("--value", type=Path, metavar="FILE", help="send these bytes instead")
    again.add_argument("--again", action="store_true", help="also records sent again before")


def _add(commands: "Commands", name: str, run: Command) -> argparse.ArgumentParser:
    added = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
    added.set_defaults(run=run)
    return added


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parser().parse_args(argv)
    return process.run(
        lambda settings: arguments.run(settings, arguments),
        errors=[KafkaError],
        log_format="text",
    )


if __name__ == "__main__":
    sys.exit(main())
