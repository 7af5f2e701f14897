"""``python -m mini_internvl`` is the ``minivl`` command."""

from mini_internvl.cli import main

if __name__ == "__main__":
    main()
