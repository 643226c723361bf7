"""ComRoPE and its relatives: compare, train, evaluate and reproduce; check, fold and show models on disk."""

import os
import signal
import sys
from io import TextIOWrapper
from typing import Any

import comrope
from comrope.errors import ComropeError, ConfigurationError, DivergedError

UNREAD = 128 + 13
"""The exit status if the output pipe was closed, as by `comrope … | head`: that of SIGPIPE in a shell."""


def main() -> None:
    """Runs the command line. Errors of ours are one line on stderr (exit 2; 3 if training diverged); Ctrl-C is exit 130."""
    if sys.stdout is None:  # closed by the parent process
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # file names may not be valid UTF-8
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            _run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Otherwise Python prints another error when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(UNREAD)


def _run() -> None:
    # Not by SIGINT, which a shell makes background processes ignore.
    signal.signal(signal.SIGTERM, _stop)
    if sys.argv[1:] == ["--version"]:
        print(f"comrope {comrope.__version__}")
        return
    command = None
    try:
        _refuse_repeated(sys.argv[1:])
        command = _parsed()
        command.run()
    except ComropeError as error:
        print(f"comrope: {error}", file=sys.stderr)
        sys.exit(3 if isinstance(error, DivergedError) else 2)
    except ModuleNotFoundError as error:
        print(
            f"comrope: {error.name} is not installed: get it by pip install -e '.[lab]' in the repository, or '.[bench]' for "
            "`comrope bench`.",
            file=sys.stderr,
        )
        sys.exit(2)
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"comrope: {error}: look at what has that name, or give another one.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"comrope: stopped; {getattr(command, 'stopped', 'nothing was written.')}", file=sys.stderr)
        sys.exit(130)


def _parsed() -> Any:
    """Returns the command that was typed, parsed."""
    import tyro

    from comrope.cli import experiments, tools
    from comrope.cli.show import Show
    from comrope.lab.kinds import KINDS

    app = tyro.extras.SubcommandApp()
    train, evaluate = tyro.extras.SubcommandApp(), tyro.extras.SubcommandApp()
    Train: Any = experiments.Train
    Evaluate: Any = experiments.Evaluate
    for kind, config in KINDS.items():
        train.command(name=kind, help=f"{config.about} {Train.__doc__}")(Train[config])
        evaluate.command(name=kind, help=Evaluate.__doc__)(Evaluate[config.Options])
    app.command(name="demo")(tools.Demo)
    app.command(train, name="train", help="Train a model with any encoding.")
    app.command(evaluate, name="evaluate", help="Evaluate a trained run under other conditions.")
    for command in (experiments.Reproduce, tools.Report, tools.Bench, tools.Check, tools.Fold, Show):
        app.command(name=command.__name__.lower())(command)
    return app.cli(prog="comrope", description=__doc__)


def _refuse_repeated(arguments: list[str]) -> None:
    """Raises ConfigurationError for an option that is given twice: only the last would count. Values share one option."""
    seen = set()
    for argument in arguments:
        if argument.startswith("--") or argument == "-o":
            name = argument.partition("=")[0].replace("_", "-").replace("--no-", "--")
            name = "--out" if name == "-o" else name
            if name in seen:
                raise ConfigurationError(
                    f"{name} is given twice: leave one out, or give several values after one of them."
                )
            seen.add(name)


def _stop(*_) -> None:
    raise KeyboardInterrupt
