"""Does llama.cpp answer as we do? A tiny random model of every language model, and nano, as GGUF files, compared.

    python scripts/gguf_check.py [FOLDER]

needs llama-cpp-python and the recorded tokenizers of tests/golden/data. Prints a line for each model and type: the
largest difference of logits over the answers' tokens, apart for prompts of text and with pictures, and the share of
equal greedy tokens. The exit code is 1 when ids differ, a float32 file answers otherwise, or logits of a float16 file
are further off than BOUND; a random model's answers part for ever where two tokens are nearly tied.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from mini_internvl import plugins
from mini_internvl.engine import hub, load
from mini_internvl.gguf.compare import compare_gguf
from mini_internvl.gguf.write import write_gguf
from mini_internvl.inputs.tokenizer_files import load_tokenizer
from mini_internvl.model.checkpoint import save_model
from mini_internvl.model.config import VLMConfig
from mini_internvl.model.sizes import compose, fresh

TOKENIZERS = Path(__file__).parents[1] / "tests/golden/data/tokenizers"
VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 112,
    "patch_size": 14,
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "qk_normalization": False,
    "initializer_range": 0.1,
}
LLM = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 2048,
    "sliding_window": None,
}
BOUND = 0.1  # of float16; the random models' largest logits are about 8
TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")


def twin(name: str, folder: Path) -> Path:
    """A random model with the tokenizer of its kind, and some rows of the vocabulary that are no token."""
    kind = plugins.find("model.llms", name)
    files = TOKENIZERS / (name if (TOKENIZERS / name).exists() else "qwen2")
    tokenizer = load_tokenizer(files)
    llm = {**kind.EXAMPLE, **LLM, "vocab_size": tokenizer.size + 5}
    if name == "phi3":
        llm["rope_scaling"] = {"type": "su", "short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [4.0] * 8}
    image = tokenizer.token_id("<IMG_CONTEXT>")
    raw = compose(VISION, llm, image_size=112, max_tiles=6, img_context_token_id=image)
    model = fresh(VLMConfig.from_official(raw), seed=0)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            if parameter.ndim == 1:  # biases and norms that start at 0 and 1 would hide one that is forgotten
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    model.image_token_id = image
    return save_model(model, folder, extra_files=sorted(files.iterdir()))


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
    wrong = 0
    for name in ["nano", *plugins.list_names("model.llms")]:
        folder = hub.NANO if name == "nano" else twin(name, root / name)
        engine = load(folder, dtype="float32", device="cpu")
        for kind in TYPES:
            write_gguf(folder, root / f"{name}-{kind}", kind=kind)
            result = compare_gguf(engine, root / f"{name}-{kind}")
            if problems := [f"{prompt.name}: {prompt.problem}" for prompt in result.prompts if prompt.problem]:
                print(f"{name:10} {kind:5} {'; '.join(problems)}")
                wrong += 1
                continue
            text, seen = (
                max(prompt.logits or 0.0 for prompt in result.prompts if bool(prompt.tiles) is pictures)
                for pictures in (False, True)
            )
            share = sum(prompt.agreement or 0.0 for prompt in result.prompts) / len(result.prompts)
            print(f"{name:10} {kind:5} text {text:.1e}  pictures {seen:.1e}  equal tokens {share:.1%}", flush=True)
            wrong += share < 1.0 if kind == "f32" else kind == "f16" and max(text, seen) > BOUND
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
