"""The program: `ledom`, and `python -m ledom` for launchers such as torchrun."""

import sys


def main() -> None:
    """Run the command line. Ctrl-C during its imports ends it without a traceback."""
    try:
        from ledom.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
