"""``minivl convert``: a checkpoint in another layout, every value kept bit for bit unless another type is asked for, or
as GGUF files for llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from mini_internvl import terminal
from mini_internvl.commands._options import AsJson, echo_json
from mini_internvl.engine import hub
from mini_internvl.files import check_new, copy_file, new_folder, write_json
from mini_internvl.gguf.write import write_gguf
from mini_internvl.inputs.native_files import write_native_files, write_official_files
from mini_internvl.inputs.tokenizer_files import FILES
from mini_internvl.model import layouts
from mini_internvl.model.checkpoint import as_dtype, check_state, image_token_id, layout_of, read_config, read_state
from mini_internvl.model.files import ADAPTER, CONFIG, SHARD_BYTES, CheckpointError, write_tensors
from mini_internvl.model.heads import stored_files

GGUF = "gguf"  # is no layout: it can be written, not read
EXAMPLE = "minivl convert OpenGVLab/InternVL2-1B checkpoints/1B-native --to native"


def command(
    source: Annotated[str, typer.Argument(help="Checkpoint folder or hub id, in any layout.")],
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    to: Annotated[
        str, typer.Option(help="official, native (transformers, vLLM, ...), mini, or gguf (llama.cpp, ...).")
    ] = "native",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; as it is when left out.")] = None,
    kind: Annotated[
        str | None, typer.Option("--type", help="Of GGUF files: f32, f16 (when left out), bf16, q8_0, q4_0, q4_k_m...")
    ] = None,
    shard_gb: Annotated[float | None, typer.Option(help="Largest weight file in GB; 5.", show_default=False)] = None,
    json: AsJson = False,
) -> None:
    """Write a checkpoint in another layout, with its tokenizer, every value kept; or as GGUF files, adapters merged."""
    if to == GGUF:
        if dtype is not None or shard_gb is not None:
            raise typer.BadParameter(
                "GGUF files take their type from --type, and are one each; leave out --dtype and --shard-gb"
            )
        _write_gguf(source, target, kind or "f16", as_json=json)
        return
    if kind is not None:
        raise typer.BadParameter("--type is of GGUF files (--to gguf); the other layouts have --dtype")
    counter = terminal.ProgressBar("converting, MB")
    shard_bytes = SHARD_BYTES if shard_gb is None else round(shard_gb * 1e9)
    done = convert(source, target, to, dtype=dtype, shard_bytes=shard_bytes, progress=counter)
    if json:
        echo_json(done)
        return
    typer.echo(
        f"{done['folder']}: {done['from']} -> {done['to']}, {done['tensors']:,} tensors, {done['bytes'] / 1e9:.2f} GB "
        f"in {len(done['files'])} file{'s' * (len(done['files']) > 1)}"
    )


def _write_gguf(source: str, target: Path, kind: str, *, as_json: bool) -> None:
    done = write_gguf(source, target, kind=kind, progress=terminal.ProgressBar("converting, tensors"))
    if as_json:
        echo_json(done)
        return
    for file, counts in done["tensors"].items():
        types = ", ".join(f"{count} {name}" for name, count in counts.items())
        typer.echo(f"{done['folder']}/{file}: {(target / file).stat().st_size / 1e9:.2f} GB, tensors: {types}")
    if done["left_out"]:
        typer.echo(f"left out, as llama.cpp computes no heads: {', '.join(done['left_out'])}")
    typer.echo(f"context that llama.cpp computes as the model does: {done['context']:,} tokens")


def convert(
    source: str | Path,
    target: str | Path,
    to: str,
    *,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write ``source`` in the layout ``to`` (official, native or mini) with its tokenizer files and heads.

    Tensors stream from memory-mapped files; at most one shard is held. ``target`` must be new, and appears complete or
    not at all. ``progress`` is called with the megabytes written and their number. Returns what was done.
    CheckpointError, ConfigError: the source is damaged or incomplete, or cannot be said in that layout.
    """
    target, there = Path(target), layouts.find(to)
    check_new(target)
    if dtype is not None:
        as_dtype(dtype)
    folder = hub.resolve(source)
    if (folder / ADAPTER).exists():
        raise CheckpointError(f"{folder} is an adapter; merge it into its base first (minivl merge)")
    here, config = layout_of(folder), read_config(folder)
    state = dict(read_state(folder))
    check_state(state, config, folder)
    kept = next(iter(state.values())).dtype if dtype is None else as_dtype(dtype)
    token = image_token_id(folder, config)
    raw = there.from_official_config(config.official, token, str(kept).removeprefix("torch."))
    count, size = 0, 0
    total = sum(tensor.numel() * kept.itemsize for tensor in state.values())

    def pairs() -> Iterator[tuple[str, Tensor]]:
        nonlocal count, size
        for name, tensor in there.write(state, config):
            converted = tensor if dtype is None else tensor.to(kept)
            count, size = count + 1, size + converted.nbytes
            progress(size // 10**6, total // 10**6)
            yield name, converted

    with new_folder(target) as temporary:
        _copy_tokenizer(folder, temporary, here.NAME, there.NAME, config)
        for name, content in stored_files(folder).items():
            (temporary / name).write_bytes(content)
        write_json(temporary / CONFIG, raw)
        files = write_tensors(pairs(), temporary, shard_bytes=shard_bytes)
    return {
        "source": str(folder),
        "from": here.NAME,
        "to": there.NAME,
        "folder": str(target),
        "tensors": count,
        "bytes": size,
        "files": [file.name for file in files],
    }


def _copy_tokenizer(source: Path, target: Path, here: str, there: str, config: Any) -> None:
    if there == "native" and here != "native":
        write_native_files(source, target, config)
    elif here == "native" and there != "native":
        write_official_files(source, target)
    else:
        for name in FILES:
            if (source / name).exists():
                copy_file(source / name, target / name)
