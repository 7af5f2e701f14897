"""Answering beside transformers, llama.cpp and OpenVINO GenAI: decoding alone and together, the first token, memory.

    python bench/engine.py [--way torch --way int4 ...] [--llama FOLDER] [--genai FOLDER] [--size 1B] [--dtype float32]
        [--output FILE]

The weights are random, and the same in all ways without a folder; nothing ends an answer early. A question is one tile
and 64 tokens. Each way is measured in a process of its own:

- seconds to load, and to the first token of a question, and of a second question about the same image;
- tokens a second of one answer, and of eight answers together, prompts not counted;
- seconds for a whole question of 64 tokens with an answer of 64;
- the process's highest memory, and what of it could not be taken back from it (not backed by files).

Ways are the back ends, ``torch-int8``, ``int4`` and ``int8`` (what ``minivl quantize`` writes, in OpenVINO), and
``transformers``, with which the others are compared. ``--llama`` is a folder of GGUF files (``minivl convert --to
gguf``), which llama.cpp answers from one question at a time, without keeping anything for the second; it cuts its tile
from a picture and reads its question as text. ``--genai`` is a folder of the language model alone, which OpenVINO GenAI
answers from with its own settings; rows with a picture stay empty. To make one, write that language model with
``scripts/language_model.py``, and give it to optimum-intel's ``optimum-cli export openvino``; the script's text shows
both lines. Medians of the rounds are printed, and the ratios. Where the processor does not multiply bfloat16 natively,
float32 is the type to compare in.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import official, write_models

from mini_internvl import plugins
from mini_internvl.engine.backends import Backend
from mini_internvl.engine.device import fast_bfloat16
from mini_internvl.engine.images import ImageInput
from mini_internvl.engine.requests import Request
from mini_internvl.engine.sampling import GenerationConfig
from mini_internvl.engine.scheduler import Limits, Scheduler
from mini_internvl.gguf.run import LlamaCpp
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.files import read_json

QUESTION, TOGETHER = 64, 8
WORDS = ("the", "red", "car", "and", "blue", "house", "near", "tree")  # one token each in most vocabularies
PEER = "transformers"
ROWS = {
    "load": "load, s",
    "first": "first token, s",
    "second": "first token of a second question, s",
    "alone": "one answer, tokens/s",
    "together": "eight answers together, tokens/s",
    "whole": "question and answer, s",
    "peak": "highest memory, GB",
    "held": "not backed by files, GB",
}
FASTER = {"alone", "together"}  # more is better


class Ours:
    """A back end behind the scheduler."""

    pictures = True

    def __init__(self, backend: Backend) -> None:
        self.config = backend.config
        self.scheduler = Scheduler(backend, limits=Limits())

    def request(self, texts: Sequence[int], tile: torch.Tensor | None, answer: int) -> Request:
        """A question of these tokens, behind a tile if there is one."""
        places = [self.config.image_token_id or 0] * self.config.tokens_per_tile if tile is not None else []
        return Request(
            ids=[*places, *texts],
            config=GenerationConfig(max_new_tokens=answer),
            stop_ids=frozenset(),
            images=[] if tile is None else [ImageInput(key=str(tile.sum().item()), pixel_values=tile)],
        )

    def answer(self, texts: Sequence[Sequence[int]], tile: torch.Tensor | None, answer: int) -> None:
        self.scheduler.answer([self.request(text, tile, answer) for text in texts])

    def decoding(self, texts: Sequence[Sequence[int]], answer: int) -> float:
        """Seconds from the moment when all prompts are read to the end of all answers."""
        tickets = [self.scheduler.submit(self.request(text, None, answer)) for text in texts]
        for ticket in tickets:
            self.scheduler.next(ticket)
        began = time.monotonic()
        for ticket in tickets:
            for _ in self.scheduler.steps(ticket):
                pass
        return time.monotonic() - began

    def forget(self) -> None:
        self.scheduler.forget()


class Theirs:
    """transformers' own generation."""

    pictures = True

    def __init__(self, folder: Path, dtype: str) -> None:
        from transformers import InternVLForConditionalGeneration

        self.config = VLMConfig.from_official(read_json(folder.parent / "official" / "config.json"))
        self.model = InternVLForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    @torch.inference_mode()
    def answer(self, texts: Sequence[Sequence[int]], tile: torch.Tensor | None, answer: int) -> None:
        places = [self.config.image_token_id or 0] * self.config.tokens_per_tile if tile is not None else []
        ids = torch.tensor([[*places, *text] for text in texts])
        pixels = {} if tile is None else {"pixel_values": tile.to(self.model.dtype).repeat(len(texts), 1, 1, 1)}
        self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=answer,
            min_new_tokens=answer,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
            **pixels,
        )

    def decoding(self, texts: Sequence[Sequence[int]], answer: int) -> float:
        return timed(lambda: self.answer(texts, None, answer)) - timed(lambda: self.answer(texts, None, 1))

    def forget(self) -> None:
        pass


class Llama:
    """llama.cpp, which is given words."""

    pictures = True

    def __init__(self, folder: Path, config: VLMConfig) -> None:
        from PIL import Image

        self.config = config
        self.model = LlamaCpp(folder, context=2048)
        side, numbers = config.image_size, np.random.default_rng(0)
        self.image = Image.fromarray(numbers.integers(0, 256, (side, side, 3), dtype=np.uint8))

    def answer(self, texts: Sequence[Sequence[int]], tile: torch.Tensor | None, answer: int) -> None:
        for text in texts:
            words = " ".join(WORDS[token % len(WORDS)] for token in text)
            content = words if tile is None else f"{self.model.marker}\n{words}"
            given = [] if tile is None else [self.image]
            self.model.answer([{"role": "user", "content": content}], given, answer, end=False)

    def decoding(self, texts: Sequence[Sequence[int]], answer: int) -> float:
        return timed(lambda: self.answer(texts, None, answer)) - timed(lambda: self.answer(texts, None, 1))

    def forget(self) -> None:
        pass


class GenAI:
    """OpenVINO GenAI's pipeline for language models, several texts as one batch."""

    pictures = False

    def __init__(self, folder: Path, config: VLMConfig) -> None:
        import openvino
        import openvino_genai

        self.config, self.genai, self.tensor = config, openvino_genai, openvino.Tensor
        self.pipeline = openvino_genai.LLMPipeline(folder, "CPU", INFERENCE_NUM_THREADS=torch.get_num_threads())

    def answer(self, texts: Sequence[Sequence[int]], tile: torch.Tensor | None, answer: int) -> None:
        ids = np.array(texts, dtype=np.int64)
        given = self.genai.TokenizedInputs(self.tensor(ids), self.tensor(np.ones_like(ids)))
        told = self.pipeline.generate(given, max_new_tokens=answer, ignore_eos=True, do_sample=False)
        assert all(len(tokens) == answer for tokens in told.tokens)

    def decoding(self, texts: Sequence[Sequence[int]], answer: int) -> float:
        """Prompts that were read before are not read again, so those of the single tokens are others."""
        others = [text[::-1] for text in texts]
        return timed(lambda: self.answer(texts, None, answer)) - timed(lambda: self.answer(others, None, 1))

    def forget(self) -> None:
        pass


Way = Ours | Theirs | Llama | GenAI
PEERS = {"llama.cpp": Llama, "GenAI": GenAI}  # that are given a folder


def timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def measure(way: Way, rounds: int, answer: int) -> dict[str, list[float]]:
    """Each row's values, round by round; one more round before them warms up."""
    numbers = torch.Generator().manual_seed(0)
    found = [one_round(way, numbers, answer) for _ in range(rounds + 1)][1:]
    return {name: [values[name] for values in found] for name in found[0]}


def one_round(way: Way, numbers: torch.Generator, answer: int) -> dict[str, float]:
    """Each row's value, on texts and tiles that were never seen."""
    side = way.config.image_size
    tile, another = (torch.randn(1, 3, side, side, generator=numbers) for _ in range(2))

    def text() -> list[int]:
        return torch.randint(1, 500, (QUESTION,), generator=numbers).tolist()

    values = {}
    if way.pictures:
        values["first"] = timed(lambda: way.answer([text()], tile, 1))
        values["second"] = timed(lambda: way.answer([text()], tile, 1))
    values["alone"] = (answer - 1) / way.decoding([text()], answer)
    values["together"] = TOGETHER * (answer - 1) / way.decoding([text() for _ in range(TOGETHER)], answer)
    if way.pictures:
        values["whole"] = timed(lambda: way.answer([text()], another, answer))
    way.forget()
    return values


def open_way(name: str, place: Path, folder: Path | None, dtype: str) -> Way:
    """A way by its name, loaded."""
    if name == PEER:
        return Theirs(place / "native", dtype)
    if folder is not None:
        config = VLMConfig.from_official(read_json(place / "official" / "config.json"))
        return PEERS[name.split()[0]](folder, config)
    if name.startswith("int"):
        return Ours(plugins.find("engine.backends", "openvino").load(place / name))
    backend, _, kind = name.partition("-")
    found = plugins.find("engine.backends", backend)
    return Ours(found.load(place / "official", dtype=kind or dtype, device="cpu"))


def memory(key: str) -> float:
    """GB of this process, by a name in /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(key))


def measure_here(task: dict[str, Any]) -> dict[str, list[float]]:
    """One way's values, in this process."""
    began = time.monotonic()
    folder = Path(task["folder"]) if task["folder"] else None
    way = open_way(task["way"], Path(task["place"]), folder, task["dtype"])
    loaded = time.monotonic() - began
    values = measure(way, task["rounds"], task["answer"])
    return {"load": [loaded], **values, "peak": [memory("VmHWM")], "held": [memory("RssAnon")]}


def apart(task: dict[str, Any]) -> dict[str, list[float]]:
    """The same in a process of its own, with its files in the page cache."""
    ours = [Path(task["place"]) / name for name in (task["way"], "official", "native")]
    for folder in [Path(task["folder"])] if task["folder"] else ours:
        for file in folder.rglob("*"):
            if file.is_file():
                file.read_bytes()
    command = [sys.executable, __file__, "--measure", json.dumps(task)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def quantise(place: Path, bits: int) -> None:
    """Write the official folder's model as ``minivl quantize`` does, with ranges measured on noise."""
    from mini_internvl.engine import load_model
    from mini_internvl.quantize import export

    official = place / "official"
    model = load_model(official, dtype="float32").eval()
    tiles = torch.randn(2, 3, *[model.config.image_size] * 2, generator=torch.Generator().manual_seed(1))
    (place / f"int{bits}").mkdir()
    source = export.Source(name="random", model=model, files=official, facts={})
    export.write(source, export.Plan(bits=bits), list(tiles), place / f"int{bits}", lambda *_: None)


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Medians, and ratios to transformers: above 1 is better."""
    names = list(results)
    lines = [
        f"| | {' | '.join(names)} | {' | '.join(f'{name}, times' for name in names[:-1])} |",
        f"|---|{'---:|' * (2 * len(names) - 1)}",
    ]
    for row, title in ROWS.items():
        medians = {name: statistics.median(values[row]) for name, values in results.items() if row in values}
        peer = medians[names[-1]]
        ratios = {name: value / peer if row in FASTER else peer / value for name, value in medians.items()}
        cells = [f"{medians[name]:.3g}" if name in medians else "-" for name in names]
        cells += [f"{ratios[name]:.2f}" if name in ratios else "-" for name in names[:-1]]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1B", help="released size whose shape is measured")
    parser.add_argument("--dtype", default="bfloat16" if fast_bfloat16(torch.device("cpu")) else "float32")
    parser.add_argument("--way", action="append", help="torch, torch-int8, openvino, int4, int8; repeatable; torch")
    parser.add_argument("--llama", action="append", type=Path, help="folder of GGUF files; may be given several times")
    parser.add_argument("--genai", action="append", type=Path, help="folder for GenAI; may be given several times")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answer", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--layers", type=int, default=0, help="so many layers of encoder and decoder; 0 for all")
    parser.add_argument("--tiny", action="store_true", help="two layers and small tiles: does it run at all?")
    parser.add_argument("--output", type=Path, help="JSON file for the values of all rounds")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure_here(json.loads(given.measure))))
        return
    if given.genai and importlib.util.find_spec("openvino_genai") is None:
        parser.error("--genai needs openvino-genai: pip install openvino-genai")
    results: dict[str, dict[str, list[float]]] = {}
    layers = 2 if given.tiny else given.layers
    with tempfile.TemporaryDirectory() as place:
        raw: dict[str, Any] = official(given.size, layers=layers, image_size=112 * given.tiny)
        write_models(raw, Path(place), dtype=given.dtype)
        folders = {f"llama.cpp {folder.name}": str(folder) for folder in given.llama or []}
        folders |= {f"GenAI {folder.name}": str(folder) for folder in given.genai or []}
        for name in [*(given.way or ["torch"]), *folders, PEER]:
            if name.startswith("int"):
                quantise(Path(place), int(name.removeprefix("int")))
            task = {"way": name, "place": place, "folder": folders.get(name), "dtype": given.dtype}
            results[name] = apart({**task, "rounds": given.rounds, "answer": given.answer})
            print(f"{name}: {given.rounds} rounds measured", flush=True)
    tell(results, f"{given.size} shape{f', {layers} layers' if layers else ''}", given)
    if given.output:
        given.output.write_text(json.dumps({"dtype": given.dtype, "results": results}, indent=1) + "\n")


def tell(results: dict[str, dict[str, list[float]]], shape: str, given: argparse.Namespace) -> None:
    """Print the table and what each way gains within itself."""
    load = " ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"\n{shape}, random weights, {given.dtype}, {torch.get_num_threads()} threads, medians of {given.rounds}; "
          f"load average {load}\n\n{table(results)}\n")  # fmt: skip
    for name, values in results.items():
        m = {row: statistics.median(found) for row, found in values.items()}
        second = f"second question's first token {m['first'] / m['second']:.1f} times as soon; " if "first" in m else ""
        print(f"{name}: {second}eight answers together {m['together'] / m['alone']:.2f} times the tokens of one")


if __name__ == "__main__":
    main()
