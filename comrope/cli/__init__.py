"""ComRoPE and its relatives: compare, train, evaluate and reproduce; check and fold models on disk."""

import signal
import sys
from typing import Any

import tyro

import comrope
from comrope.cli.experiments import Evaluate, Reproduce, TrainDetection, TrainImages, TrainText, TrainVideo
from comrope.cli.tools import Bench, Check, Demo, Fold, Report
from comrope.errors import ComropeError, DivergedError

COMMANDS = {
    "demo": Demo,
    "train": {"images": TrainImages, "video": TrainVideo, "detection": TrainDetection, "text": TrainText},
    "evaluate": Evaluate,
    "reproduce": Reproduce,
    "report": Report,
    "bench": Bench,
    "check": Check,
    "fold": Fold,
}


def main() -> None:
    """Entry point: errors of ours are one line on stderr (exit 2; 3 where a training diverged), Ctrl-C is exit 130."""
    # Not by way of SIGINT, which a shell ignores for what it runs in the background.
    signal.signal(signal.SIGTERM, _stop)
    if sys.argv[1:] == ["--version"]:
        print(f"comrope {comrope.__version__}")
        return
    command = None
    try:
        command = _app(COMMANDS).cli(prog="comrope", description=__doc__)
        command.run()
    except ComropeError as error:
        # Names of files may have bytes that are no text.
        print(f"comrope: {error}".encode(errors="backslashreplace").decode(), file=sys.stderr)
        sys.exit(3 if isinstance(error, DivergedError) else 2)
    except KeyboardInterrupt:
        print(f"comrope: stopped; {getattr(command, 'stopped', 'nothing was written.')}", file=sys.stderr)
        sys.exit(130)


def _app(commands: dict[str, Any]) -> tyro.extras.SubcommandApp:
    app = tyro.extras.SubcommandApp()
    for name, command in commands.items():
        app.command(_app(command) if isinstance(command, dict) else command, name=name)
    return app


def _stop(*_) -> None:
    raise KeyboardInterrupt
