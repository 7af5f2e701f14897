"""The ``minivl`` command: a table of commands, each importing its work only when called.

Exit codes: 0 done, 1 the work failed, 2 wrong usage. Errors are one or two lines that name the file, row or setting;
``--debug`` shows the traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="minivl",
    help="Pocket vision-language models of the InternVL2 family: ask, train, adapt to a domain, evaluate.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(
    help="Make training data; pack and unpack folders of data.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(data_app, name="data")

INTERRUPTED = 130
"""What typer returns for a Ctrl-C instead of raising it."""

Model = Annotated[
    str | None,
    typer.Option(help="Checkpoint folder or hub id; the nano model that ships with the package when left out."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Evaluated = Annotated[
    str | None,
    typer.Option(help="Checkpoint folder, hub id, or openai:http://host:port/v1#name; nano when left out."),
]
Data = Annotated[Path | None, typer.Option(help="Folder of the benchmarks' official files.")]
Split = Annotated[str | None, typer.Option(help="Split; the benchmark's first when left out.")]
ProtocolName = Annotated[str | None, typer.Option("--protocol", help="Protocol; the paper's when left out.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the sample, 0 when left out (synth: of the images).")]
Kinds = Annotated[str, typer.Option(help="synth: kinds of images, separated by commas, or all.")]
JudgeModel = Annotated[str, typer.Option("--judge", help="Judge model: openai:http://host:port/v1#name.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Take models from the hub's cache only.")] = False,
) -> None:
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    if version:
        from mini_internvl import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command(epilog='Example: minivl ask receipt.jpg "What is the total?"')
def ask(
    inputs: Annotated[list[str], typer.Argument(metavar="[IMAGE]... QUESTION", help="Images, then the question.")],
    model: Model = None,
    max_tiles: Annotated[int | None, typer.Option(help="Most tiles of all images together.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample among the likeliest tokens of this total probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    fast_images: Annotated[bool, typer.Option(help="Resize faster, equal within 1/255.")] = False,
    json: AsJson = False,
) -> None:
    """Ask about images; the answer is printed as it comes, then tiles, tokens and seconds."""
    *images, question = inputs
    if not images and Path(question).is_file():
        raise typer.BadParameter(f'the question is missing; write: minivl ask {question} "What is this?"')
    from mini_internvl import GenerationConfig, load

    limits = GenerationConfig(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed)
    engine = load(model, device=device, dtype=dtype, fast_images=fast_images)
    content = [*({"type": "image", "image": path} for path in images), {"type": "text", "text": question}]
    stream = engine.stream([{"role": "user", "content": content}], limits, max_tiles=max_tiles)
    reply = _print_stream(stream, quiet=json)
    if json:
        _echo_json({name: getattr(reply, name) for name in ("text", "tiles", "prompt_tokens", "tokens", "seconds")})
        return
    speed = f"{reply.tiles} tiles, {reply.prompt_tokens} + {reply.tokens} tokens, {reply.seconds:.2f} s"
    typer.secho(speed, fg="bright_black", err=True)


@app.command(epilog="Example: minivl chat --model OpenGVLab/InternVL2-1B")
def chat(
    model: Model = None,
    image: Annotated[list[str] | None, typer.Option("--image", "-p", help="Image of the first question.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Talk about images. ``/image PATH`` adds one to the next question, ``/new`` starts again, ``/quit`` ends."""
    from mini_internvl import load
    from mini_internvl.commands.chat import talk

    talk(load(model, device=device, dtype=dtype), image or [])


@app.command(epilog="Example: minivl train recipes/nano.yaml --output runs/nano stages.0.lr=5e-4")
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[a.b=value]...", help="Changes to the recipe.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME when left out.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that prepare batches.")] = 1,
) -> None:
    """Train by a recipe. Ctrl-C stops after the step; the same command goes on."""
    from mini_internvl import recipes, terminal
    from mini_internvl.train.run import run_recipe

    settings = recipes.load(recipe, overrides or [])
    folder = output or Path("runs") / settings.name
    with _stoppable() as should_stop:
        best = run_recipe(settings, folder, on_progress=terminal.Training(), should_stop=should_stop, workers=workers)
    typer.echo(f"checkpoint: {best}")


@app.command(epilog="Example: minivl adapt driving-sim --epochs 4 --ratio 1")
def adapt(
    domain: Annotated[str, typer.Argument(help="Name of a domain, for instance driving-sim.")],
    model: Model = None,
    output: Annotated[Path | None, typer.Option(help="Run folder; runs/DOMAIN when left out.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of raw records; built when left out.")] = None,
    train_clips: Annotated[int | None, typer.Option(help="Training clips to build.")] = None,
    test_clips: Annotated[int | None, typer.Option(help="Test clips to build.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the domain's samples.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    ratio: Annotated[float | None, typer.Option(help="General to domain samples, the paper's r.")] = None,
    general_items: Annotated[int, typer.Option(help="Questions per kind of the general probe.")] = 100,
    precision: Annotated[str, typer.Option(help="auto, bf16 or fp32 arithmetic.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of data and training.")] = 0,
    json: AsJson = False,
) -> None:
    """Adapt a model to a domain: score it, train, score again, probe what it forgot, write the report."""
    from mini_internvl.adapt import AdaptConfig
    from mini_internvl.commands.adapt import run

    clips = {split: n for split, n in (("train", train_clips), ("test", test_clips)) if n is not None}
    config = AdaptConfig(
        domain=domain,
        model=model,
        output=output or Path("runs") / domain,
        data=data,
        clips=clips,
        epochs=epochs,
        lr=lr,
        ratio=ratio,
        general_items=general_items,
        precision=precision,
        seed=seed,
        command=" ".join(["minivl", *sys.argv[1:]]),
    )
    with _stoppable() as should_stop:
        run(config, should_stop, as_json=json)


@app.command(epilog="Example: minivl demo")
def demo(
    output: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    json: AsJson = False,
) -> None:
    """The whole way in minutes: nano answers about images, then learns to drive; ends with a table and a report."""
    from mini_internvl.commands.demo import run

    with _stoppable() as should_stop:
        run(output, should_stop, as_json=json)


@app.command(name="eval", epilog="Example: minivl eval chartqa docvqa --data data --model OpenGVLab/InternVL2-1B")
def evaluate(
    benchmarks: Annotated[list[str], typer.Argument(help="Names of benchmarks, for instance chartqa docvqa.")],
    model: Evaluated = None,
    data: Data = None,
    split: Split = None,
    protocol: ProtocolName = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Size of a random sample (synth: images per kind).")] = None,
    seed: Seed = None,
    kinds: Kinds = "shapes,words,charts",
    output: Annotated[Path | None, typer.Option(help="Folder of the results; runs/eval/MODEL when left out.")] = None,
    judge: JudgeModel = "",
    batch_size: Annotated[int, typer.Option(min=1, help="Most questions answered together.")] = 64,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write the HTML report.")] = True,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: AsJson = False,
) -> None:
    """Score a model on benchmarks. Every answer is kept: the same command goes on where it was stopped."""
    from mini_internvl.commands.evaluate import Settings, run

    settings = Settings(
        benchmarks=benchmarks,
        model=model,
        data=data,
        split=split,
        protocol=protocol,
        limit=limit,
        seed=seed,
        kinds=kinds,
        output=output,
        judge=judge,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        report=report,
    )
    with _stoppable() as should_stop:
        code = run(settings, should_stop, as_json=json)
    raise typer.Exit(code)


@app.command(epilog="Example: minivl score chartqa answers.jsonl --data data")
def score(
    benchmark: Annotated[str, typer.Argument(help="Name of a benchmark.")],
    answers: Annotated[Path, typer.Argument(help="Answers of any model: jsonl or json with ids.")],
    data: Data = None,
    split: Split = None,
    protocol: ProtocolName = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Size of the random sample that was answered.")] = None,
    seed: Seed = None,
    kinds: Kinds = "shapes,words,charts",
    judge: JudgeModel = "",
    output: Annotated[Path | None, typer.Option(help="Folder that gets the score's files.")] = None,
    json: AsJson = False,
) -> None:
    """Score answers that another tool, or an earlier run, has written."""
    from mini_internvl.commands.evaluate import Settings
    from mini_internvl.commands.score import run

    settings = Settings(
        benchmarks=[benchmark],
        data=data,
        split=split,
        protocol=protocol,
        limit=limit,
        seed=seed,
        kinds=kinds,
        judge=judge,
        output=output,
    )
    raise typer.Exit(run(settings, answers, as_json=json))


@app.command(epilog="Example: minivl table general --runs runs/1B --format markdown")
def table(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TABLE]...", help="general, remote, medical, bddx, drivelm; all when left out."),
    ] = None,
    runs: Annotated[list[Path] | None, typer.Option(help="Folder written by eval; may be repeated.")] = None,
    form: Annotated[str, typer.Option("--format", help="text, markdown, csv or latex.")] = "text",
    json: AsJson = False,
) -> None:
    """The paper's tables: its published numbers, and yours beneath them."""
    from mini_internvl.commands.table import run

    run(names or [], runs or [], form, as_json=json)


@app.command(epilog="Example: minivl report runs/eval-1B --against runs/eval-nano")
def report(
    run: Annotated[Path, typer.Argument(help="Folder of an adaptation or an evaluation.")],
    against: Annotated[
        Path | None, typer.Option(help="Another evaluation: shows what changed, item by item, since that one.")
    ] = None,
) -> None:
    """Write the HTML report of an adaptation or an evaluation."""
    from mini_internvl import report as reports

    typer.echo(reports.build(run, against))


@app.command(epilog="Example: minivl info --size 1B")
def info(
    size: Annotated[str | None, typer.Option(help="A released size: 1B, 2B or 4B.")] = None,
    model: Model = None,
    json: AsJson = False,
) -> None:
    """Parameters and settings of a size or a checkpoint, without allocating its weights."""
    from mini_internvl.commands.info import describe

    facts = describe(size, model)
    if json:
        _echo_json(facts)
        return
    for name, value in facts.items():
        typer.echo(f"{name:22} {value:,}" if isinstance(value, int) else f"{name:22} {value}")


@app.command(epilog="Example: minivl convert OpenGVLab/InternVL2-1B checkpoints/1B-native --to native")
def convert(
    source: Annotated[str, typer.Argument(help="Checkpoint folder or hub id, in any layout.")],
    target: Annotated[Path, typer.Argument(help="Folder to write.")],
    to: Annotated[str, typer.Option(help="official, native (transformers, vLLM, ...) or mini.")] = "native",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; as it is when left out.")] = None,
    shard_gb: Annotated[float, typer.Option(help="Largest weight file in GB.")] = 5.0,
    json: AsJson = False,
) -> None:
    """Write a checkpoint in another layout, with its tokenizer, every value kept."""
    from mini_internvl import terminal
    from mini_internvl.commands.convert import convert as work

    counter = terminal.Counter("converting, MB")
    done = work(source, target, to, dtype=dtype, shard_bytes=round(shard_gb * 1e9), progress=counter)
    if json:
        _echo_json(done)
        return
    typer.echo(
        f"{done['folder']}: {done['from']} -> {done['to']}, {done['tensors']:,} tensors, {done['bytes'] / 1e9:.2f} GB "
        f"in {len(done['files'])} file{'s' * (len(done['files']) > 1)}"
    )


@app.command(epilog="Example: minivl doctor checkpoints/InternVL2-1B --deep")
def doctor(
    folder: Annotated[Path, typer.Argument(help="Checkpoint or adapter folder.")],
    deep: Annotated[bool, typer.Option("--deep", help="Also read every tensor and look for NaN and infinity.")] = False,
    json: AsJson = False,
) -> None:
    """What a checkpoint folder is, what is wrong with it and how to mend it. Exit code 1 when something must be."""
    from mini_internvl.commands.doctor import run

    raise typer.Exit(run(folder, deep=deep, as_json=json))


@app.command(epilog="Example: minivl verify OpenGVLab/InternVL2-1B checkpoints/1B-native")
def verify(
    first: Annotated[str, typer.Argument(help="Checkpoint folder or hub id.")],
    second: Annotated[str, typer.Argument(help="Another one, held against the first.")],
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts as jsonl of messages; built-in ones when left out.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest greedy answer in tokens.")] = 24,
    tolerance: Annotated[
        float | None, typer.Option(help="Allowed difference of logits; by the types when left out: 0.001 or 0.25.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: AsJson = False,
) -> None:
    """Whether two checkpoints are the same model: ids, logits and greedy answers. Exit code 1 when they are not."""
    from mini_internvl.commands.verify import run

    code = run(
        first,
        second,
        prompts=prompts,
        max_new_tokens=max_new_tokens,
        tolerance=tolerance,
        dtype=dtype,
        device=device,
        as_json=json,
    )
    raise typer.Exit(code)


@app.command(epilog="Example: minivl build --vision InternViT-300M-448px --llm Qwen2-0.5B-Instruct checkpoints/start")
def build(
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    vision: Annotated[str, typer.Option(help="InternViT, or a whole model whose encoder is taken: folder or hub id.")],
    llm: Annotated[str, typer.Option(help="Qwen2, InternLM2 or Phi-3 in its plain form: folder or hub id.")],
    template: Annotated[str | None, typer.Option(help="Chat template; the language model's own when left out.")] = None,
    max_tiles: Annotated[int, typer.Option(help="Most tiles of an image, thumbnail not counted.")] = 12,
    seed: Annotated[int, typer.Option(help="Of the projector and the new embedding rows.")] = 0,
    json: AsJson = False,
) -> None:
    """A starting point for training: an InternViT, a plain language model and a fresh projector in one checkpoint."""
    from mini_internvl.commands.build import run

    facts = run(vision, llm, output, template=template, seed=seed, max_tiles=max_tiles)
    if json:
        _echo_json(facts)
        return
    for name, value in facts.items():
        typer.echo(f"{name:22} {value:,}" if isinstance(value, int) else f"{name:22} {value}")


@app.command(epilog="Example: minivl merge runs/lora/best checkpoints/merged")
def merge(
    adapter: Annotated[str, typer.Argument(help="Adapter folder in PEFT's format.")],
    output: Annotated[Path, typer.Argument(help="Folder of the merged checkpoint.")],
    base: Annotated[str | None, typer.Option(help="Its base; the one that it names when left out.")] = None,
    json: AsJson = False,
) -> None:
    """Fold an adapter into its base; logits before and after are compared first, and a difference refuses the merge."""
    from mini_internvl.commands.merge import run

    run(adapter, output, base=base, as_json=json)


@app.command(epilog="Example: minivl cache")
def cache(json: AsJson = False) -> None:
    """Models that the hub's cache holds, with their size; any of them works with --offline."""
    from mini_internvl.engine.hub import cached

    rows = cached()
    if json:
        _echo_json([{"name": row.name, "folder": str(row.folder), "bytes": row.size} for row in rows])
        return
    for row in rows:
        typer.echo(f"{row.name}  {row.size / 1e9:.2f} GB  {row.folder}")
    if not rows:
        typer.echo("the cache is empty; any command with --model ORG/NAME fetches a model")


@data_app.command(epilog="Example: minivl data synth words charts --count 1000 --output data/synth")
def synth(
    kinds: Annotated[list[str], typer.Argument(help="Kinds of images, or all.")],
    output: Annotated[Path, typer.Option(help="Folder for images and jsonl.")] = Path("data/synth"),
    count: Annotated[int, typer.Option(help="Samples of each kind.")] = 1000,
    seed: Annotated[int, typer.Option(help="Other images for each seed.")] = 0,
    split: Annotated[str, typer.Option(help="train, or test with held-out words, fonts and tables.")] = "train",
) -> None:
    """Draw images with questions and exact answers, as InternVL's meta JSON and jsonl."""
    from mini_internvl import synth as drawing
    from mini_internvl import terminal
    from mini_internvl.synth import write

    names = [k for k in drawing.KINDS if drawing.missing(k) is None] if kinds == ["all"] else kinds
    counters = {name: terminal.Counter(f"drawing {name}") for name in names}
    meta = write.write(
        names,
        count,
        output,
        seed=seed,
        split=split,
        progress=lambda kind, done, total: counters[kind](done, total),
    )
    typer.echo(meta)


@data_app.command(epilog="Example: sudo apt-get install $(minivl data fonts)")
def fonts() -> None:
    """Names of the Debian font packages that nano's training used."""
    from mini_internvl.synth.fonts import FONT_PACKAGES

    typer.echo(" ".join(FONT_PACKAGES))


@data_app.command(epilog="Example: minivl data pack data/chartqa chartqa.tar")
def pack(
    folder: Annotated[Path, typer.Argument(help="Folder to pack, for instance a benchmark's.")],
    archive: Annotated[Path, typer.Argument(help="New archive; its name ends in .tar, .tar.gz or .tgz.")],
    json: AsJson = False,
) -> None:
    """Put a folder into one archive with the hash of every file, to be carried to another machine."""
    from mini_internvl import terminal
    from mini_internvl.evaluate import pack as packing

    done = packing.pack(folder, archive, progress=terminal.Counter("packing, MB"))
    if json:
        _echo_json(done)
        return
    typer.echo(f"{done['archive']}: {done['files']:,} files, {done['bytes'] / 1e6:,.1f} MB")


@data_app.command(epilog="Example: minivl data unpack chartqa.tar data/chartqa")
def unpack(
    archive: Annotated[Path, typer.Argument(help="Archive written by minivl data pack.")],
    folder: Annotated[Path, typer.Argument(help="New or empty folder; one filled in part is completed.")],
    json: AsJson = False,
) -> None:
    """Take a packed folder out again, each file compared with its hash. Once stopped, the same command goes on."""
    from mini_internvl import terminal
    from mini_internvl.evaluate import pack as packing

    done = packing.unpack(archive, folder, progress=terminal.Counter("unpacking, MB"))
    if json:
        _echo_json(done)
        return
    kept = f", {done['kept']:,} of them were there" if done["kept"] else ""
    typer.echo(f"{done['folder']}: {done['files']:,} files{kept}, {done['bytes'] / 1e6:,.1f} MB")


def _print_stream(stream: Any, *, quiet: bool) -> Any:
    """Print pieces as they come; returns the reply."""
    while True:
        try:
            piece = next(stream)
        except StopIteration as end:
            if not quiet:
                typer.echo()
            return end.value
        if not quiet:
            typer.echo(piece, nl=False)
            sys.stdout.flush()


def _echo_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, ensure_ascii=False, indent=1))


class _stoppable:
    """First Ctrl-C asks the work to stop at the next safe point, the second stops at once."""

    def __enter__(self) -> Callable[[], bool]:
        self.asked = False
        self.before = signal.signal(signal.SIGINT, self._stop)
        return lambda: self.asked

    def _stop(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        typer.echo("\nstopping after this step (Ctrl-C again stops at once)", err=True)

    def __exit__(self, *error: Any) -> None:
        signal.signal(signal.SIGINT, self.before)


def main() -> None:
    """Run the command line; every error ends as a plain line and an exit code."""
    debug = "--debug" in sys.argv
    code = None
    try:
        code = app(prog_name="minivl", standalone_mode=False)
    except typer.Abort:
        _fail("stopped", 1)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        if debug:
            raise
        _explain(error)
    if code == INTERRUPTED:
        _fail("stopped; the same command goes on from what is saved", 1)
    if isinstance(code, int) and code:
        sys.exit(code)


def _explain(error: Exception) -> None:
    """One line for an expected error, two for an unexpected one."""
    show = getattr(error, "format_message", None)
    if show is not None:  # typer's usage errors
        context = getattr(error, "ctx", None)
        hint = f"\ntry: {context.command_path} --help" if context else ""
        _fail(f"{show()}{hint}", getattr(error, "exit_code", 2))
    if type(error).__name__ == "Interrupted":
        _fail(f"{error}; the same command goes on", 1)
    if isinstance(error, ValueError | OSError | ImportError | RuntimeError):
        _fail(" ".join(str(error).split()) or type(error).__name__, 1)
    _fail(f"{type(error).__name__}: {error}\nthis should not happen; minivl --debug shows where", 1)


def _fail(message: str, code: int) -> None:
    typer.secho(f"minivl: {message}", err=True, fg="red" if sys.stderr.isatty() else None)
    sys.exit(code)


if __name__ == "__main__":
    main()
