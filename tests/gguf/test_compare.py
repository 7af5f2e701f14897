"""A checkpoint against its GGUF files: what is told of equal, other and misread prompts; with llama.cpp where it is."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from mini_internvl.engine import load
from mini_internvl.engine.compare import default_prompts
from mini_internvl.engine.engine import Engine
from mini_internvl.engine.sampling import GenerationConfig
from mini_internvl.files import FileError
from mini_internvl.gguf import compare, run
from mini_internvl.gguf.compare import compare_gguf
from mini_internvl.gguf.run import IMAGE, Answer, find_files
from mini_internvl.gguf.write import write_gguf

pytest.importorskip("gguf")


class Twin:
    """Answers as the engine does, in the place of llama.cpp; ``change`` spoils an answer."""

    marker = "<__media__>"

    def __init__(self, engine: Engine, change=lambda answer: answer) -> None:
        self.engine, self.change, self.seen = engine, change, []

    def __call__(self, folder, *, context):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def answer(self, messages, images, max_new_tokens):
        self.seen.append((messages, [image.size for image in images]))
        [message] = messages
        text = message["content"].replace(self.marker, "")
        parts = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
        prompt = self.engine.prepare([{"role": "user", "content": parts}])
        config = GenerationConfig(max_new_tokens=max_new_tokens)
        tokens = [step.token for step in self.engine.generate([prompt], config)[0] if step.token is not None]
        ids = torch.tensor([[*prompt.input_ids, *tokens]])
        with torch.inference_mode():
            logits = self.engine.model(ids, prompt.pixel_values)[0, len(prompt.input_ids) - 1 :]
        context = self.engine.model.image_token_id
        marked = tuple(IMAGE if number == context else number for number in prompt.input_ids)
        return self.change(Answer(prompt=marked, tokens=tuple(tokens), logits=logits[: max(1, len(tokens))]))


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Engine:
    return load(checkpoint, dtype="float32", device="cpu")


def compared(engine: Engine, monkeypatch: pytest.MonkeyPatch, change=lambda answer: answer, **options):
    twin = Twin(engine, change)
    monkeypatch.setattr(compare, "LlamaCpp", twin)
    return compare_gguf(engine, Path("unread"), max_new_tokens=4, **options), twin


def test_equal_models_are_equal_on_pictures_of_whole_tiles(engine, monkeypatch):
    result, twin = compared(engine, monkeypatch, tolerance=1e-4)
    assert result.equal
    assert [prompt.tiles for prompt in result.prompts] == [(5,), (3,), (4,), (1, 3), (), ()]
    assert twin.seen[3][0][0]["content"].startswith("<__media__><__media__>What")
    assert [sizes for _, sizes in twin.seen] == [[(112, 112)], [(112, 56)], [(168, 56)], [(56, 56), (112, 56)], [], []]


def test_what_differs_is_told(engine, monkeypatch):
    prompts = {"a": default_prompts()["English"], "b": compare.grid_prompts(engine)["shapes"]}

    def spoiled(**fields):
        return lambda answer: Answer(**{**vars(answer), **fields})

    cut, _ = compared(
        engine, monkeypatch, lambda a: Answer(**{**vars(a), "prompt": (*a.prompt, *[IMAGE] * 4)}), prompts=prompts
    )
    assert [prompt.problem for prompt in cut.prompts] == [
        "images are cut into 0 tiles and 1",
        "images are cut into 5 tiles and 6",
    ]
    ids, _ = compared(
        engine, monkeypatch, lambda a: Answer(**{**vars(a), "prompt": (*a.prompt[:-1], 3)}), prompts=prompts
    )
    assert all("ids differ from place" in prompt.problem for prompt in ids.prompts)
    shifted, _ = compared(
        engine, monkeypatch, lambda a: Answer(**{**vars(a), "logits": a.logits + 0.5}), prompts=prompts
    )
    assert [prompt.logits for prompt in shifted.prompts] == pytest.approx([0.5, 0.5], abs=1e-3)
    assert not shifted.equal
    other, _ = compared(engine, monkeypatch, spoiled(tokens=(7, 7, 7, 7)), prompts=prompts)
    assert all(prompt.answer_difference is not None for prompt in other.prompts)
    assert all(prompt.agreement < 1 for prompt in other.prompts)


def test_what_is_missing_is_named(tmp_path, monkeypatch, checkpoint, minivl):
    with pytest.raises(FileError, match="holds 0 language models and 0 mmproj files"):
        find_files(tmp_path)
    write_gguf(checkpoint, tmp_path / "a")
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    run.library.cache_clear()
    code, _, err = minivl("verify", checkpoint, tmp_path / "a", "--device", "cpu")
    assert code != 0
    assert "pip install llama-cpp-python" in err


def test_llama_cpp_answers_as_we_do(engine, checkpoint, tmp_path, minivl):
    pytest.importorskip("llama_cpp")
    run.library.cache_clear()
    for kind, bound in (("f32", 0.05), ("f16", 0.2)):
        write_gguf(checkpoint, tmp_path / kind, kind=kind)
        result = compare_gguf(engine, tmp_path / kind, max_new_tokens=8)
        assert not [prompt.problem for prompt in result.prompts if prompt.problem]
        assert all(prompt.logits < bound for prompt in result.prompts)
        assert all(prompt.logits < 1e-3 for prompt in result.prompts if not prompt.tiles and kind == "f32")
    code, out, _ = minivl("verify", checkpoint, tmp_path / "f32", "--device", "cpu", "--dtype", "float32", "--json")
    assert code == 0
    assert json.loads(out)["equal"] is True


def test_llama_cpp_makes_other_types(make, tmp_path):
    pytest.importorskip("llama_cpp")
    run.library.cache_clear()
    folder = make(llm={"hidden_size": 256, "intermediate_size": 256})
    done = write_gguf(folder, tmp_path / "out", kind="q4_k_m")
    assert set(done["files"]) == {"out-Q4_K_M.gguf", "mmproj-out-F16.gguf"}
    assert done["tensors"]["out-Q4_K_M.gguf"]["Q4_K"] > 0
    shutil.rmtree(tmp_path / "out")
