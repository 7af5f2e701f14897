"""Every benchmark keeps the contract of mini_internvl/benchmarks/__init__.py; a new file is covered by its EXAMPLE."""

from __future__ import annotations

import base64
import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mini_internvl import plugins
from mini_internvl.commands import _evaluation as command
from mini_internvl.evaluate import outputs
from mini_internvl.inputs.images import image_dimensions
from mini_internvl.inputs.messages import image_parts, normalise
from mini_internvl.inputs.openai import to_wire
from mini_internvl.records import Item, Prediction, Score

NAMES = plugins.list_names("benchmarks")
WITH_EXAMPLE = [name for name in NAMES if plugins.find("benchmarks", name).EXAMPLE is not None]
SURROGATE_PAIR, LONG = "\U0001f600\u2028\x00 ", "yes, 12.5 (A) " * 2000


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name -> folder of its example's files, written once."""
    known: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in known:
            known[name] = plugins.find("benchmarks", name).EXAMPLE.write(tmp_path_factory.mktemp(name))
        return known[name]

    return folder


def answered(items: Sequence[Item], texts: Sequence[str]) -> list[Prediction]:
    return [Prediction(item_id=item.id, text=text) for item, text in zip(items, texts, strict=True)]


def judge_of(benchmark: ModuleType) -> Callable[..., str]:
    """A judge that replies as the example says."""

    def judge(prompt: str, *, temperature: float = 0.0, system: str = "") -> str:
        return judge_reply(benchmark, prompt)

    return judge


def judge_reply(benchmark: ModuleType, prompt: str) -> str:
    return next((reply for part, reply in benchmark.EXAMPLE.judge.items() if part in prompt), "")


def scored_splits(benchmark: ModuleType) -> list[str]:
    return [split for split in benchmark.SPLITS if split not in getattr(benchmark, "UNSCORED", ())]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_benchmark_says_of_itself(name: str) -> None:
    benchmark = plugins.find("benchmarks", name)
    assert benchmark.__doc__
    assert benchmark.TITLE
    assert benchmark.SPLITS
    assert set(getattr(benchmark, "UNSCORED", ())) < set(benchmark.SPLITS)
    assert benchmark.SPLITS[0] not in getattr(benchmark, "UNSCORED", ())
    assert all(sentence.endswith(".") for sentence in benchmark.PROTOCOLS.values())
    for protocol in ("no such protocol",):
        with pytest.raises(ValueError, match="no such protocol"):
            list(benchmark.items(Path(), benchmark.SPLITS[0], protocol=protocol))
    with pytest.raises(ValueError, match="no such split"):
        list(benchmark.items(Path(), "no such split"))


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_items_are_whole_questions(name: str, folders: Callable[[str], Path]) -> None:
    benchmark = plugins.find("benchmarks", name)
    for split in benchmark.SPLITS:
        for protocol in benchmark.PROTOCOLS:
            try:
                items = list(benchmark.items(folders(name), split, protocol=protocol))
            except ValueError:  # the example need not have every split's file
                assert split != benchmark.SPLITS[0]
                continue
            assert items or split != benchmark.SPLITS[0]
            assert len({item.id for item in items}) == len(items)
            for item in items:
                check_item(item)


def check_item(item: Item) -> None:
    turn = normalise(item.messages)[-1]
    assert turn.role == "user"
    assert turn.text.strip()
    for part in image_parts(item.messages):
        assert image_dimensions(part.source) > (0, 0)
    assert json.loads(json.dumps(item.reference)) == item.reference
    assert item.max_new_tokens >= 1
    assert item.max_tiles is None or item.max_tiles >= 1


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_good_answers_score_better_than_bad_ones(name: str, folders: Callable[[str], Path]) -> None:
    benchmark = plugins.find("benchmarks", name)
    items = list(benchmark.items(folders(name)))
    example = benchmark.EXAMPLE
    assert len(items) == len(example.good) == len(example.bad)
    assert all(benchmark.right(item, text) for item, text in zip(items, example.good, strict=True))
    assert not any(benchmark.right(item, text) for item, text in zip(items, example.bad, strict=True))
    judge = judge_of(benchmark) if example.judge else None
    best = benchmark.score(items, answered(items, example.good), judge=judge)
    worst = benchmark.score(items, answered(items, example.bad), judge=judge)
    lower_is_better = getattr(benchmark, "LOWER_IS_BETTER", ())
    assert set(lower_is_better) <= set(best.values)
    assert best.values[benchmark.PRIMARY_METRIC] > worst.values[benchmark.PRIMARY_METRIC]
    if benchmark.PRIMARY_METRIC not in lower_is_better:
        assert best.values[benchmark.PRIMARY_METRIC] <= getattr(benchmark, "PRIMARY_METRIC_MAX", 100.0) + 1e-9
    for score in (best, worst):
        check_score(score, name, items)


def check_score(score: Score, name: str, items: Sequence[Item]) -> None:
    assert (score.benchmark, score.items) == (name, len(items))
    assert all(isinstance(value, float) for value in score.values.values())
    assert set(score.errors) <= set(score.values)
    assert set(score.counts) <= set(score.values)
    json.dumps([dict(score.values), dict(score.errors), dict(score.counts), dict(score.notes)], allow_nan=False)


def stands_alone(item: Item) -> bool:
    """Whether the primary metric of one item is 0 or more by its answer alone."""
    several_right = isinstance(item.reference["answer"], list) and len(item.reference["answer"]) > 1
    return not several_right and item.reference.get("index", 0) < 1_000_000  # else a rotation without its first row


@pytest.mark.parametrize("name", ["ai2d", "chartqa", "gmai_mmbench", "mathvista", "mmbench_en", "mmmu", "ocrbench"])
def test_an_answer_alone_is_marked_as_its_protocol_scores_it(name: str, folders: Callable[[str], Path]) -> None:
    benchmark = plugins.find("benchmarks", name)
    differ = False
    for protocol in benchmark.PROTOCOLS:
        items = list(benchmark.items(folders(name), protocol=protocol))
        asked = [*zip(items, benchmark.EXAMPLE.good, strict=True), *zip(items, benchmark.EXAMPLE.bad, strict=True)]
        others = ("B is what I see in the image that is shown here", "Answer: B")
        asked += [(item, text) for item in items for text in others]
        for item, text in asked:
            if "answer" in item.reference and not stands_alone(item):
                continue
            given = [Prediction(item_id=item.id, text=text)]
            found = benchmark.score([item], given, protocol=protocol).values[benchmark.PRIMARY_METRIC]
            marks = [outputs.rows(benchmark, [item], given, protocol=wanted)[0]["right"] for wanted in (protocol, None)]
            assert marks[0] is (found > 0), (protocol, item.id, text)
            differ |= marks[0] != marks[1]
    assert differ or name == "ocrbench"  # whose protocols call the same items of the example formulas


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_any_answer_can_be_scored_with_every_protocol(name: str, folders: Callable[[str], Path]) -> None:
    benchmark = plugins.find("benchmarks", name)
    for protocol in benchmark.PROTOCOLS:
        items = list(benchmark.items(folders(name), protocol=protocol))
        odd = answered(items, [[SURROGATE_PAIR, LONG, "", "A", "-1e400"][i % 5] for i in range(len(items))])
        foreign = Prediction(item_id="of another benchmark", text="A")
        for predictions in (odd, odd[:1], [], [*odd, foreign]):
            check_score(benchmark.score(items, predictions, protocol=protocol), name, items)


@pytest.mark.parametrize("name", [n for n in WITH_EXAMPLE if getattr(plugins.find("benchmarks", n), "UNSCORED", ())])
def test_splits_without_published_answers_are_exported(
    name: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    benchmark = plugins.find("benchmarks", name)
    for split in benchmark.UNSCORED:
        items = list(benchmark.items(folders(name), split))
        paths = benchmark.export(items, answered(items, ["A"] * len(items)), tmp_path / split)
        assert paths
        assert all(path.stat().st_size for path in paths)


def content_of(messages: Sequence[Any]) -> str:
    """A request's texts and images, by which a question is known again."""
    return json.dumps([[turn["role"], turn["content"]] for turn in messages])


def contents(items: Sequence[Item]) -> list[str]:
    """The content of each item's request."""
    return [content_of(to_wire(item.messages)) for item in items]


def evaluated(settings: command.Settings, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What ``minivl eval --json`` prints, without a failure."""
    code = command.run(settings, lambda: False, as_json=True)
    out, err = capsys.readouterr()
    assert code == 0, err
    result: dict[str, Any] = json.loads(out)
    return result


def test_a_model_that_knows_the_answers_gets_the_full_score(
    fake_server: ModuleType,
    folders: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every benchmark through the command line's own path, with a server as the model and as the judge."""
    known: dict[str, str] = {}

    def reply(body: dict[str, Any]) -> str:
        if body["model"] == "judge":
            return judge_reply(plugins.find("benchmarks", present), fake_server.prompt(body))
        return known[content_of(body["messages"])]

    with fake_server.serve(reply) as server:
        for name in WITH_EXAMPLE:
            present = name
            benchmark = plugins.find("benchmarks", name)
            items = list(benchmark.items(folders(name)))
            known = dict(zip(contents(items), benchmark.EXAMPLE.good, strict=True))
            settings = command.Settings(
                benchmarks=[name],
                model=server.model,
                data=folders(name),
                output=tmp_path / "run",
                judge=f"openai:{server.url}#judge" if benchmark.EXAMPLE.judge else "",
                report=False,
            )
            [result] = evaluated(settings, capsys)["results"]
            # Two items may ask the same of the same image; a model gives both the same answer.
            texts = [known[content].strip() for content in contents(items)]
            judge = judge_of(benchmark) if benchmark.EXAMPLE.judge else None
            best = benchmark.score(items, answered(items, texts), judge=judge)
            assert result["primary_value"] == best.values[benchmark.PRIMARY_METRIC], name
            assert result["partial"] == best.partial, name
            rows = (tmp_path / "run" / name / "predictions.jsonl").read_text(encoding="utf-8").split("\n")
            assert [json.loads(row)["id"] for row in rows if row] == [item.id for item in items]


def test_nano_answers_every_benchmark(
    folders: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped model, loaded once: whatever it says is kept and scored."""
    subject = command.load_evaluated(None, device="cpu", dtype="float32")
    monkeypatch.setattr(command, "load_evaluated", lambda *given, **more: subject)
    for name in NAMES:
        data = folders(name) if name in WITH_EXAMPLE else None
        kinds = {"kinds": "shapes"} if data is None else {}
        settings = command.Settings(
            benchmarks=[name], data=data, limit=3, output=tmp_path / "run", report=False, **kinds
        )
        [result] = evaluated(settings, capsys)["results"]
        assert result["benchmark"] == name
        assert result["primary_metric"] in result["values"] or result["partial"]
        assert 1 <= result["items"] <= result["of"]
        assert (tmp_path / "run" / name / "score.json").is_file()


def test_images_travel_unchanged(folders: Callable[[str], Path]) -> None:
    name = WITH_EXAMPLE[0]
    item = next(iter(plugins.find("benchmarks", name).items(folders(name))))
    source = image_parts(item.messages)[0].source
    raw = source.read() if hasattr(source, "read") else Path(source).read_bytes()
    [turn] = to_wire(item.messages)
    url = next(part["image_url"]["url"] for part in turn["content"] if part["type"] == "image_url")
    assert base64.b64decode(url.partition(",")[2]) == raw


@pytest.mark.parametrize("name", ["mmbench_en", "mmbench_cn", "bddx_text", "drivelm"])
def test_a_sample_takes_together_what_counts_together(name: str, tmp_path: Path) -> None:
    benchmark = plugins.find("benchmarks", name)
    items = list(benchmark.items(benchmark.EXAMPLE.write(tmp_path)))
    groups: dict[str, set[str]] = {}
    for item in items:
        groups.setdefault(benchmark.together(item), set()).add(item.id)
    assert max(map(len, groups.values())) > 1
    for seed in range(5):
        taken = {item.id for item in outputs.sample(benchmark, items, 2, seed)}
        assert 2 <= len(taken) < len(items) or len(groups) == 1
        assert all(members <= taken or not members & taken for members in groups.values())


@pytest.mark.parametrize("name", WITH_EXAMPLE)
def test_help_shows_how_score_is_called(name: str) -> None:
    score = plugins.find("benchmarks", name).score
    assert list(inspect.signature(score).parameters) == ["items", "predictions", "protocol", "judge"]
    assert score.__doc__
