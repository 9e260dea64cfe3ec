"""The program: `ledom`, and `python -m ledom` for launchers such as torchrun.

Files in the working directory are data: one named tokenizers.py or random.py is never imported.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path


def main() -> None:
    """Run the command line. Ctrl-C during its imports ends it without a traceback."""
    os.environ["PYTHONSAFEPATH"] = "1"  # for the processes that this one starts
    try:
        from ledom.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    # `python -m` looks for modules in the working directory first; ledom itself may be there.
    first = sys.path[0]
    with suppress(PermissionError):  # Python cannot look there either
        here = first != str(Path(__file__).parents[1]) and Path(first).is_dir()
        if here and Path().samefile(first):
            del sys.path[0]
    main()
