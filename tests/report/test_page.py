"""The page: every example with its mark, warnings first, no claim that is not clear, hostile texts stay text.

The benchmarks are made up; they draw their images.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image, ImageDraw

from mini_internvl import plugins
from mini_internvl.benchmarks._tally import Tally
from mini_internvl.evaluate import outputs
from mini_internvl.evaluate.questions import Questions
from mini_internvl.files import write_json
from mini_internvl.records import Item, Prediction
from mini_internvl.report import build, compare, examples, read_evaluation
from mini_internvl.report.explain import explain

LONG = "The chart shows the quarterly sales of three regions. " * 30
ODD = (
    "图中有三只猫，左边的一只在睡觉。",
    "كم عدد السيارات؟",
    "</script><img src=x onerror=alert(1)>",
    "A" * 300,
    LONG,
    "line one\nline two\n\n  - a list\n  - 𝒜 🦊 e\u0301",
    "",
)


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a made-up benchmark is like."""

    title: str
    categories: Mapping[str, Sequence[str]]
    sizes: Sequence[tuple[int, int]]
    most: float = 100.0
    boxes: bool = False
    images: int = 1


MADE = {
    "maps_qa": Made(
        title="MapsQA",
        categories={
            "category": ("roads", "rivers", "names of very long places and of their neighbours"),
            "level": "ab",
        },
        sizes=((120, 80), (60, 140), (160, 90)),
    ),
    "find_it": Made(
        title="Find-It", categories={"kind": ("cars", "houses")}, sizes=((100, 100), (128, 60)), boxes=True
    ),
    "cn_text": Made(title="中文 OCR", categories={"task": ("识字", "问答")}, sizes=((100, 40),), most=1000.0),
    "many": Made(title="Many-Views", categories={}, sizes=((60, 45),), images=8),
}


def image(size: tuple[int, int], seed: int) -> bytes:
    """A scene with a few shapes, as PNG."""
    rng = random.Random(seed)
    width, height = size
    image = Image.new("RGB", size, (226, 232, 226))
    pen = ImageDraw.Draw(image)
    for _ in range(14):
        x, y = rng.randrange(width), rng.randrange(height)
        w, h = rng.randrange(10, 2 + width // 3), rng.randrange(10, 2 + height // 3)
        colour = tuple(rng.randrange(40, 240) for _ in range(3))
        (pen.ellipse if rng.random() < 0.4 else pen.rectangle)((x, y, x + w, y + h), fill=colour)
    pen.text((8, 8), f"item {seed}", fill=(0, 0, 0))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def module(name: str, count: int = 30) -> ModuleType:
    """The benchmark file of a made-up benchmark; its data folder is anything that exists."""
    made = MADE[name]
    built = ModuleType(name)

    def items(root: Any, split: str | None = None, *, protocol: str | None = None) -> Iterator[Item]:
        if not Path(root).is_dir():
            raise ValueError(f"the data folder {root} does not exist")
        for i in range(count):
            seeds = [1000 * list(MADE).index(name) + 10 * i + k for k in range(made.images)]
            parts: list[dict[str, Any]] = [
                {"type": "image", "image": image(made.sizes[i % len(made.sizes)], seed)} for seed in seeds
            ]
            if made.images > 1:
                parts = [{**part, "name": f"CAM_{k}"} for k, part in enumerate(parts)]
            parts.append({"type": "text", "text": question(name, i)})
            yield Item(id=f"{i}", messages=[{"role": "user", "content": parts}], reference=reference(name, i))

    def boxes(item: Item, text: str) -> tuple[list[Any], list[Any]]:
        numbers = [float(word) / 1000 for word in text.strip("[]").split(",") if word.strip().isdigit()]
        return [[edge / 1000 for edge in item.reference["box"]]], [numbers] if len(numbers) == 4 else []

    settings = {
        "TITLE": made.title,
        "PRIMARY_METRIC": "accuracy",
        "PRIMARY_METRIC_MAX": made.most,
        "LOWER_IS_BETTER": ("time",),
    }
    settings |= {"items": items, "PROTOCOLS": {"paper": "As printed.", "strict": "Exact."}}
    built.__dict__.update(settings | ({"boxes": boxes} if made.boxes else {}))
    return built


def question(name: str, i: int) -> str:
    """Question number ``i``."""
    if name == "cn_text":
        return f"请问第 {i} 张图片中的文字是什么？请直接回答。"
    if i == 4:
        return LONG + "\nWhat follows from this?\nA. nothing\nB. everything\nAnswer with the option's letter."
    if MADE[name].boxes:
        return f"Please give the bounding box of the region: <ref>the object number {i}</ref>"
    return f"What is the name of road {i}?\nA. Ash Road\nB. Birch Lane\nC. Cedar Way\nAnswer with the option's letter."


def reference(name: str, i: int) -> dict[str, Any]:
    """The truth of item ``i`` with its labels."""
    made = MADE[name]
    found: dict[str, Any] = {key: values[i % len(values)] for key, values in made.categories.items()}
    if made.boxes:
        return {**found, "box": [100 + 10 * i, 200, 400 + 10 * i, 700]}
    if name == "cn_text":
        return {**found, "answers": ["红灯停", "红灯 停"]}
    return {**found, "answer": "B", "options": {"A": "Ash Road", "B": "Birch Lane", "C": "Cedar Way"}}


def answer(name: str, i: int, *, right: bool) -> str:
    """An answer to item ``i``."""
    if right:
        found = reference(name, i)
        return str(found.get("box") or found.get("answer") or found["answers"][0])
    if MADE[name].boxes and i % 3:
        return f"[{60 + 13 * i}, 260, {320 + 9 * i}, 640]"
    return ODD[i % len(ODD)]


def write_run(
    folder: Path,
    data: Path,
    *,
    names: Sequence[str] = tuple(MADE),
    rate: float = 0.6,
    seed: int = 0,
    count: int = 30,
    model: str = "nano",
    **changes: Any,
) -> Path:
    """A run folder whose answers are right at about ``rate``; ``changes`` go into every score."""
    rng = random.Random(seed)
    for name in names:
        tally = Tally()
        rows = []
        for i in range(count):
            right = rng.random() < rate
            labels = [f"{key}/{values[i % len(values)]}" for key, values in MADE[name].categories.items()]
            tally.add(right, "accuracy", *labels)
            row = {"id": str(i), "question": question(name, i), "answer": answer(name, i, right=right)}
            rows.append({**row, "right": right, "reference": reference(name, i)})
        scale = MADE[name].most
        score = tally.score(name, items=count, scale=scale, notes={"empty": 2, "unreadable": {"box": 1}})
        content = {
            **{"benchmark": name, "title": MADE[name].title, "split": "test", "protocol": "paper"},
            "primary_metric": "accuracy",
            **{"values": score.values, "errors": score.errors, "counts": score.counts, "items": count},
            **{"partial": "", "notes": score.notes, "limit": None, "seed": None},
            "model": {"name": model, "path": f"checkpoints/{model}", "sha256": "4f" * 32, "parameters": 8_103_424},
            **{"prompt_sha256": "b2" * 32, "max_tiles": 6, "max_new_tokens": 100, "decoding": "greedy"},
            "data": {"path": str(data), "sha256": "c3" * 32},
            "versions": {"mini_internvl": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
            **changes,
        }
        place = folder / name
        place.mkdir(parents=True)
        (place / "score.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (place / "predictions.jsonl").write_text(lines, encoding="utf-8")
    return folder


class Page(HTMLParser):
    """What a page holds: examples with their states, texts and drawings, addresses, and all text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.text = ""
        self.tags: Counter[str] = Counter()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.scripted: list[str] = []
        self.states: Counter[str] = Counter()
        self.boxes: Counter[str] = Counter()
        self.options: list[str] = []
        self.scripts: list[str] = []
        self.tag = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tag = tag
        self.tags[tag] += 1
        self.addresses += [values[name] for name in ("src", "href") if name in values]
        self.scripted += [name for name in values if name.startswith("on")]
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "article":
            self.states[values["data-state"]] += 1
        if tag == "rect" and values.get("height", "").startswith("0."):
            self.boxes[values["class"]] += 1
        if tag == "option":
            self.options.append(values["value"])
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tag == "script":
            self.scripts[-1] += data
        else:
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self.tag = ""

    @property
    def flat(self) -> str:
        """The text with single spaces."""
        return re.sub(r"\s+", " ", self.text)


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up benchmarks in place of the real ones."""
    monkeypatch.setattr(plugins, "list_names", lambda folder: sorted(MADE))
    monkeypatch.setattr(plugins, "find", lambda folder, name: module(name))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    """A run of all made-up benchmarks and its page; neither is to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "data").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "list_names", lambda _: sorted(MADE))
        patch.setattr(plugins, "find", lambda _, name: module(name))
        run = write_run(folder / "run", folder / "data")
        return run, Page(build(run))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data folder, whose existence is all that counts."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def change(score: Path, **changes: Any) -> None:
    """Put other values into a score file."""
    content = json.loads(score.read_text(encoding="utf-8")) | changes
    score.write_text(json.dumps(content), encoding="utf-8")


def rows(run: Path, name: str) -> list[dict[str, Any]]:
    """The answers of a run."""
    text = (run / name / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def test_every_item_with_images_marks_and_boxes(whole: tuple[Path, Page]) -> None:
    run, page = whole
    right = sum(row["right"] for name in MADE for row in rows(run, name))
    assert page.states == {"right": right, "wrong": 120 - right}
    assert page.text.count("✓ right") == right
    assert page.tags["img"] == 3 * 30 + 30 * 6
    assert page.flat.count("and 2 more images") == 30
    assert page.boxes["true"] == 30
    assert 10 <= page.boxes["this"] <= 30
    assert page.boxes["halo"] == page.boxes["true"] + page.boxes["this"]
    assert page.flat.count("IoU") - 1 == page.boxes["this"]  # one is the legend's
    assert page.flat.count("no readable box") == 30 - page.boxes["this"]
    assert page.text.count("Examples: 30 of 30 items") == 4
    assert "B. Birch Lane" in page.text
    assert "红灯停 | 红灯 停" in page.text
    assert "(1,020 more characters)" in page.text


def test_nothing_comes_from_outside_and_only_our_script_runs(whole: tuple[Path, Page]) -> None:
    _, page = whole
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in page.addresses)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert page.scripted == []
    assert len(page.scripts) == 1
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.source


def test_hostile_texts_stay_text(tmp_path: Path, data: Path) -> None:
    hostile = "</script><img src=x onerror=alert(1)>\"'&{{ 7*7 }}<!--"
    run = write_run(
        tmp_path / "run", data, names=["maps_qa"], count=2, partial=hostile, protocol=hostile, split=hostile
    )
    answered = {"question": hostile, "answer": hostile, "reference": {"answer": hostile}}
    rows = [{"id": hostile + str(i), "right": i == 0, **answered} for i in range(2)]
    (run / "maps_qa" / "predictions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    change(run / "maps_qa" / "score.json", title=hostile, model={"name": hostile}, values={hostile: 1.0})
    page = Page(build(run))
    assert page.tags["script"] == 1
    assert page.tags["img"] == 0
    assert page.scripted == []
    assert page.text.count(hostile) >= 12


def test_figures_by_category_and_overview(whole: tuple[Path, Page]) -> None:
    run, page = whole
    score = json.loads((run / "maps_qa" / "score.json").read_text(encoding="utf-8"))
    for metric in ("accuracy", "category/roads", "level/b"):
        assert f"{score['values'][metric]:.2f}" in page.text
        assert f"{score['errors'][metric]:.2f}" in page.text
    assert "bars from 0 to" in page.text  # of the benchmark that counts to 1,000
    assert page.source.count('class="whisker"') >= 8
    labels = [value for value in page.options if value]
    assert len(labels) == 3 + 2 + 2 + 2
    assert all(f'data-labels="{code} ' in page.source or f" {code} " in page.source for code in labels)


def test_counts_of_scoring_stand_without_the_official_tables(tmp_path: Path, data: Path) -> None:
    notes = {"undecided": 3, "unreadable": {"box": 20}, "table": [{"Task&Skill": "Overall", "tot": 6}]}
    notes |= {"report": {"Overall": {"num": 5, "acc": 0.2}}, "of": "30 items asked"}
    page = Page(build(write_run(tmp_path / "run", data, names=["find_it"], notes=notes)))
    assert "Counted while scoring: undecided 3, unreadable box 20, of 30 items asked." in page.flat
    assert "Overall" not in page.flat


@pytest.mark.parametrize(
    ("most", "values", "end"),
    [
        (1.0, {"accuracy": 0.7, "final": 0.5}, 1.0),
        (1.0, {"language": 1e-12}, 1.0),
        (1.0, {"accuracy": 0.7, "chatgpt": 63.8}, 100.0),
        (100.0, {"accuracy": 40.0}, 100.0),
        (1000.0, {"part": 40.0}, 100.0),
        (1000.0, {"part": 140.0}, 140.0),
        (1000.0, {"accuracy": 40.0}, 1000.0),
    ],
)
def test_where_bars_end(
    most: float, values: dict[str, float], end: float, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = replace(MADE["maps_qa"], most=most)
    monkeypatch.setitem(MADE, "maps_qa", made)
    run = write_run(tmp_path / "run", data, names=["maps_qa"], count=2, values=values)
    (section,) = compare(read_evaluation(run))
    assert section.bar_end(list(section.lines.values())) == end


def test_a_file_that_came_with_the_scores_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run" / "find_it" / "score.json"
    path.parent.mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "run"):
        (folder / "mine.py").write_text("raise SystemExit\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "run")
    theirs, mine = str(tmp_path / "run" / "mine.py"), str(tmp_path / "mine.py")
    for facts in ({"benchmark_file": "mine.py"}, {"benchmark_file": theirs}, {"benchmark": "mine.py"}, {}):
        assert outputs.benchmark_name(path, {"benchmark": "mine", **facts}) == "mine"
    assert outputs.benchmark_name(path, {"benchmark": "mine", "benchmark_file": mine}) == mine


def test_marks_of_what_is_not_a_whole_score(tmp_path: Path, data: Path) -> None:
    run = write_run(tmp_path / "run", data, names=["maps_qa"], of=4000, limit=30, protocol="strict", partial="no judge")
    page = Page(build(run))
    assert {"partial", "subset", "other protocol"} <= set(re.findall(r'class="badge"[^>]*>([^<]+)', page.source))
    assert "MapsQA: no judge." in page.text
    assert "MapsQA: a sample of 30 of 4,000 items." in page.text
    assert "MapsQA: protocol strict; the paper's is paper." in page.text


def test_the_command_that_repeats_the_run(tmp_path: Path, data: Path) -> None:
    run = write_run(tmp_path / "run", data, names=["maps_qa", "many"], count=3, model="1B x", tiles_setting=3)
    asked = f"--data {data} --split test --protocol paper --max-tiles 3"
    assert f"minivl eval many maps_qa --model 'checkpoints/1B x' {asked}" in Page(build(run)).text


def test_answers_from_elsewhere_are_no_model_to_ask(tmp_path: Path, data: Path) -> None:
    theirs = {"name": "theirs", "answers": "their answers.json", "sha256": "4f" * 32, "parameters": 0}
    run = write_run(tmp_path / "run", data, names=["maps_qa", "many"], count=3)
    for path in run.glob("*/score.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "model": theirs}), encoding="utf-8")
    text = Page(build(run)).text
    for name in ("many", "maps_qa"):
        assert f"minivl score {name} 'their answers.json' --data {data} --split test --protocol paper" in text
    assert "minivl ask" not in text
    assert "minivl eval" not in text


@pytest.mark.parametrize("gone", ["folder", "module", "items", "reference"])
def test_without_images_the_texts_remain(
    tmp_path: Path, data: Path, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run", data, names=["maps_qa"])
    if gone == "folder":
        data.rmdir()
    elif gone == "module":
        monkeypatch.setattr(plugins, "list_names", lambda folder: ["other"])
    elif gone == "items":
        monkeypatch.setattr(plugins, "find", lambda folder, name: module(name, 0))
    else:
        lines = (run / "maps_qa" / "predictions.jsonl").read_text(encoding="utf-8")
        (run / "maps_qa" / "predictions.jsonl").write_text(lines.replace('"answer": "B", "opt', '"answer": "C", "opt'))
    page = Page(build(run))
    said = {
        "folder": f"the data folder {data} does not exist",
        "module": "no benchmark called maps_qa",
        "items": "of 30 examples, 30 are no longer in the data and 0 have another reference now",
        "reference": "0 are no longer in the data and 30 have another reference now",
    }
    assert said[gone] in page.text
    assert page.tags["img"] == 0
    assert sum(page.states.values()) == 30


def test_examples_are_capped_and_spread(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "PER_BENCHMARK", 20)
    run = write_run(tmp_path / "run", data, names=["maps_qa"], count=600, rate=0.9)
    page = Page(build(run))
    assert page.states == {"right": 10, "wrong": 10}
    assert "Examples: 20 of 600 items" in page.text
    assert len([value for value in page.options if value]) == 5
    shown = [int(n) for n in re.findall(r"item</span> (\d+)", page.source)]
    assert shown == sorted(shown)
    assert max(shown) > 400


def test_images_stay_below_the_size(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Image.frombytes("RGB", (500, 400), random.Random(0).randbytes(600_000))
    buffer = io.BytesIO()
    noise.save(buffer, "JPEG")
    built = module("maps_qa", 12)
    items = [replace(item, messages=asked(buffer.getvalue())) for item in built.items(data)]
    built.items = lambda root, split=None, *, protocol=None: iter(items)
    monkeypatch.setattr(plugins, "find", lambda folder, name: built)
    monkeypatch.setattr(examples, "IMAGE_BYTES", 150_000)
    page = build(write_run(tmp_path / "run", data, names=["maps_qa"], count=12))
    urls = re.findall(r"base64,([^\"]+)", page.read_text(encoding="utf-8"))
    assert len(urls) == 12
    assert 75_000 <= sum(len(url) * 3 // 4 for url in urls) <= 150_000


def asked(image: bytes) -> list[Any]:
    """A question about one image."""
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "?"}]}]


def test_differences_are_paired(tmp_path: Path, data: Path) -> None:
    old = write_run(tmp_path / "old", data, names=["maps_qa"], rate=0.4, seed=1)
    new = write_run(tmp_path / "new", data, names=["maps_qa"], rate=0.8, seed=2, model="org/InternVL2-1B")
    rights = [[row["right"] for row in rows(run, "maps_qa")] for run in (old, new)]
    steps = [int(b) - int(a) for a, b in zip(*rights, strict=True)]
    mean = sum(steps) / 30
    error = 100 * math.sqrt(sum((step - mean) ** 2 for step in steps) / 29 / 30)
    page = Page(build(new, old))
    assert page.states["gained"] == steps.count(1)
    assert page.states["lost"] == steps.count(-1)
    row = rf"\{100 * mean:+.2f} ± {error:.2f} ✓ better30"
    assert len(re.findall(row, page.flat)) == 2  # the overview and the benchmark
    said = f"InternVL2-1B is better than nano on MapsQA: accuracy {100 * mean:+.2f} ± {error:.2f} on 30 items."
    assert said in page.flat
    assert 'title="not paired"' not in page.source
    assert f"gained {steps.count(1)}, lost {steps.count(-1)}" in page.flat


def test_a_graded_figure_is_not_called_paired(tmp_path: Path, data: Path) -> None:
    runs = [write_run(tmp_path / name, data, names=["many"], seed=i) for i, name in enumerate(("old", "new"))]
    for run, value in zip(runs, (40.0, 52.5), strict=True):
        change(
            run / "many" / "score.json", primary_metric="anls", values={"anls": value}, errors={"anls": 3.0}, counts={}
        )
    page = Page(build(runs[1], runs[0]))
    assert "+12.50 ± 4.24u ✓ better" in page.flat
    assert 'title="not paired"' in page.source


def test_runs_that_differ_in_more_than_the_model_are_told(tmp_path: Path, data: Path) -> None:
    old = write_run(tmp_path / "old", data, names=["maps_qa", "many"], count=20)
    new = write_run(tmp_path / "new", data, names=["maps_qa", "find_it"], seed=3, max_tiles=12)
    page = Page(build(new, old))
    assert "MapsQA was not asked alike in the two runs: max tiles 6 and 12." in page.flat
    assert "the runs share 20 items of 20 and 30" in page.flat
    assert "Only in nano: Many-Views." in page.flat or "Only in old: Many-Views." in page.flat
    assert "only in this run" in page.flat
    assert page.states["unjudged"] == 10


def test_a_run_against_itself(tmp_path: Path, data: Path) -> None:
    run = write_run(tmp_path / "run", data, names=["maps_qa"])
    page = Page(build(run, run))
    assert "No clear difference between" in page.flat
    assert "✓ better" not in page.flat
    assert "gained 0, lost 0" in page.flat
    assert set(page.states) == {"kept", "missed"}


def test_only_the_needed_keys(tmp_path: Path) -> None:
    (tmp_path / "maps_qa").mkdir()
    (tmp_path / "maps_qa" / "score.json").write_text('{"benchmark": "maps_qa", "values": {"accuracy": 1, "x": null}}')
    page = Page(build(tmp_path))
    assert "unnamed model" in page.text
    assert "No answers were kept" in page.text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("score.json", "{", "score.json is not valid JSON"),
        ("score.json", "[]", "score.json holds no JSON object"),
        ("score.json", '{"values": {}}', 'score.json: "benchmark" is missing'),
        ("score.json", '{"benchmark": "a", "values": []}', 'score.json: "values" must be an object'),
        ("score.json", '{"benchmark": "a", "values": {"b": "c"}}', '"values.b" must be a number'),
        ("predictions.jsonl", '{"id": "1"}\n{\n{"id": "2"}', "predictions.jsonl:2: no valid JSON"),
        ("predictions.jsonl", "[]\n", 'predictions.jsonl:1: the line must be an object with an "id"'),
    ],
)
def test_broken_files(tmp_path: Path, data: Path, file: str, content: str, message: str) -> None:
    run = write_run(tmp_path / "run", data, names=["maps_qa"], count=2)
    (run / "maps_qa" / file).write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        build(run)
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()


def test_a_torn_last_line_is_left_out(tmp_path: Path, data: Path) -> None:
    run = write_run(tmp_path / "run", data, names=["maps_qa"], count=3)
    with (run / "maps_qa" / "predictions.jsonl").open("a") as file:
        file.write('{"id": "4", "ans')
    assert sum(Page(build(run)).states.values()) == 3


def test_folders_that_hold_nothing_to_show(tmp_path: Path, data: Path) -> None:
    run = write_run(tmp_path / "run", data, names=["maps_qa"], count=2)
    assert build(run / "maps_qa") == run / "maps_qa" / "report.html"
    with pytest.raises(ValueError, match=r"data holds no BENCHMARK/score.json, adapt.json or metrics.jsonl"):
        build(run, data)
    with pytest.raises(ValueError, match="is no folder"):
        build(tmp_path / "nowhere")
    other = write_run(tmp_path / "other", data, names=["many"], count=2)
    with pytest.raises(ValueError, match=r"\(maps_qa\) and .* \(many\) have no benchmark in common"):
        build(run, other)


def test_reads_what_an_evaluation_writes(tmp_path: Path, data: Path) -> None:
    benchmark = module("find_it", 6)
    benchmark.right = lambda item, text: text == str(item.reference["box"])
    items = list(benchmark.items(data))
    given = [Prediction(item_id=item.id, text=answer("find_it", i, right=i < 2)) for i, item in enumerate(items)]
    tally = Tally()
    for i in range(6):
        tally.add(i < 2, "accuracy")
    settings: dict[str, Any] = {"split": "test", "protocol": "paper", "data": data, "of": 6}
    about = Questions(name="find_it", benchmark=benchmark, items=items, **settings).facts({"name": "nano"})
    folder = tmp_path / "run" / "find_it"
    outputs.write_lines(folder / outputs.PREDICTIONS, outputs.rows(benchmark, items, given))
    write_json(folder / outputs.SCORE, outputs.result(benchmark, tally.score("find_it", items=6), about))
    page = Page(build(tmp_path / "run"))
    assert page.states == {"right": 2, "wrong": 4}
    assert page.boxes["true"] == page.tags["img"] == 6
    assert "33.33" in page.text


def test_unreadable_answers_come_before_the_scores(tmp_path: Path, data: Path) -> None:
    run = write_run(tmp_path / "run", data, names=["find_it"], notes={"unreadable": {"box": 20, "name": 5}, "empty": 0})
    page = Page(build(run))
    warning = "Answers that could not be read and count as wrong: Find-It: 25 of 30."
    assert page.flat.index(warning) < page.flat.index("Scores ")
    assert "are empty" not in page.flat
    assert "Few items, so that only large differences can be seen: Find-It (30)." in page.flat


def test_the_reference_box_stands_in_the_frame_of_the_answers(tmp_path: Path, data: Path) -> None:
    """A reference in pixels beside an answer in 0 to 1000 cannot be compared by eye."""
    page = Page(build(write_run(tmp_path / "run", data, names=["find_it"], count=1, rate=1.0)))
    assert "Reference[[100, 200, 400, 700]]" in page.flat
    assert re.search(r"Answer\[100, 200, 400, 700\] ✓ right IoU 1.00", page.flat)


@pytest.mark.parametrize("gained", [1, 3, 5, 6])
def test_better_needs_more_than_a_few_items(tmp_path: Path, data: Path, gained: int) -> None:
    """All of a few items gained has no spread and so a standard error of 0, which proves nothing."""
    old = write_run(tmp_path / "old", data, names=["maps_qa"], count=gained, rate=0.0)
    new = write_run(tmp_path / "new", data, names=["maps_qa"], count=gained, rate=1.0, model="other")
    page = Page(build(new, old))
    assert ("other is better than nano" in page.flat) == (gained == 6)
    assert ("✓ better" in page.flat) == (gained == 6)
    assert "± 0.00" not in page.flat


def test_the_headline_claims_no_more_than_the_table(tmp_path: Path, data: Path) -> None:
    old = write_run(tmp_path / "old", data, rate=0.5, seed=1)
    new = write_run(tmp_path / "new", data, rate=0.65, seed=2, model="other")
    page = Page(build(new, old))
    sentence = r"other is better than nano on (\d) of 4 benchmarks, worse on (\d)(?:; no clear difference on (\d))?"
    said = re.search(sentence, page.flat)
    assert said
    overview = page.source[page.source.index('id="scores"') : page.source.index('class="note"')]
    results = re.findall(r'data-name="result"><span class="[a-z]+">(?:<span[^>]*>.</span> )?(\w+)', overview)
    assert len(results) == 4
    assert int(said[1]) == results.count("better")
    assert int(said[2]) == results.count("worse")


def test_what_is_worse_is_said_first(tmp_path: Path, data: Path) -> None:
    old = write_run(tmp_path / "old", data, names=["maps_qa"], rate=0.95)
    new = write_run(tmp_path / "new", data, names=["maps_qa"], rate=0.2, model="other")
    page = Page(build(new, old))
    assert "other is worse than nano on MapsQA" in page.flat
    assert "Clearly worse than nano: MapsQA accuracy" in page.flat


def test_baselines_next_commands_and_images_to_enlarge(tmp_path: Path, data: Path) -> None:
    run = write_run(tmp_path / "run", data, names=["maps_qa"], model="1B", baselines={"always B": {"accuracy": 51.25}})
    page = Page(build(run))
    assert page.source.count('data-name="always B">51.25') == 2  # overview and table
    assert 'minivl ask IMAGE "your question" --model checkpoints/1B' in page.flat
    assert page.tags["dialog"] == 1
    assert page.source.count('class="shot"') == page.tags["img"] == 30


def test_the_metrics_of_every_benchmark_are_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()  # the real benchmarks
    for name in plugins.list_names("benchmarks"):
        benchmark = plugins.find("benchmarks", name)
        if benchmark.EXAMPLE is None:
            continue
        items = list(benchmark.items(benchmark.EXAMPLE.write(tmp_path / name)))
        good = zip(items, benchmark.EXAMPLE.good, strict=True)
        values = benchmark.score(items, [Prediction(item_id=item.id, text=text) for item, text in good]).values
        (tmp_path / name / "score.json").write_text(json.dumps({"benchmark": name, "values": values}))
        [result] = read_evaluation(tmp_path / name)
        explained = {metric for names, _ in explain(result) for metric in names.split(", ")}
        primary = benchmark.PRIMARY_METRIC if benchmark.PRIMARY_METRIC in values else next(iter(values))
        assert primary.rpartition("/")[2] in explained


def write_adaptation(folder: Path, data: Path, *, base: float, adapted: float) -> Path:
    """The folder of an adaptation: two evaluations, the training log between them, and what they are."""
    write_run(folder / "base", data, names=["find_it", "cn_text"], rate=base, seed=1)
    write_run(folder / "adapted", data, names=["find_it", "cn_text"], rate=adapted, seed=2, model="best")
    (folder / "train").mkdir()
    rows = [{"stage": "adapt", "step": i, "loss": 5 - i / 10, "lr": 0.1} for i in range(1, 31)]
    rows[-1] |= {"find_it accuracy": 80.0, "held_out_loss": 2.0}
    (folder / "train" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "train" / "recipe.json").write_text(json.dumps({"name": "adapt", "warmup_ratio": 0.03}))
    facts = {
        **{"domain": "toys", "title": "Toys", "command": "minivl adapt toys", "created": "2026-11-28 10:00:00"},
        **{"base": "base", "adapted": "adapted", "train": "train", "benchmarks": ["find_it"], "probe": ["cn_text"]},
        "model": {"name": "nano", "path": "nano", "sha256": "4f" * 32, "parameters": 8_103_424},
        **{"checkpoint": "train/best", "settings": {"lr": 0.1}, "validation": {"find_it accuracy": 24}},
        "data": {"train": {"rows": 600, "faults": 0}},
        **{"seconds": {"train": 200.0}, "versions": {"torch": "2.13.0"}, "machine": {"device": "cpu"}},
    }
    (folder / "adapt.json").write_text(json.dumps(facts))
    return folder


def test_an_adaptation_is_a_comparison_with_curves(tmp_path: Path, data: Path) -> None:
    run = write_adaptation(tmp_path / "run", data, base=0.1, adapted=0.9)
    page = Page(build(run))
    sentence = r"The adapted model is better than the base on Find-It: accuracy \+\S+ ± \S+ on 30 items\."
    assert re.search(sentence, page.flat)
    assert page.flat.index("The domain: what was learned") < page.flat.index("General ability: what was forgotten")
    assert page.tags["figure"] == 3
    assert "24 validation items." in page.flat
    assert f'minivl ask IMAGE "your question" --model {run}/train/best' in page.flat
    said = page.text.replace("\u00a0", " ")
    for text in ("minivl adapt toys", "train rows600", "train3 min 20 s", "warmup_ratio: 0.03", "parameters8,103,424"):
        assert text in said
    assert page.boxes["other"] > 0
    assert sum(page.states.values()) == 60


def test_what_does_not_see_stands_beside_and_is_named_where_it_is_as_good(tmp_path: Path, data: Path) -> None:
    run = write_adaptation(tmp_path / "run", data, base=0.1, adapted=0.9)
    write_run(run / "blind", data, names=["find_it"], rate=0.88, seed=3, model="best")
    write_run(run / "guess", data, names=["find_it"], rate=0.2, seed=4, model="guess")
    page = Page(build(run))
    assert page.source.count('data-name="blind"') == page.source.count('data-name="guess"') > 2
    assert "Find-It: blind, the adapted model with grey in place of each image, reaches accuracy" in page.flat
    assert "Find-It: guess" not in page.flat
    assert "Blind: the adapted model with grey in place of each image." in page.flat


def test_an_adaptation_that_changed_nothing_is_not_called_better(tmp_path: Path, data: Path) -> None:
    page = Page(build(write_adaptation(tmp_path / "run", data, base=0.5, adapted=0.55)))
    assert "No clear difference between the adapted model and the base on Find-It" in page.flat
    assert "General ability: no clear difference between" in page.flat


def test_the_adapted_models_of_two_adaptations_can_be_compared(tmp_path: Path, data: Path) -> None:
    one = write_adaptation(tmp_path / "one", data, base=0.1, adapted=0.9)
    two = write_adaptation(tmp_path / "two", data, base=0.1, adapted=0.2)
    assert "one against two" in Page(build(one, two)).flat


def test_a_damaged_adaptation_names_file_and_key(tmp_path: Path, data: Path) -> None:
    run = write_adaptation(tmp_path / "run", data, base=0.1, adapted=0.9)
    (run / "adapt.json").write_text('{"base": "base", "adapted": 3}')
    with pytest.raises(ValueError, match=r'adapt.json: "adapted" must be a text'):
        build(run)


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(whole: tuple[Path, Page], scheme: str) -> None:
    blocks = re.findall(r":root \{([^}]*--paper[^}]*)\}", whole[1].source)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[scheme == "dark"]))
    texts = ("ink", "soft", "this", "held", "good", "bad")
    pairs = [(text, back) for text in texts for back in ("paper", "card")]
    for text, back in [*pairs, ("ink", "warn-back"), ("warn", "warn-back"), ("soft", "sunk")]:
        high, low = sorted((luminance(colours[text]), luminance(colours[back])), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, f"{text} on {back}"
