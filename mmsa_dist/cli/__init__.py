"""The command line, a file for each command.

Heavy packages load inside the command that needs them, so that `--help` and a wrong argument answer at once.
"""

from mmsa_dist.cli.main import main

__all__ = ["main"]
