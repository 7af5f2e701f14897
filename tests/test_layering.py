"""Imports point one way, models stay pure torch, and importing costs little. Read from the sources and tried out."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mini_internvl

PACKAGE = Path(mini_internvl.__file__).parent

TIERS = (
    {"files", "locks", "records", "plugins", "recipes", "ranks"},
    {"inputs", "model", "metrics", "synth"},
    {"", "data", "engine", "gguf"},
    {"domains", "benchmarks", "train"},
    {"evaluate", "report"},
    {"serve", "adapt", "quantize", "terminal", "commands", "cli", "__main__"},
)
"""A unit may import its own tier and those above it in this list. "" is the package itself, which gives `load`."""

EXTRAS = (
    *("gymnasium", "pygame", "Box2D", "matplotlib", "mlxtend", "vega_datasets", "pandas", "sklearn", "scipy"),
    *(
        "jinja2",
        "pyarrow",
        "tensorboard",
        "webdataset",
        "fastapi",
        "uvicorn",
        "av",
        "highway_env",
        "onnxruntime",
        "rapidocr",
        "ray",
        "openvino",
        "nncf",
        "llguidance",
        "pydicom",
        "gguf",
        "llama_cpp",
    ),
)
"""Import names of optional packages; none may be needed to import a module."""

CHEAP = ("", "files", "records", "recipes.", "plugins", "cli", "benchmarks.", "domains.", "metrics.")
"""Modules, or packages with all their modules, that import no torch."""


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file; "" is the package itself."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> Iterator[tuple[str, int]]:
    """Absolute dotted names that a module imports, at any depth of its code, with their lines."""
    path = MODULES[name]
    home = ["mini_internvl", *name.split(".")] if name else ["mini_internvl"]
    package = home if path.name == "__init__.py" else home[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                below = f"{source}.{alias.name}".removeprefix("mini_internvl.")
                yield (f"{source}.{alias.name}" if below in MODULES else source), node.lineno


def unit(dotted: str) -> str:
    """First name below the package: "mini_internvl.model.vlm" -> "model"; the package itself -> ""."""
    return dotted.partition(".")[2].partition(".")[0]


def own_imports() -> Iterator[tuple[str, str, str]]:
    """(importing unit, imported unit, place) for every import of the package's own modules from another unit."""
    for name in MODULES:
        for target, line in imports(name):
            if target.partition(".")[0] == "mini_internvl":
                here, there = name.partition(".")[0], unit(target)
                if here != there:
                    yield here, there, f"{MODULES[name].relative_to(PACKAGE)}:{line} imports {target}"


def tier(name: str) -> int:
    levels = [number for number, units in enumerate(TIERS) if name in units]
    assert levels, f"mini_internvl/{name} has no place in TIERS of {Path(__file__).name}; say what may import it"
    return levels[0]


def test_imports_point_one_way() -> None:
    backward = [place for here, there, place in own_imports() if tier(there) > tier(here)]
    assert not backward, "imports that point back:\n" + "\n".join(backward)


def test_units_of_one_tier_import_each_other_in_one_direction() -> None:
    pairs = {(here, there) for here, there, _ in own_imports()}
    mutual = {place for here, there, place in own_imports() if (there, here) in pairs}
    assert not mutual, "units that import each other:\n" + "\n".join(sorted(mutual))


def test_the_model_is_pure_torch() -> None:
    allowed = {"mini_internvl", "torch", "numpy", "safetensors", *sys.stdlib_module_names}
    model = [name for name in MODULES if name.partition(".")[0] == "model"]
    foreign = [(name, target) for name in model for target, _ in imports(name) if target.split(".")[0] not in allowed]
    knows = {there for here, there, _ in own_imports() if here == "model"}
    assert not foreign
    assert knows <= TIERS[0], f"the model imports {knows - TIERS[0]}; it knows nothing but records"


def run_python(code: str) -> str:
    """Output of a fresh interpreter; warnings are errors."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_cheap_modules_import_no_torch() -> None:
    names = [n for n in MODULES if n in CHEAP or any(c.endswith(".") and f"{n}.".startswith(c) for c in CHEAP)]
    assert {"", "cli", "records", "recipes", "plugins", "domains", "benchmarks"} <= set(names)
    heavy = ("torch", "transformers", "gymnasium", "matplotlib", "pandas")
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(f'mini_internvl.{name}'.rstrip('.'))\n"
        f"    late = [m for m in {heavy!r} if m in sys.modules]\n"
        "    assert not late, f'importing {name} imports {late}'\n"
    )
    run_python(code)


def test_every_module_imports_without_the_extras() -> None:
    names = [name for name in MODULES if name != "__main__"]
    code = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({EXTRAS!r}))\n"  # None makes an import fail
        f"for name in {names!r}:\n"
        "    importlib.import_module(f'mini_internvl.{name}'.rstrip('.'))\n"
    )
    run_python(code)
