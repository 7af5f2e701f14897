"""Write the language model of a checkpoint alone, as transformers reads it, for programs that take nothing else.

    python scripts/full_size.py 1B MODEL --tokenizer FOLDER
    python scripts/language_model.py MODEL LANGUAGE
    optimum-cli export openvino -m LANGUAGE --task text-generation-with-past \\
        --weight-format int4 --sym --group-size 64 --backup-precision int8_sym INT4
    python bench/engine.py --genai INT4

The last two lines need optimum-intel, nncf and openvino-genai. Models whose ``llm_config`` names a language model of
transformers' own (Qwen2, Qwen3) are read there; others need the code that they were released with.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mini_internvl.files import copy_file, new_folder, write_json
from mini_internvl.inputs.tokenizer_files import FILES
from mini_internvl.model.checkpoint import load_model, to_official
from mini_internvl.model.files import CONFIG, write_tensors

PREFIX = "language_model."


def write(source: Path, folder: Path) -> None:
    """Write the folder: the language model's configuration and weights, and the tokenizer's files if there are any."""
    model = load_model(source)
    weights = {name: value for name, value in to_official(model).items() if name.startswith(PREFIX)}
    with new_folder(folder) as temporary:
        for file in (source / name for name in FILES):
            if file.exists():
                copy_file(file, temporary / file.name)
        dtype = str(model.dtype).removeprefix("torch.")
        write_json(temporary / CONFIG, {**model.config.official["llm_config"], "torch_dtype": dtype})
        write_tensors(((name.removeprefix(PREFIX), value) for name, value in weights.items()), temporary)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of the model")
    parser.add_argument("folder", type=Path, help="folder to write")
    given = parser.parse_args()
    write(given.source, given.folder)


if __name__ == "__main__":
    main()
