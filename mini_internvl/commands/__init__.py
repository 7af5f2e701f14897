"""The commands of ``minivl``, one file each, found by its name; a package here is a group of commands. A file has

- ``command(...)``: typer's options as its arguments, its docstring is the help;
- ``EXAMPLE``: a command line, shown below the help.

``_options.py`` holds what several commands share. A page of the docs names every command.
"""

CONTRACT = ("command", "EXAMPLE")
