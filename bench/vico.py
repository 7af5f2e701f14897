"""Visual tokens against score: a Flash model at several thresholds, beside tiles that are shortened at random.

    python bench/vico.py RUN/last [--kinds charts words] [--count 150] [--shares 0.2 0.4 0.6 0.8]

Questions are drawn images of the test split. Each row routes the same pictures another way:

- "all", "few": every tile with all its tokens, or with few;
- "router": a tile gets few where its probability is above the absolute threshold and not the lowest of its picture's.
  Thresholds are quantiles of the probabilities, so that about so many tiles of those that may be shortened are;
- "random": as many tiles as in the router's row, drawn among all;
- "random by the rule": as many, but one tile of each picture, drawn too, keeps all, as the router's thresholds ask.

Random rows are means of ``--draws`` draws; their last column is the router's lead, question by question. Pictures are
encoded once.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mini_internvl import terminal
from mini_internvl.benchmarks import synth
from mini_internvl.engine import load
from mini_internvl.engine.engine import Engine
from mini_internvl.engine.sampling import GenerationConfig
from mini_internvl.inputs.prepare import Prompt
from mini_internvl.model.config import FlashConfig
from mini_internvl.model.flash import choose_short, cut_placeholders, project_routed
from mini_internvl.records import Item

BATCH = 25


class Pictures:
    """Questions with their patches and what the router says of each tile."""

    def __init__(self, engine: Engine, items: Sequence[Item]) -> None:
        self.engine, self.items = engine, items
        self.prompts: list[Prompt] = []
        self.patches: list[Tensor] = []
        self.chances: list[Tensor] = []
        model = engine.model
        for item in items:
            prompt = engine.prepare(item.messages, max_tiles=item.max_tiles)
            with torch.inference_mode():
                patches = model.vision_model(prompt.pixel_values, model.config.select_layer)[:, 1:]
                self.chances.append(model.gating(model.pooling_before_gating(patches))[:, 0])
            self.prompts.append(prompt)
            self.patches.append(patches)

    def routed(self, flash: FlashConfig) -> list[Tensor]:
        """(tiles,) of each picture, as the engine routes."""
        return [choose_short(chances, flash) for chances in self.chances]

    def random(self, count: int, seed: int, *, ruled: bool) -> list[Tensor]:
        """So many tiles among all, or (``ruled``) among all but one of each picture."""
        generator = torch.Generator().manual_seed(seed)
        sizes = [len(chances) for chances in self.chances]
        order = torch.rand(sum(sizes), generator=generator)
        if ruled:
            for own in order.split(sizes):
                own[own.argmax()] = 2.0
        chosen = torch.zeros(len(order), dtype=torch.bool)
        chosen[order.argsort()[:count]] = True
        return list(chosen.split(sizes))

    def every(self, short: bool) -> list[Tensor]:
        return [torch.full((len(chances),), short) for chances in self.chances]

    def answers(self, short: Sequence[Tensor]) -> list[bool]:
        """Whether each question is answered rightly."""
        found: list[bool] = []
        limits = GenerationConfig(max_new_tokens=synth.MAX_NEW_TOKENS)
        for begin in range(0, len(self.items), BATCH):
            places = range(begin, min(begin + BATCH, len(self.items)))
            replies = self.engine.chat_batch([self._prompt(place, short[place]) for place in places], limits)
            texts = [reply.text for reply in replies]
            found += [synth.right(self.items[place], text) for place, text in zip(places, texts, strict=True)]
        return found

    def _prompt(self, place: int, short: Tensor) -> Prompt:
        prompt, model = self.prompts[place], self.engine.model
        config, token = model.config, model.image_token_id
        assert token is not None
        with torch.inference_mode():
            visual = project_routed(model, self.patches[place], short)
        cut = cut_placeholders(prompt.input_ids, token, config.tokens_per_tile, config.short_tokens, short.tolist())
        return replace(prompt, input_ids=cut, visual=visual, saved=len(prompt.input_ids) - len(cut))

    def tokens(self, short: Sequence[Tensor]) -> float:
        """Mean visual tokens of a picture."""
        config = self.engine.model.config
        few = sum(int(one.sum()) for one in short)
        tiles = sum(map(len, self.chances))
        return (config.tokens_per_tile * (tiles - few) + config.short_tokens * few) / len(self.items)


def cell(values: Sequence[float]) -> str:
    """Per cent with the standard error over questions."""
    return f"{100 * statistics.fmean(values):.1f} ± {100 * statistics.stdev(values) / math.sqrt(len(values)):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a Flash model")
    parser.add_argument("--kinds", nargs="+", default=["charts", "words"], help="kinds of drawn images")
    parser.add_argument("--count", type=int, default=150, help="questions of each kind")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.2, 0.4, 0.6, 0.8, 1.0])
    parser.add_argument("--draws", type=int, default=3)
    given = parser.parse_args()
    engine = load(given.model, dtype="float32")
    if engine.flash is None:
        parser.error(f"{given.model} has no router")
    began = time.monotonic()
    pictures = Pictures(engine, list(synth.items(names=given.kinds, count=given.count)))
    chances = torch.cat(pictures.chances)
    rows = []

    def row(name: str, threshold: str, short: Sequence[Tensor], right: Sequence[float], lead: str = "") -> None:
        share = sum(int(one.sum()) for one in short) / len(chances)
        rows.append((name, threshold, f"{100 * share:.0f}", f"{pictures.tokens(short):.1f}", cell(right), lead))

    for name, few in (("all", False), ("few", True)):
        short = pictures.every(few)
        row(name, "", short, [float(one) for one in pictures.answers(short)])
    for share in given.shares:
        absolute = float(chances.quantile(1 - share))
        short = pictures.routed(FlashConfig(relative=0.0, absolute=absolute))
        routed = [float(one) for one in pictures.answers(short)]
        count = sum(int(one.sum()) for one in short)
        row("router", f"{absolute:.3f}", short, routed)
        for name, ruled in (("random", False), ("random by the rule", True)):
            draws = [pictures.random(count, seed, ruled=ruled) for seed in range(given.draws)]
            by_chance = [statistics.fmean(each) for each in zip(*map(pictures.answers, draws), strict=True)]
            lead = cell([one - other for one, other in zip(routed, by_chance, strict=True)])
            row(name, "", draws[0], by_chance, lead)
    title = f"{len(pictures.items)} questions about {', '.join(given.kinds)}; {time.monotonic() - began:.0f} s"
    headings = ("tiles", "threshold", "few, %", "tokens a picture", "right, %", "router's lead")
    terminal.table(title, headings, rows)


if __name__ == "__main__":
    main()
