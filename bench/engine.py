"""Answering beside transformers: decoding alone and eight together, and the wait for the first token.

Run ``python bench/engine.py [--size 1B] [--dtype float32] [--backend torch] [--tiny] [--output FILE]``. The weights are
random, and the same in all ways; nothing ends an answer early. A question is one tile and 64 tokens. What is measured:

- seconds to the first token of a question, and of a second question about the same image;
- tokens a second of one answer, and of eight answers together, prompts not counted;
- seconds for a whole question of 64 tokens with an answer of 64.

``--backend`` may be given several times, and ``--quantised FOLDER`` of ``minivl quantize`` (made of the same shape with
``scripts/full_size.py``); each is compared with transformers. Medians of
the rounds are printed, and the ratios. Where the processor does not multiply bfloat16 natively, float32 is the type to
compare in.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peers import official, write_models

from mini_internvl import plugins
from mini_internvl.engine.backends import Backend
from mini_internvl.engine.device import fast_bfloat16
from mini_internvl.engine.images import ImageInput
from mini_internvl.engine.requests import Request
from mini_internvl.engine.sampling import GenerationConfig
from mini_internvl.engine.scheduler import Limits, Scheduler
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.files import read_json

QUESTION, ANSWER, TOGETHER = 64, 64, 8
ROWS = {
    "first": "first token, s",
    "second": "first token of a second question, s",
    "alone": "one answer, tokens/s",
    "together": "eight answers together, tokens/s",
    "whole": "question and answer, s",
}
FASTER = {"alone", "together"}  # more is better


class Ours:
    """A back end behind the scheduler."""

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


def timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def measure(way: Ours | Theirs, rounds: int) -> dict[str, list[float]]:
    """Each row's values, round by round; one more round before them warms up."""
    numbers = torch.Generator().manual_seed(0)
    found = [one_round(way, numbers) for _ in range(rounds + 1)][1:]
    return {name: [values[name] for values in found] for name in ROWS}


def one_round(way: Ours | Theirs, numbers: torch.Generator) -> dict[str, float]:
    """Each row's value, on texts and tiles that were never seen."""
    side = way.config.image_size
    tile, another = (torch.randn(1, 3, side, side, generator=numbers) for _ in range(2))

    def text() -> list[int]:
        return torch.randint(1, 500, (QUESTION,), generator=numbers).tolist()

    values = {
        "first": timed(lambda: way.answer([text()], tile, 1)),
        "second": timed(lambda: way.answer([text()], tile, 1)),
        "alone": (ANSWER - 1) / way.decoding([text()], ANSWER),
        "together": TOGETHER * (ANSWER - 1) / way.decoding([text() for _ in range(TOGETHER)], ANSWER),
        "whole": timed(lambda: way.answer([text()], another, ANSWER)),
    }
    way.forget()
    return values


def ways(
    folder: Path, backends: Sequence[str], quantised: Sequence[Path], dtype: str
) -> Iterator[tuple[str, Ours | Theirs]]:
    """Each way by its name, loaded when it is its turn."""
    for name in backends:
        yield name, Ours(plugins.find("engine.backends", name).load(folder / "official", dtype=dtype, device="cpu"))
    for small in quantised:
        yield small.name, Ours(plugins.find("engine.backends", "openvino").load(small))
    yield "transformers", Theirs(folder / "native", dtype)


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Medians, and ratios to transformers: above 1 is faster."""
    names = list(results)
    lines = ["".join([f"{'':38}", *(f"{name:>16}" for name in names), *(f"{f'{n}: times':>18}" for n in names[:-1])])]
    for row, title in ROWS.items():
        medians = {name: statistics.median(values[row]) for name, values in results.items()}
        peer = medians[names[-1]]
        ratios = [medians[n] / peer if row in FASTER else peer / medians[n] for n in names[:-1]]
        lines.append(
            "".join([f"{title:38}", *(f"{medians[name]:16.3f}" for name in names), *(f"{r:18.2f}" for r in ratios)])
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1B", help="released size whose shape is measured")
    parser.add_argument("--dtype", default="bfloat16" if fast_bfloat16(torch.device("cpu")) else "float32")
    parser.add_argument("--backend", action="append", help="torch, openvino; may be given several times")
    parser.add_argument("--quantised", action="append", type=Path, help="folder of minivl quantize; may be repeated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=0, help="so many layers of encoder and decoder; 0 for all")
    parser.add_argument("--tiny", action="store_true", help="two layers and small tiles: does it run at all?")
    parser.add_argument("--output", type=Path, help="JSON file for the values of all rounds")
    options = parser.parse_args()
    results: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        layers = 2 if options.tiny else options.layers
        raw: dict[str, Any] = official(options.size, layers=layers, image_size=112 * options.tiny)
        write_models(raw, Path(place), dtype=options.dtype)
        for name, way in ways(Path(place), options.backend or ["torch"], options.quantised or [], options.dtype):
            results[name] = measure(way, options.rounds)
            print(f"{name}: {options.rounds} rounds measured", flush=True)
            del way
            gc.collect()
    part = f", {layers} layers" if layers else ""
    print(f"\n{options.size} shape{part}, random weights, {options.dtype}, {torch.get_num_threads()} threads\n")
    print(table(results))
    ours = results[next(iter(results))]
    sooner = statistics.median(ours["first"]) / statistics.median(ours["second"])
    print(f"\nthe second question's first token comes {sooner:.1f} times as soon as the first one's")
    gain = statistics.median(ours["together"]) / statistics.median(ours["alone"])
    print(f"eight answers together: {gain:.2f} times the tokens of one")
    if options.output:
        options.output.write_text(json.dumps({"dtype": options.dtype, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
