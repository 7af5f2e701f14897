"""``minivl merge``: an adapter folded into its base, proved on logits before anything is written.

With ``--alpha`` weights between base and trained ones, adapter or whole checkpoint; with ``--sweep`` a search for the
best of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from mini_internvl import terminal
from mini_internvl.commands import _options as options
from mini_internvl.commands import _sweep
from mini_internvl.commands._interpolate import read_ends
from mini_internvl.commands._options import AsJson, echo_json
from mini_internvl.commands._sweep import Trained
from mini_internvl.engine import hub
from mini_internvl.engine.compare import default_prompts
from mini_internvl.engine.engine import Engine, Prompt
from mini_internvl.files import check_new
from mini_internvl.inputs.tokenizer_files import FILES
from mini_internvl.model.adapter import WEIGHTS, check_base, load_adapter, present_name, tensors_hash
from mini_internvl.model.adapter_config import Adapter, layers, read_adapter
from mini_internvl.model.checkpoint import layout_of, load_model, read_state, save_model
from mini_internvl.model.files import ADAPTER, CONFIG, CheckpointError, read_file, read_tensors
from mini_internvl.model.heads import stored_files
from mini_internvl.model.interpolation import check_alpha
from mini_internvl.model.layouts import native
from mini_internvl.model.lora import lora_layers, merge_lora
from mini_internvl.model.vlm import InternVL

EXAMPLE = "minivl merge runs/driving-sim --sweep 0,0.25,0.5,0.75,1"
TOLERANCE = 1e-4  # largest difference of float32 logits, relative to the largest logit, that rounding explains
PARTS = {"vision": "vision_model.", "projector": "mlp1.", "llm": "language_model."}


def command(
    trained: Annotated[str, typer.Argument(help="Adapter folder; with --alpha or --sweep also a checkpoint.")],
    output: Annotated[
        Path | None, typer.Argument(help="Folder to write; merge in the run folder for a sweep of an adaptation.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Its base; the one that it names when left out.")] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Write (1 - alpha) * base + alpha * trained; beyond 1 extrapolates, up to 2.")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="ALPHA,ALPHA...", help="Score several alphas and write the best one.")
    ] = None,
    domain: Annotated[
        list[str] | None, typer.Option(help="Sweep: a benchmark of what was learned; repeatable.")
    ] = None,
    general: Annotated[
        list[str] | None, typer.Option(help="Sweep: a benchmark of what may be forgotten; repeatable.")
    ] = None,
    data: options.Data = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Sweep: size of a random sample (synth: images per kind).")
    ] = None,
    kinds: options.Kinds = "shapes,words,charts",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    json: AsJson = False,
) -> None:
    """Merge an adapter into its base, proving first that the logits stay the same; a difference refuses the merge.

    With --alpha the weights between base and trained ones are written, with --sweep several are scored. The folder of
    an adaptation stands for its checkpoint, its base and its benchmarks.
    """
    if alpha is not None and sweep is not None:
        raise typer.BadParameter("--alpha writes one checkpoint, --sweep scores several; give one of them")
    found = _sweep.find_trained(trained, base)
    if sweep is not None:
        asked = {"data": data, "limit": limit, "kinds": kinds}
        _run_sweep(found, output, sweep, domain or [], general or [], asked, device, dtype, as_json=json)
        return
    if domain or general:
        raise typer.BadParameter("--domain and --general name the benchmarks of a --sweep; give its alphas")
    if output is None:
        raise typer.BadParameter("give the folder to write")
    if alpha is None:
        _print_merged(merge(found.folder, output, base=found.base), as_json=json)
    else:
        _interpolate(found.folder, output, found.base, alpha, as_json=json)


def _run_sweep(
    trained: Trained,
    output: Path | None,
    alphas: str,
    domain: Sequence[str],
    general: Sequence[str],
    asked: dict[str, Any],
    device: str,
    dtype: str,
    *,
    as_json: bool,
) -> None:
    """Find the questions, sweep, print."""
    numbers = _sweep.parse_alphas(alphas)
    groups = []
    for key, names in (("benchmarks", domain), ("probe", general)):
        again = trained.run is not None and not names
        groups.append(_sweep.adaptation_questions(trained, key) if again else _sweep.read_asked(names, asked))
    if not groups[0]:
        raise typer.BadParameter("name at least one benchmark of what was learned with --domain")
    if output is None:
        if trained.run is None:
            raise typer.BadParameter("give the folder of the sweep")
        output = trained.run / "merge"
    with options.stoppable() as should_stop:
        content = _sweep.sweep(
            trained,
            output,
            numbers,
            domain=groups[0],
            general=groups[1],
            device=device,
            dtype=dtype,
            should_stop=should_stop,
        )
    if as_json:
        echo_json(content)
        return
    _sweep.print_sweep(content)
    best = content["best"]
    typer.echo(f"best alpha: {best['alpha']:g}, by {content['rule']}")
    typer.echo("It was chosen on these questions; a score to publish comes from others.")
    typer.echo(f"checkpoint: {best['checkpoint']}\npicture: {content['picture']}")


def _interpolate(trained: str, output: Path, base: str | None, alpha: float, *, as_json: bool) -> None:
    """Write one checkpoint between base and trained weights."""
    check_alpha(alpha)
    check_new(output)
    done = read_ends(trained, base).write(alpha, output, terminal.ProgressBar("interpolating"))
    if as_json:
        echo_json(done)
        return
    typer.echo(f"{done['folder']}: {1 - alpha:g} * {done['base']} + {alpha:g} * {done['trained']}, {done['dtype']}")
    if alpha > 1:
        typer.echo("alpha lies beyond the trained weights; score the result before using it")
    if done["heads_left_out"]:
        typer.echo("its heads are left out: they read hidden states of the trained weights")


def _print_merged(done: dict[str, Any], *, as_json: bool) -> None:
    """The proof as a table."""
    if as_json:
        echo_json(done)
        return
    rows = [
        ("merged, float32", f"{done['difference']:.1e}", f"{done['argmax']:.2%}"),
        (f"merged, as saved ({done['dtype']})", f"{done['saved_difference']:.1e}", f"{done['saved_argmax']:.2%}"),
        ("weights, against the files", f"{done['weights']:.1e}", ""),
        ("without the adapter", f"{done['changed']:.1e}", ""),
    ]
    layers = ", ".join(f"{count} {part}" for part, count in done["layers"].items() if count)
    what = f"{layers} layers{' and the projector' * done['projector']} merged"
    title = f"{what}; {done['prompts']} prompts, differences over the largest logit"
    terminal.table(title, ("", "logits differ by", "same best token"), rows)
    typer.echo(f"merged: {done['folder']}")


def merge(adapter: str | Path, output: Path, *, base: str | None = None) -> dict[str, Any]:
    """Merge an adapter into a base (the one that it names when left out) and save a whole checkpoint.

    Its layout and the type of its weights are the base's; adapter and base are folders or hub ids.

    Returns:
        Where and what was merged, and the proof: largest differences of float32 logits over the largest logit
        ("scale"), and shares of positions with the same likeliest token ("argmax"). "difference" is between unmerged
        and merged, "saved_difference" after rounding to the saved type, "changed" what the adapter itself makes of the
        base, "weights" between the merged weights and float64 sums made from the files.

    Raises:
        CheckpointError: the adapter or base cannot be read or do not belong together, or the merged logits differ
            from the unmerged ones by more than :data:`TOLERANCE`; nothing is written then.
    """
    check_new(output)
    folder = hub.resolve(adapter)
    if not (folder / ADAPTER).exists() and (folder / CONFIG).exists():
        raise CheckpointError(f"{folder / ADAPTER} is missing: no adapter; give --alpha to merge whole checkpoints")
    home = hub.base_folder(folder, base)
    info = read_adapter(folder)
    if info.base_hash:
        check_base(folder, info, tensors_hash(home))
    dtype = next(tensor.dtype for _, tensor in read_tensors(home))
    model = load_model(home)
    proof = _merge_proved(model, home, info, dtype)
    files = (home / name for name in FILES if (home / name).exists())
    beside = stored_files(folder)  # the adapter's heads; those of the base read hidden states that it has changed
    save_model(model, output, dtype=dtype, layout=layout_of(home).NAME, extra_files=files, beside=beside)
    told = {"folder": str(output), "base": str(home), "projector": info.projector}
    return {**told, "dtype": str(dtype).removeprefix("torch."), "tolerance": TOLERANCE, **proof}


def _merge_proved(model: InternVL, home: Path, info: Adapter, dtype: torch.dtype) -> dict[str, Any]:
    """Put an adapter on its base, merge it in place and round the weights as they are saved; what :func:`merge` tells
    of that. CheckpointError where the merged model is another one."""
    engine = Engine(model, home)
    prompts = [engine.prepare(messages, max_tiles=2) for messages in default_prompts().values()]
    plain = _logits(model, prompts)
    load_adapter(model, info.folder)
    names = list(lora_layers(model))
    before = _logits(model.eval(), prompts)
    after = _logits(merge_lora(model), prompts)
    difference, argmax = _compare(before, after)
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"merging {info.folder} changes the logits by {difference:.1e} of their scale, more than {TOLERANCE:.0e}; "
            "nothing was written"
        )
    weights = _against_the_files(model, home, info)
    for parameter in model.parameters():  # as they are saved, computed on in float32
        parameter.data = parameter.data.to(dtype).to(parameter.dtype)
    saved_difference, saved_argmax = _compare(before, _logits(model, prompts))
    return {
        "layers": {part: sum(name.startswith(prefix) for name in names) for part, prefix in PARTS.items()},
        "prompts": len(prompts),
        "changed": _compare(before, plain)[0],
        "difference": difference,
        "weights": weights,
        "argmax": argmax,
        "scale": max(float(logits.abs().max()) for logits in before),
        "saved_difference": saved_difference,
        "saved_argmax": saved_argmax,
    }


def _against_the_files(model: InternVL, home: Path, info: Adapter) -> float:
    """Largest difference of merged weights and W + scale * B A in float64, over the largest weight of the tensor.

    The sum is made from the files alone. CheckpointError when one is larger than :data:`TOLERANCE`, or part of the
    adapter found no place.
    """
    left = {present_name(name): tensor for name, tensor in read_file(info.folder / WEIGHTS)}
    modules = {name.removesuffix(".lora_A.weight") for name in left if name.endswith(".lora_A.weight")}
    settings, _ = layers(info, {name: [name] for name in modules})
    stored, state, config = dict(read_state(home)), model.state_dict(), model.config
    base = native.write({name: stored[name] for name in state}, config)
    worst = 0.0
    for (name, wanted), (_, merged) in zip(base, native.write(state, config), strict=True):
        name, wanted = present_name(name), wanted.double()
        module = name.removesuffix(".weight")
        if module in settings:
            a, b = (left.pop(f"{module}.lora_{letter}.weight").double() for letter in "AB")
            wanted += info.scale(settings[module].alpha, len(a)) * (b @ a)
        wanted = left.pop(name, wanted)
        difference = float((merged.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
        if not difference <= TOLERANCE:
            raise CheckpointError(
                f"merging {info.folder} gives other weights than its files say: {name} differs by {difference:.1e}; "
                "nothing was written"
            )
        worst = max(worst, difference)
    if left:
        raise CheckpointError(f"merging {info.folder} leaves out {', '.join(sorted(left)[:4])}; nothing was written")
    return worst


@torch.no_grad()
def _logits(model: InternVL, prompts: Sequence[Prompt]) -> list[Tensor]:
    """(tokens, vocabulary) of each prompt."""
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt.input_ids], device=model.device)
        found.append(model(ids, prompt.pixel_values.to(model.device))[0].float().cpu())
    return found


def _compare(first: Sequence[Tensor], second: Sequence[Tensor]) -> tuple[float, float]:
    """Largest difference over the largest logit of the first, and share of equal likeliest tokens."""
    scale = max(float(logits.abs().max()) for logits in first)
    largest = torch.stack([(a - b).abs().max() for a, b in zip(first, second, strict=True)]).max()
    equal = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in zip(first, second, strict=True))
    return float(largest) / scale, equal / sum(len(logits) for logits in first)
