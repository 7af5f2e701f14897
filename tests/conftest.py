"""Shared by all tests: no network, few threads, and a tiny checkpoint in the official layout, made on the spot."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MINIVL_CACHE"] = tempfile.mkdtemp(prefix="minivl-tests-")

import pytest
import torch
from hypothesis import settings
from PIL import Image, ImageDraw

from mini_internvl.model.checkpoint import save_model
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.sizes import compose, fresh

settings.register_profile("untimed", deadline=None)  # how long an example takes depends on what else the machine does
settings.load_profile("untimed")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: the programs that tests start have one thread too
    os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)

TINY_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "qk_normalization": False,
}
TINY_LLM = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
}
TEXTS = ("What is this? What is the word in the image?", "What does the car do? Why does the car turn?")


def pytest_unconfigure() -> None:
    """Indexes of the tests' data files are not kept."""
    shutil.rmtree(os.environ["MINIVL_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the official layout: 56-pixel tiles of 4 tokens, random float32 weights, its own BPE tokenizer.

    Shared by the whole session: read it, never write into it.
    """
    root = tmp_path_factory.mktemp("tiny")
    bpe = _module(Path(__file__).parent.parent / "scripts" / "small_bpe.py")
    vocabulary = bpe.write_tokenizer(root / "tokenizer", bpe.grow_merges(TEXTS, 60))
    llm = {**TINY_LLM, "vocab_size": vocabulary}
    raw = compose(TINY_VISION, llm, image_size=56, max_tiles=4, img_context_token_id=vocabulary - 7)
    model = fresh(VLMConfig.from_official(raw), seed=0)
    model.image_token_id = vocabulary - 7
    return save_model(model, root / "checkpoint", extra_files=sorted((root / "tokenizer").iterdir()))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A 120 x 80 PNG: a red disc and a blue square on white, two tiles wide for the tiny checkpoint."""
    image = Image.new("RGB", (120, 80), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((10, 20, 50, 60), fill="red")
    pen.rectangle((70, 20, 110, 60), fill="blue")
    path = tmp_path / "image.png"
    image.save(path)
    return path


@pytest.fixture(scope="session")
def fake_server() -> ModuleType:
    """The module of an OpenAI-compatible server in a thread (``fake_server.serve(answer)``)."""
    return _module(Path(__file__).parent / "fake_server.py")


@pytest.fixture(scope="session")
def later(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``later("3.5-1B")`` -> a tiny official folder of that generation, made once; read it, never write into it."""
    root, module = tmp_path_factory.mktemp("later"), _module(Path(__file__).parent / "later.py")
    return functools.cache(lambda kind: module.write(kind, root / kind))


@pytest.fixture
def minivl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``minivl("ask", ...)`` -> (exit code, stdout, stderr)."""
    from mini_internvl import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["minivl", *map(str, arguments)])
        code: int | str | None = None
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return int(code or 0), out, err

    return run


def _module(path: Path) -> ModuleType:
    """A module that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
