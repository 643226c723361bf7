"""What was typed, for the record that results carry."""

import shlex
import sys


def typed() -> str:
    return shlex.join(["comrope", *sys.argv[1:]])
