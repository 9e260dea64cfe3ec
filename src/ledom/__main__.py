"""`python -m ledom`: the command line, for launchers such as torchrun."""

from ledom.cli.app import main

if __name__ == "__main__":
    main()
