"""``python -m vcc_fm.cli`` is the command ``vcc-fm``."""

from vcc_fm.cli import main

if __name__ == "__main__":
    main()
