"""`python -m comrope` is the command `comrope`: what `torchrun` and `accelerate launch` start."""

from comrope.cli import main

main()
