"""The command line: answers on stdout, plain errors on stderr, exit codes 0, 1 and 2."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib

import pytest
import typer
import yaml
from PIL import Image

from mini_internvl import __version__, cli, plugins


def one_line(err):
    """The error, checked to be one plain line."""
    assert err.startswith("minivl: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err.strip()


def test_importing_the_package_imports_no_torch():
    code = "import mini_internvl, sys; assert 'torch' not in sys.modules; assert 'numpy' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_real_process_answers_with_its_exit_code(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def run(*arguments):
        command = [sys.executable, "-m", "mini_internvl", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)

    good, bad = run("--version"), run("train", "none.yaml")
    assert (good.returncode, good.stdout.strip(), good.stderr) == (0, __version__, "")
    assert (bad.returncode, bad.stdout) == (1, "")
    assert one_line(bad.stderr) == "minivl: none.yaml does not exist"


def commands():
    def walk(command, path):
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, [*path, name])
        if path and not hasattr(command, "commands"):
            yield path

    return list(walk(typer.main.get_command(cli.app), []))


def test_there_are_the_commands_of_the_design():
    names = {" ".join(path) for path in commands()}
    assert {"ask", "chat", "train", "adapt", "demo", "eval", "score", "report", "info", "data synth"} <= names
    assert {"data check", "data preview", "data stats", "data convert"} <= names


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_every_command_has_help_with_an_example(minivl, path):
    code, out, err = minivl(*path, "--help")
    assert (code, err) == (0, "")
    assert "Example: " in " ".join(out.split())
    assert out.startswith("Usage: ") or "Usage: " in out


def test_no_command_shows_the_help(minivl):
    code, out, err = minivl()
    assert code in (0, 2)
    assert "ask" in out + err
    code, out, err = minivl("--help")
    assert code == 0
    assert "adapt" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["aks"], "No such command"),
        (["ask"], "Missing argument"),
        (["ask", "--nonsense", "a", "b"], "No such option"),
        (["info", "--size"], "requires an argument"),
        (["eval", "synth", "--limit", "many"], "Invalid value for '--limit'"),
        (["eval", "sinth"], "did you mean synth?"),
        (["score", "synt", "answers.jsonl"], "did you mean synth"),
    ],
)
def test_wrong_usage_is_2(minivl, arguments, message):
    code, out, err = minivl(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    hint = err.splitlines()[1:]
    assert not hint or (len(hint) == 1 and hint[0].startswith("try: minivl ") and hint[0].endswith("--help"))


def test_a_forgotten_question_is_wrong_usage(minivl, image):
    code, _, err = minivl("ask", image)
    assert code == 2
    assert "the question is missing" in err


def test_a_question_longer_than_any_file_name_is_asked(minivl, checkpoint):
    code, out, err = minivl("ask", "What is the word? " * 300, "--model", checkpoint, "--max-new-tokens", 2)
    assert (code, len(out.splitlines())) == (0, 1)
    assert "0 tiles, 1968 + 2 tokens" in err


def test_ask_prints_the_answer_then_what_it_cost(minivl, checkpoint, image):
    code, out, err = minivl("ask", image, "What is this?", "--model", checkpoint, "--max-new-tokens", 5)
    assert code == 0
    assert out.endswith("\n")
    assert "5 tiles, " in err
    assert " tokens, " in err
    code, out, err = minivl("ask", "Who?", "--model", checkpoint, "--max-new-tokens", 3)
    assert code == 0
    assert "0 tiles, " in err
    assert err.strip().endswith("the answer is cut off: --max-new-tokens is reached")


def test_the_form_of_an_answer_is_an_option(minivl, checkpoint, tmp_path):
    pytest.importorskip("llguidance")
    asked = ["ask", "Is it?", "--model", checkpoint, "--json"]
    code, out, _ = minivl(*asked, "--choice", "yes", "--choice", "not sure")
    assert code == 0
    assert json.loads(out)["text"] in ("yes", "not sure")
    code, out, _ = minivl(*asked, "--regex", "[0-9]-[a-z]")
    assert re.fullmatch("[0-9]-[a-z]", json.loads(out)["text"])
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["a", 7]}')
    code, out, _ = minivl(*asked, "--json-schema", schema)
    assert json.loads(json.loads(out)["text"]) in ("a", 7)
    code, _, err = minivl(*asked, "--choice", "a", "--regex", "b")
    assert (code, "--choice and --regex exclude each other" in err) == (2, True)
    code, _, err = minivl(*asked, "--json-schema", tmp_path / "none.json")
    assert (code, "none.json" in err) == (1, True)
    code, out, _ = minivl(
        *asked, "--stop", "e", "--stop", "a", "--repetition-penalty", 1.2, "--top-k", 5, "--min-p", 0.1
    )
    assert code == 0
    assert not {"a", "e"} & set(json.loads(out)["text"])


def test_nano_answers_when_no_model_is_given(minivl, image):
    code, out, _ = minivl("ask", image, "How many shapes are there?", "--max-new-tokens", 8, "--json")
    assert code == 0
    answer = json.loads(out)
    assert answer["tiles"] >= 1
    assert answer["tokens"] >= 1
    facts = json.loads(minivl("info", "--json")[1])
    assert facts["model"] == "nano"
    assert 1_000_000 < facts["total"] < 13_000_000


def test_ask_shows_a_video_as_frames(minivl, checkpoint, tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "Clip.MP4"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height = 64, 48
        for _ in range(40):
            container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 48)))))
        container.mux(stream.encode())
    question = [str(path), "What happens?", "--model", checkpoint, "--max-new-tokens", 2]
    code, _, err = minivl("ask", *question)
    assert (code, "10 frames, 10 tiles, " in err) == (0, True)
    for options, count in ((["--fps", 4, "--max-frames", 12], 12), (["--clip", "2-4", "--fps", 4], 8)):
        code, out, _ = minivl("ask", *question, *options, "--json")
        assert (code, json.loads(out)["frames"], json.loads(out)["tiles"]) == (0, count, count)
    code, _, err = minivl("ask", *question, "--clip", "soon")
    assert (code, "write --clip 3-7.5" in " ".join(err.split())) == (2, True)
    code, _, err = minivl("ask", "a.png", "What?", "--fps", 2)
    assert (code, "are of a video, and none is given" in " ".join(err.split())) == (2, True)


def test_ask_gives_json(minivl, checkpoint, image):
    arguments = ["ask", image, image, "Same?", "--model", checkpoint, "--max-new-tokens", 4, "--max-tiles", 2]
    code, out, err = minivl(*arguments, "--json")
    answer = json.loads(out)
    assert (code, err) == (0, "")
    assert answer["tiles"] == 2
    assert answer["tokens"] <= 4
    assert answer.keys() == {"text", "tiles", "prompt_tokens", "tokens", "seconds", "saved", "finish_reason"}
    seeded = [minivl(*arguments, "--json", "--temperature", 2, "--seed", 1)[1] for _ in range(2)]
    assert json.loads(seeded[0])["text"] == json.loads(seeded[1])["text"]


def bad_image(folder, kind):
    """A file that cannot be used, and a word of the message that it deserves."""
    path = folder / "bad.png"
    if kind == "missing":
        return path, "is missing"
    if kind == "text":
        path.write_text("no image at all\n" * 100)
        return path, "is not an image"
    if kind == "truncated":
        buffer = io.BytesIO()
        Image.effect_noise((200, 200), 90).convert("RGB").save(buffer, "JPEG")
        path = folder / "bad.jpg"
        path.write_bytes(buffer.getvalue()[:3000])
        return path, "damaged or cut off"
    if kind == "strip":
        Image.new("RGB", (1, 5000)).save(path)
        return path, "1x5000"
    assert kind == "bomb"

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path, "30000x30000"


@pytest.mark.parametrize("kind", ["missing", "text", "truncated", "strip", "bomb"])
def test_a_image_that_cannot_be_used_is_one_line(minivl, checkpoint, tmp_path, kind):
    path, message = bad_image(tmp_path, kind)
    code, out, err = minivl("ask", path, "What?", "--model", checkpoint)
    assert (code, out) == (1, "")
    assert message in one_line(err)
    assert path.name in err


def spoil(folder, kind):
    weights = folder / "model.safetensors"
    if kind == "other model":
        (folder / "config.json").write_text(json.dumps({"model_type": "llava", "architectures": ["Llava"]}))
        return 'config of "llava"'
    if kind == "no config":
        (folder / "config.json").unlink()
        return "config.json is missing"
    if kind == "half a shard":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        return "model.safetensors is damaged or incomplete"
    if kind == "pickle":
        weights.rename(folder / "pytorch_model.bin")
        return "pytorch_model.bin is a pickle file"
    if kind == "no tokenizer":
        (folder / "vocab.json").unlink()
        return "holds no tokenizer"
    assert kind == "template"
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"template": "vicuna"}))
    return 'unknown chat template "vicuna"'


@pytest.mark.parametrize("kind", ["other model", "no config", "half a shard", "pickle", "no tokenizer", "template"])
def test_a_checkpoint_that_cannot_be_used_is_one_line(minivl, checkpoint, image, tmp_path, kind):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    message = spoil(folder, kind)
    code, out, err = minivl("ask", image, "What?", "--model", folder)
    assert (code, out) == (1, "")
    assert message in one_line(err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "What?", "--model", "./nowhere"], "neither a checkpoint folder nor a hub id"),
        (["ask", "What?", "--model", "OpenGVLab/InternVL2-1B-nowhere"], "could not be fetched from the hub"),
        (["ask", "What?", "--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["ask", "What?", "--temperature", "-1"], "temperature is -1.0"),
        (["info", "--size", "9B"], 'unknown size "9B"; known: 1B, 2B, 4B'),
        (["info", "--size", "1B", "--model", "x"], "give either --size or --model"),
        (["train", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["eval", "bddx_text"], "give it with --data"),
        (["eval", "synth", "--model", "openai:nowhere"], "write openai:http://host:port/v1#model-name"),
        (["score", "bddx_text", "nowhere.jsonl"], "give it with --data"),
        (["score", "bddx_text", "nowhere.jsonl", "--data", "OUT"], "nowhere.jsonl is missing"),
        (["adapt", "driving", "--output", "OUT"], "did you mean driving_sim"),
        (["report", "nowhere"], "nowhere"),
        (["data", "synth", "shape", "--output", "OUT"], "shape"),
        (["data", "check", "nowhere.jsonl"], "nowhere.jsonl is missing; check the path"),
        (["data", "preview", "nowhere.jsonl"], "nowhere.jsonl is missing; check the path"),
        (["data", "stats", "nowhere.jsonl"], "nowhere.jsonl is missing; check the path"),
        (["data", "convert", "nowhere.jsonl", "OUT.tar"], "nowhere.jsonl is missing; check the path"),
    ],
)
def test_work_that_fails_is_1_and_one_line(minivl, tmp_path, arguments, message):
    code, out, err = minivl(*[str(tmp_path / "out") if a == "OUT" else a for a in arguments])
    assert (code, out) == (1, "")
    assert message in one_line(err)


def test_an_unknown_dtype_and_device_are_told(minivl, checkpoint):
    code, _, err = minivl("ask", "What?", "--model", checkpoint, "--dtype", "int3")
    assert code == 1
    assert 'unknown dtype "int3"' in one_line(err)
    code, _, err = minivl("ask", "What?", "--model", checkpoint, "--device", "toaster")
    assert code == 1
    assert "toaster" in one_line(err)


def test_a_group_of_commands_may_have_two_words(monkeypatch, tmp_path, capsys):
    group = tmp_path / "two_words"
    group.mkdir()
    (group / "__init__.py").write_text('"""Two words."""\n')
    (group / "say.py").write_text('EXAMPLE = ""\n\n\ndef command() -> None:\n    """Say it."""\n    print("said")\n')
    monkeypatch.setattr(cli.commands, "__path__", [*cli.commands.__path__, str(tmp_path)])
    monkeypatch.setattr(plugins, "list_names", lambda folder: ["two_words"] if folder == "commands" else ["say"])
    cli.Commands("commands")["two-words"].main(["say"], standalone_mode=False)
    assert capsys.readouterr().out == "said\n"


def test_debug_shows_the_traceback(minivl):
    with pytest.raises(ValueError, match="unknown size"):
        minivl("--debug", "info", "--size", "9B")


def test_an_unexpected_error_is_two_lines(minivl, monkeypatch):
    import mini_internvl.commands.info as info

    def broken(*args):
        raise KeyError("x")

    monkeypatch.setattr(info, "describe", broken)
    code, _, err = minivl("info")
    assert code == 1
    assert err.splitlines() == ["minivl: KeyError: 'x'", "this should not happen; minivl --debug shows where"]


def test_ctrl_c_is_told_plainly(minivl, monkeypatch):
    import mini_internvl.commands.info as info

    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "describe", stopped)
    code, _, err = minivl("info")
    assert code == 1
    assert one_line(err).startswith("minivl: stopped")


@pytest.mark.parametrize(
    ("size", "numbers"),
    [
        ("1B", ["304,012,288", "4,482,816", "629,663,872", "938,158,976"]),
        ("2B", ["304,012,288", "12,595,200", "1,889,146,880", "2,205,754,368"]),
        ("4B", ["304,012,288", "22,034,432", "3,820,809,216", "4,146,855,936"]),
    ],
)
def test_info_prints_the_published_numbers(minivl, size, numbers):
    code, out, err = minivl("info", "--size", size)
    assert (code, err) == (0, "")
    assert all(number in out for number in numbers)
    facts = json.loads(minivl("info", "--size", size, "--json")[1])
    assert facts["total"] == int(numbers[3].replace(",", ""))


def test_info_describes_a_checkpoint(minivl, checkpoint):
    code, out, _ = minivl("info", "--model", checkpoint, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["tile"] == "56 px, 4 tokens"
    assert facts["language model kind"] == "Qwen2ForCausalLM"


def test_eval_prints_a_table_or_json_and_keeps_answers(minivl, checkpoint, tmp_path):
    folder = tmp_path / "run"
    arguments = ["eval", "synth", "--kinds", "shapes", "--limit", 2, "--model", checkpoint, "--output", folder]
    code, out, err = minivl(*arguments, "--no-report")
    assert code == 0, err
    assert "shapes" in out
    assert len((folder / "synth" / "predictions.jsonl").read_text().splitlines()) == 2
    code, out, _ = minivl(*arguments, "--json", "--no-report")
    assert code == 0
    assert json.loads(out)["results"][0]["items"] == 2
    assert json.loads((folder / "synth" / "timing.json").read_text())["asked"] == 0
    (folder / "answers.sqlite").write_bytes(b"damaged" * 1000)
    code, _, err = minivl(*arguments)
    assert code == 1
    assert "answers.sqlite is damaged" in one_line(err)


def test_data_synth_draws_and_train_reads_it(minivl, checkpoint, tmp_path):
    code, out, _ = minivl("data", "synth", "shapes", "--count", 4, "--output", tmp_path / "drawn")
    assert code == 0
    assert out.strip().endswith(".json")
    rows = next((tmp_path / "drawn").glob("*.jsonl"))
    recipe = {
        "name": "t",
        "model": str(checkpoint),
        "stages": [
            {
                "name": "one",
                "steps": 2,
                "batch_size": 2,
                "max_tiles": 1,
                "data": [{"kind": "jsonl", "path": str(rows)}],
            }
        ],
    }
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe))
    arguments = ["train", path, "--output", tmp_path / "run", "--workers", 0]
    code, out, err = minivl(*arguments, "stages.0.lr=1e-3")
    assert code == 0, err
    assert "2/2  loss" in err
    seen = re.search(r"^synth-shapes/\S+: \d+ x \d+ pixels are (\d+) tiles?, (\d+) visual tokens", err, re.MULTILINE)
    assert seen, err
    assert int(seen[2]) == 4 * int(seen[1])
    assert out.startswith("checkpoint: ")
    code, _, err = minivl(*arguments, "stages.0.lr=2e-3")
    assert code == 1
    assert "holds a run of another recipe" in one_line(err)
    code, _, err = minivl(*arguments, "stages.0.learning=2e-3")
    assert code == 1
    assert "unknown field" in one_line(err)


def test_chat_answers_line_by_line(minivl, checkpoint, image, monkeypatch, tmp_path):
    missing = tmp_path / "none.png"
    typed = ["What is this?", f"/image {missing}", "", f"/image {image}", "Too long.", "And this?", "/new", "/x"]
    lines = iter(typed)

    def answer(prompt=""):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    asked = []
    from mini_internvl.engine import Engine

    def stream(self, messages, config=None, *, max_tiles=None):
        if messages[-1]["content"][-1]["text"] == "Too long.":
            raise ValueError("the prompt has 99 tokens")
        asked.append(json.loads(json.dumps(messages, default=str)))
        yield "fine"

    monkeypatch.setattr(Engine, "stream", stream)
    code, out, err = minivl("chat", "--model", checkpoint, "--image", image)
    assert (code, out) == (0, "fine\nfine\n")
    assert "none.png is missing" in err
    assert "the prompt has 99 tokens; /new starts again" in err
    assert "commands: /image PATH, /new, /quit" in err
    assert [len(messages) for messages in asked] == [1, 3]
    images = [sum(part["type"] == "image" for part in messages[-1]["content"]) for messages in asked]
    assert images == [1, 1]


def test_a_benchmark_of_ones_own_writes_below_the_output_and_not_beside_itself(minivl, checkpoint, tmp_path):
    (tmp_path / "far").mkdir()
    path = tmp_path / "far" / "my-yes.py"
    path.write_text(
        "from mini_internvl.benchmarks._tally import scorer\n"
        "from mini_internvl.records import Item\n"
        "TITLE, SPLITS, PROTOCOLS = 'Yes', ('test',), {'paper': 'Exact.'}\n"
        "PRIMARY_METRIC, LOWER_IS_BETTER = 'accuracy', frozenset()\n"
        "def items(root, split=None, *, protocol=None):\n"
        "    yield Item(id='1', messages=[{'role': 'user', 'content': 'Yes?'}], reference={}, max_new_tokens=2)\n"
        "def right(item, text, protocol='paper'):\n"
        "    return text == 'Yes'\n"
        "score = scorer('my_yes', PROTOCOLS, right)\n"
    )
    arguments = ["eval", path, "--data", tmp_path, "--model", checkpoint, "--no-report", "--output", tmp_path / "out"]
    code, _, err = minivl(*arguments)
    assert code == 0, err
    assert (tmp_path / "out" / "my_yes" / "score.json").exists()
    assert [entry.name for entry in path.parent.iterdir() if entry.name != "__pycache__"] == ["my-yes.py"]


def test_one_of_several_processes_ends_at_once_with_all_it_said():
    """Not by way of torch's threads, which may abort."""
    code = (
        "import atexit; from mini_internvl import ranks; atexit.register(print, 'left'); "
        "ranks.end(1); ranks._joined = True; print('said'); ranks.end(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (3, ["said", "left"])


def test_a_thought_is_told_apart_in_json(minivl, checkpoint, monkeypatch):
    from mini_internvl.engine.engine import Engine, Reply
    from mini_internvl.inputs import thinking

    asked = []

    def stream(self, messages, config, **_):
        asked.append((messages, config))
        yield "<think>6 x 7</think>42"
        return Reply(text="<think>6 x 7</think>42", tiles=0, prompt_tokens=1, tokens=9, seconds=0.1)

    monkeypatch.setattr(Engine, "stream", stream)
    code, out, _ = minivl("ask", "6 x 7?", "--model", checkpoint, "--think", "--json")
    assert code == 0
    assert {name: json.loads(out)[name] for name in ("text", "thought")} == {"text": "42", "thought": "6 x 7"}
    [(turns, config)] = asked
    assert turns[0].text == thinking.SYSTEM
    assert (config.temperature, config.max_new_tokens) == (0.6, 4352)


@pytest.mark.parametrize(
    ("size", "grid", "tokens", "shown", "lost"),
    [
        ((448, 448), "1 x 1", 256, "100 %", "nothing is lost"),
        ((300, 200), "3 x 2, then a thumbnail", 7 * 256, "100 %", "nothing is lost"),
        ((1344, 896), "3 x 2, then a thumbnail", 7 * 256, "100 %", "83 % of what the grid shows is lost"),
        ((2688, 896), "6 x 2, then a thumbnail", 13 * 256, "100 %", "92 % of what the grid shows is lost"),
        ((5376, 1792), "6 x 2, then a thumbnail", 13 * 256, "25 %", "92 % of what the grid shows is lost"),
    ],
)
def test_info_says_what_one_tile_would_lose(minivl, tmp_path, size, grid, tokens, shown, lost):
    Image.new("RGB", size).save(tmp_path / "a.png")
    code, out, _ = minivl("info", "--size", "3.5-1B", "--image", tmp_path / "a.png", "--json")
    facts = json.loads(out)
    assert code == 0
    assert (facts["grid"], facts["visual tokens"], facts["pixels shown"]) == (grid, tokens, shown)
    assert facts["in one fixed tile"].endswith(lost)
