"""Write recipes/nano: the configuration and the tokenizer from which the nano model is trained.

Run ``python scripts/nano_base.py``; the files are kept in the repository, so this is needed only to change them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from small_bpe import grow_merges, write_tokenizer

from mini_internvl import synth
from mini_internvl.domains import _driving_words
from mini_internvl.model.sizes import compose

FOLDER = Path(__file__).parent.parent / "recipes" / "nano"
MERGES = 1700
READ = ("read", "character", "value", "title", "whose", "highest", "lowest", "data")
"""Tasks whose answers are spelled out of the image; no merges are made for them."""
COMMON = """
the a an is are of in on to and or not it this that these those there here what which who where when why how many much
do does did can could will would should has have had was were be been with without for from by at as than then his her
its their our your my me you we they he she I am no yes one two three four five six seven eight nine ten first second
third last next big small large little long short high low left right top bottom up down middle centre center front
back near far between above below under over inside outside black white grey red green blue yellow orange purple pink
brown picture image photo text word number letter line name colour color shape object thing person people man woman
child car bus truck bike road street sign light house building tree sky water sea dog cat bird animal food table chair
chart graph bar pie title value axis label year day time date price total more less most least same different same
answer question turning angle degrees speed next metres per second predict driver vehicle ego frame video action
reason following option options letter choose select describe please tell show see read write count"""
FIRST = [f"{word} is it" for word in ("What", "Which", "How", "Where", "Why", "Is", "Are", "Does", "Do", "The", "Read")]


def questions(count: int) -> Iterator[str]:
    """Questions of every drawn kind; answers that are read from images stay out."""
    for index in range(count):
        for kind in synth.KINDS:
            _, asked = synth.draw(kind, 0, index)
            yield from (qa.question for qa in asked)
            yield from (f" {qa.answer}" for qa in asked if qa.answer.isascii() and qa.task not in READ)


def main() -> None:
    """Write the tokenizer and config.json."""
    driving = [text for value in vars(_driving_words).values() for text in _texts(value)]
    corpus = [
        *questions(400),
        *(" " + text for text in driving for _ in range(30)),
        *([" " + COMMON] * 20),
        *(FIRST * 50),
    ]
    size = write_tokenizer(FOLDER, grow_merges(corpus, MERGES))
    vision = {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 3,
        "image_size": 112,
        "patch_size": 14,
        "norm_type": "layer_norm",
        "layer_norm_eps": 1e-06,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "qk_normalization": False,
        "initializer_factor": 1.0,
        "initializer_range": 0.05,
        "drop_path_rate": 0.0,
    }
    llm = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": size,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-06,
        "initializer_range": 0.05,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "eos_token_id": size - 10,
        "pad_token_id": size - 12,
        "tie_word_embeddings": False,
    }
    config = compose(vision, llm, image_size=112, max_tiles=6, system_message="", img_context_token_id=size - 7)
    (FOLDER / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    generation = {"eos_token_id": [size - 11, size - 10]}
    (FOLDER / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


def _texts(value: object) -> Iterator[str]:
    """Every string inside nested tuples, lists and dictionaries."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for part in value.values() for text in _texts(part))
    elif isinstance(value, list | tuple):
        yield from (text for part in value for text in _texts(part))


if __name__ == "__main__":
    main()
