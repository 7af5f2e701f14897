"""How questions are grouped for answering: items of similar cost together, so that little is padded.

The grouping depends on the items and the model's tile settings alone, never on what was answered before or on how many
processes share the work. Items of a batch have the same limits, so that no answer could depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mini_internvl.inputs.images import ImageError
from mini_internvl.records import Item

BATCH_SIZE = 64  # questions answered together: a step of decoding costs little more for many than for one
MOST_TILES = 128  # tiles of a batch, beyond which it is cut; images of more make batches of one


def group(
    items: Sequence[Item],
    prompts: Sequence[str],
    count_tiles: Callable[[Item], int],
    *,
    images: Sequence[str] = (),
    batch_size: int,
    most_tiles: int = MOST_TILES,
) -> list[list[int]]:
    """Places of the items, batch by batch.

    Args:
        count_tiles: tiles of an item's images; an ImageError counts as none; it comes up again later.
        images: what the images of each item are; questions about the same ones stay together, as an engine reads
            them once. Without it all are different.
        most_tiles: of a batch, but for a single item.
    """
    tiles = [_tiles(item, count_tiles) for item in items]
    image_names = list(images) or [str(i) for i in range(len(items))]
    shortest: dict[str, tuple[int, int]] = {}
    for i, name in enumerate(image_names):
        shortest[name] = min(shortest.get(name, (len(prompts[i]), i)), (len(prompts[i]), i))

    def cost(i: int) -> tuple[Any, ...]:
        return items[i].max_new_tokens, items[i].max_tiles or 0, tiles[i], shortest[image_names[i]], len(prompts[i]), i

    batches: list[list[int]] = []
    held = 0
    for i in sorted(range(len(items)), key=cost):
        last = batches[-1] if batches else []
        fits = last and cost(last[0])[:2] == cost(i)[:2] and len(last) < batch_size and held + tiles[i] <= most_tiles
        if fits:
            last.append(i)
            held += tiles[i]
        else:
            batches.append([i])
            held = tiles[i]
    return batches


def _tiles(item: Item, count_tiles: Callable[[Item], int]) -> int:
    try:
        return count_tiles(item)
    except ImageError:
        return 0
