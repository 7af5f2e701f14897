"""The ``minivl`` command: finds the commands by their file names and turns every error into a plain line.

A command is a module of ``commands/`` (a package there is a group of commands) with a function ``command``, whose
docstring is the help, and an ``EXAMPLE``. Only the module of the command that runs is imported.
Exit codes: 0 done, 1 the work failed, 2 wrong usage. ``--debug`` shows the traceback of an error.
"""

from __future__ import annotations

import ast
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mini_internvl import commands, plugins, ranks, records

INTERRUPTED = 130  # what typer returns for a Ctrl-C instead of raising it
SETTINGS: Mapping[str, Any] = {"no_args_is_help": True, "add_completion": False, "rich_markup_mode": None}


class Commands(Mapping[str, Any]):
    """Command name -> command, imported when it is asked for."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.modules = {name.replace("_", "-"): name for name in plugins.list_names(folder)}

    def __iter__(self) -> Iterator[str]:
        return iter(self.modules)

    def __len__(self) -> int:
        return len(self.modules)

    def __getitem__(self, name: str) -> Any:
        module = importlib.import_module(f"mini_internvl.{self.folder}.{self.modules[name]}")
        if hasattr(module, "__path__"):
            return group(f"{self.folder}.{self.modules[name]}", module.__doc__ or "")
        if missing := [wanted for wanted in commands.CONTRACT if not hasattr(module, wanted)]:
            raise ValueError(f"{module.__file__} has no {', '.join(missing)}; see mini_internvl/commands/__init__.py")
        single = typer.Typer(**SETTINGS)
        single.command(name=name, epilog=f"Example: {module.EXAMPLE}", no_args_is_help=False)(module.command)
        return typer.main.get_command(single)

    def summary(self, name: str) -> str:
        """The first sentence of a command's help, read without importing it."""
        place = Path(__file__).parent.joinpath(*self.folder.split("."), self.modules[name])
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        tree = ast.parse(file.read_text(encoding="utf-8"))
        functions = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "command")
        return (ast.get_docstring(next(functions, tree)) or "").split(".")[0]


class Group(TyperGroup):
    """A group whose commands are found by name."""

    folder = "commands"

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = Commands(self.folder)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands of ``--help`` without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.commands.summary(name)) for name in self.commands])


def group(folder: str, text: str) -> Any:
    """The command group of a package below ``commands``."""
    found = typer.Typer(cls=type("Group", (Group,), {"folder": folder}), help=text, **SETTINGS)
    found.callback()(lambda: None)
    return typer.main.get_command(found)


app = typer.Typer(
    name="minivl",
    cls=Group,
    help="Pocket vision-language models of the InternVL2 family: ask, train, adapt to a domain, evaluate.",
    pretty_exceptions_enable=False,
    **SETTINGS,
)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Take models from the hub's cache only.")] = False,
) -> None:
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    if version:
        from mini_internvl import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; every error ends as a plain line and an exit code."""
    try:
        _run()
    except SystemExit as left:
        ranks.end(left.code if isinstance(left.code, int) else 1)
        raise
    ranks.end(0)


def _run() -> None:
    from mini_internvl import terminal

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is a Ctrl-C
    code = None
    try:
        code = app(prog_name="minivl", standalone_mode=False)
    except typer.Abort:
        _fail("stopped", 1)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        terminal.close()
        _explain(error)
    finally:
        terminal.close()
    if code == INTERRUPTED:
        _fail("stopped; the same command goes on from what is saved", 1)
    if isinstance(code, int) and code:
        sys.exit(code)


def _explain(error: Exception) -> None:
    """One line for an expected error, two for an unexpected one."""
    show = getattr(error, "format_message", None)
    if show is not None:  # typer's usage errors
        context = getattr(error, "ctx", None)
        hint = f"\ntry: {context.command_path} --help" if context else ""
        _fail(f"{show()}{hint}", getattr(error, "exit_code", 2))
    if isinstance(error, records.Interrupted):
        _fail(f"{error}; the same command goes on", 1)
    if isinstance(error, ValueError | OSError | ImportError | RuntimeError):
        _fail(" ".join(str(error).split()) or type(error).__name__, 1)
    _fail(f"{type(error).__name__}: {error}\nthis should not happen; minivl --debug shows where", 1)


def _fail(message: str, code: int) -> None:
    typer.secho(f"minivl: {message}", err=True, fg="red" if sys.stderr.isatty() else None)
    sys.exit(code)


if __name__ == "__main__":
    main()
