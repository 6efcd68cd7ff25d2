"""The entry point of the console script: Ctrl-C ends it with code 130 and no traceback while it is still importing."""

import sys


def main() -> None:
    try:
        from pipeline.cli import main as command

        command()
    except KeyboardInterrupt:
        sys.exit(130)
