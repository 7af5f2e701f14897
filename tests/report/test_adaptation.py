"""The page: all clips and marks are there, nothing comes from outside, hostile texts stay text, errors name the key."""

from __future__ import annotations

import copy
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mini_internvl.report import adaptation

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{ 7*7 }}"
URL_ATTRIBUTES = {"src", "href", "srcset", "action", "data", "poster", "background", "xlink:href", "formaction"}


class Page(HTMLParser):
    """Counts what a page holds: elements, classes, addresses, and the text of each table cell."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.classes: Counter[str] = Counter()
        self.addresses: list[str] = []
        self.images: list[dict[str, str]] = []
        self.ids: list[str] = []
        self.text = ""
        self.scripted: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags[tag] += 1
        self.classes.update(values.get("class", "").split())
        self.addresses += [value for name, value in values.items() if name in URL_ATTRIBUTES]
        self.scripted += [name for name in values if name.startswith("on")]
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "img":
            self.images.append(values)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(
    finished: tuple[Path, dict[str, Any]], metrics: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Page:
    """The page of the made-up run, its log included."""
    folder, content = finished
    run = tmp_path_factory.mktemp("run")
    (run / "frames").symlink_to(folder / "frames")
    (run / "adapt.json").write_text(json.dumps(content), encoding="utf-8")
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in metrics), encoding="utf-8")
    return Page(adaptation.build(run))


def test_nothing_comes_from_outside(page: Page) -> None:
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not re.search(r"url\(|@import|@font-face", page.source)
    assert "default-src 'none'" in page.source
    assert len(page.source.encode()) < 3_000_000


def test_links_inside_the_page_lead_somewhere(page: Page) -> None:
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_every_clip_with_frames_questions_and_marks(page: Page, result: dict[str, Any]) -> None:
    questions = [question for clip in result["clips"] for question in clip["questions"]]
    marks = Counter(question[f"{side}_right"] for question in questions for side in ("base", "adapted"))
    assert page.classes["clip"] == 12
    assert page.classes["question"] == len(questions) == 48
    assert page.text.count("✓ right") == marks[True]
    assert page.text.count("✗ wrong") == marks[False]
    assert len(page.images) == 48
    assert all(re.fullmatch(r"Image \d of 4 of test-\d{6}", image["alt"]) for image in page.images)
    for text in {question[key] for question in questions for key in ("question", "truth", "base", "adapted")}:
        assert text in page.text


def test_a_mark_stands_with_its_answer(result: dict[str, Any], write: Callable[..., Path]) -> None:
    question = {"kind": "count", "question": "How many?", "truth": "three", "base": "two", "adapted": "3!"}
    result["clips"] = [
        {"id": "one", "frames": [], "questions": [{**question, "base_right": False, "adapted_right": True}]},
        {"id": "two", "frames": [], "questions": [question]},
    ]
    page = Page(adaptation.build(write(result)))
    assert "CountHowmany?truththreebasetwo✗wrongadapted3!✓right" in re.sub(r"\s", "", page.text)
    assert page.classes["learned"] == 1
    assert page.classes["unjudged"] == 1
    assert page.text.count("✓ right") == page.text.count("✗ wrong") == 1


def test_filter_counts_every_question(page: Page) -> None:
    shown = page.classes
    counts = [shown[name] for name in ("question", "learned", "lost", "wrong", "kept")]
    assert counts[0] == sum(counts[1:])
    legend = page.text[page.text.index("Show questions") :]
    assert [int(n) for n in re.findall(r"\b(\d+)\b", legend)[:5]] == counts


def test_table_has_all_columns(page: Page, result: dict[str, Any]) -> None:
    table = adaptation.rows(result)
    assert len(table) == len(result["columns"]) == 19
    assert [row.better for row in table] == [True] * 19
    assert page.text.count("✓ better") == 19
    assert page.text.count("lower is better") == 2
    assert "412.37" in page.text


def test_rows_follow_the_direction(result: dict[str, Any]) -> None:
    values = result["benchmarks"]["bddx_signals"]["adapted"]["values"]
    values |= {"speed/RMSE": 50.0, "speed/A0.1": 0.67, "speed/A5.0": None}
    rows = {row.name: row for row in adaptation.rows(result)}
    assert rows["Speed RMSE"].better is False
    assert rows["Speed A0.1"].better is None
    assert rows["Speed A5.0"].better is None
    assert math.isnan(rows["Speed A5.0"].adapted)
    assert rows["Turning angle RMSE"].better is True


def test_traces_of_smoothing_are_no_difference(result: dict[str, Any]) -> None:
    for side, value in (("base", 4.6e-12), ("adapted", 6.4e-16)):
        result["benchmarks"]["bddx_text"][side]["values"]["description/B4"] = value
    row = next(row for row in adaptation.rows(result) if row.name == "Description B4")
    assert row.equal
    assert row.better is None
    assert "Unchanged on 1 column: Description B4." in adaptation.caveats(result)


def test_verdict_when_all_is_better(page: Page, result: dict[str, Any]) -> None:
    expected = "The adapted model is better than the base on 19 of 19 columns; "
    expected += "general ability changed from 71.0 to 69.5 (-2.1 %)."
    assert adaptation.verdict(result) == expected
    assert expected in page.text
    assert "Worse than before" not in page.text
    assert page.classes["mixed"] == 0


def test_verdict_tells_what_became_worse(result: dict[str, Any], write: Callable[..., Path]) -> None:
    result["benchmarks"]["bddx_signals"]["adapted"]["values"] |= {"speed/A5.0": 12.0, "speed/A0.1": None}
    result["general"]["adapted"]["words"] = 55.0
    page = Page(adaptation.build(write(result)))
    assert "better than the base on 17 of 19 columns" in page.text
    assert "Worse than before on 1 column: Speed A5.0 (18.00 to 12.00)." in page.text
    assert "Not compared, because a value is missing, on 1 column: Speed A0.1." in page.text
    assert "fell by more than 10 % of its value on: words (70.0 to 55.0)." in page.text
    assert page.classes["mixed"] == 1
    assert "✗ worse" in page.text


@pytest.mark.parametrize(
    ("base", "adapted", "end"),
    [(0.0, 5.0, "changed from 0.0 to 5.0."), (40.0, 40.0, "stayed at 40.0."), (50.0, 60.0, "50.0 to 60.0 (+20.0 %).")],
)
def test_verdict_on_general_ability(result: dict[str, Any], base: float, adapted: float, end: str) -> None:
    result["general"]["mean"] = {"base": base, "adapted": adapted}
    assert adaptation.verdict(result).endswith(end)


def test_curves(page: Page) -> None:
    assert page.classes["chart"] == 5
    for title in ("Loss", "Validation: domain score", "Validation: description CIDEr", "Learning rate"):
        assert title in page.text
    assert page.source.count('role="img"') == 5


def test_no_curves_without_a_log(result: dict[str, Any], write: Callable[..., Path]) -> None:
    page = Page(adaptation.build(write(result)))
    assert page.classes["chart"] == 0
    assert "#training" not in page.addresses


def test_what_is_needed_to_repeat_the_run(page: Page, result: dict[str, Any]) -> None:
    wanted = [result["command"], result["model"]["sha256"], result["adapted_sha256"], result["data"]["sha256"]]
    wanted += ["8,103,424 parameters", "train 600", "torch 2.13.0+cpu", "threads 2", "total 12\u00a0min\u00a036\u00a0s"]
    wanted += ["run 0, driving-sim 0, shapes 7, words 7", "warmup_ratio: 0.03"]
    assert [text for text in wanted if text not in page.text] == []


def test_hostile_texts_stay_text(
    result: dict[str, Any], metrics: list[dict[str, Any]], write: Callable[..., Path]
) -> None:
    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoil(part) for key, part in value.items()}
        if isinstance(value, list):
            return [spoil(part) for part in value]
        return HOSTILE + value if isinstance(value, str) else value

    tags = Page(adaptation.build(write(result, metrics))).tags
    result["benchmarks"] = {HOSTILE + name: sides for name, sides in result["benchmarks"].items()}
    result["columns"] = [
        {**spoil(column), "key": column["key"], "benchmark": HOSTILE + column["benchmark"]}
        for column in result["columns"]
    ]
    result["general"] = {
        side: {HOSTILE + key: value for key, value in values.items()} if side != "mean" else values
        for side, values in result["general"].items()
    }
    kept = {key: result[key] for key in ("benchmarks", "columns", "general")}
    clips = spoil(result["clips"])
    for clip, original in zip(clips, result["clips"], strict=True):
        clip["frames"] = original["frames"]
    rows = [{**row, "stage": HOSTILE + str(row["step"] > 200), HOSTILE: 1.0} for row in metrics]
    page = Page(adaptation.build(write({**spoil(result), **kept, "clips": clips}, rows)))
    assert page.tags["script"] == 0
    assert page.tags["img"] == tags["img"]
    assert not page.scripted
    assert "&lt;script&gt;" in page.source
    assert "{{ 7*7 }}" in page.text
    assert HOSTILE in page.text


def test_long_answers_are_cut_and_say_so(result: dict[str, Any], write: Callable[..., Path]) -> None:
    result["clips"][0]["questions"][0]["adapted"] = "x" * 5000
    page = Page(adaptation.build(write(result)))
    assert "… (4,400 more characters)" in page.text
    assert "x" * 601 not in page.text


def test_an_empty_answer_is_named(result: dict[str, Any], write: Callable[..., Path]) -> None:
    question = result["clips"][0]["questions"][0]
    question |= {"base": "", "base_right": False}
    assert "no answer✗ wrong" in Page(adaptation.build(write(result))).text.replace("\n", "")


def test_only_the_needed_keys(result: dict[str, Any], write: Callable[..., Path]) -> None:
    least = {"model": {"name": "nano"}, "benchmarks": {}, "columns": []}
    page = Page(adaptation.build(write(least)))
    assert "better than the base on 0 of 0 columns; general ability was not measured." in page.text
    assert page.text.count("not recorded") == 5


def test_another_domain(result: dict[str, Any], write: Callable[..., Path]) -> None:
    for key in ("general", "seconds", "recipe"):
        del result[key]
    sides = {"base": {"values": {"accuracy": 40.0}}, "adapted": {"values": {"accuracy": 55.0}}}
    result["benchmarks"] = {"rsvqa": sides}
    result["columns"] = [{"benchmark": "rsvqa", "key": "accuracy", "higher_is_better": True, "unit": "%"}]
    page = Page(adaptation.build(write(result, [{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan}])))
    assert "1 of 1 columns" in page.text
    assert "accuracy, %" in page.text
    assert not {"cider", "bddx", "bdd-x"} & set(page.text.replace(result["title"], "").lower().split())


def test_a_missing_frame_is_named_in_its_place(
    result: dict[str, Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no image")
    result["clips"][0]["frames"][1:3] = ["gone/2.png", "text.png"]
    page = Page(adaptation.build(write(result)))
    assert len(page.images) == 46
    assert "image not found: gone/2.png" in page.text
    assert "image not found: text.png" in page.text


def test_absolute_frame_paths(result: dict[str, Any], write: Callable[..., Path], tmp_path: Path) -> None:
    for clip in result["clips"]:
        clip["frames"] = [str(tmp_path / frame) for frame in clip["frames"]]
    assert len(Page(adaptation.build(write(result))).images) == 48


def test_writes_whole_or_not_at_all(result: dict[str, Any], write: Callable[..., Path], tmp_path: Path) -> None:
    first = adaptation.build(write(result)).read_text(encoding="utf-8")
    broken = copy.deepcopy(result)
    del broken["model"]
    (tmp_path / "adapt.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="model"):
        adaptation.build(tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == first
    assert [path.name for path in tmp_path.glob("report*")] == ["report.html"]


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(page: Page, scheme: str) -> None:
    blocks = re.findall(r":root \{([^}]*--paper[^}]*)\}", page.source)
    assert len(blocks) == 2
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[scheme == "dark"]))
    pairs = [(text, back) for text in ("ink", "soft", "adapted", "held", "good", "bad") for back in ("paper", "card")]
    pairs += [
        ("ink", "good-back"),
        ("ink", "warn-back"),
        ("good", "good-back"),
        ("warn", "warn-back"),
        ("soft", "sunk"),
    ]
    for text, back in pairs:
        high, low = sorted((luminance(colours[text]), luminance(colours[back])), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5, f"{text} on {back}"
