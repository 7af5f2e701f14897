"""The paper's tables: published numbers, computed averages, rows of one's own runs, and every format."""

from __future__ import annotations

import csv
import io
import json
import re
import sys

import pytest

from mini_internvl import cli, plugins
from mini_internvl.evaluate import formats, published, tables
from mini_internvl.evaluate.paper_tables import PAPER_TABLES
from mini_internvl.records import Prediction


def write_score(
    run, folder, values, *, primary_metric="accuracy", split="test", model="mine", sha256="ab" * 32, **other
):
    """A score as ``minivl eval`` leaves it."""
    path = run / folder / "score.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = {
        "benchmark": folder,
        "title": folder.upper(),
        "split": split,
        "protocol": None,
        "primary_metric": primary_metric,
        "values": values,
        "errors": {},
        "counts": {},
        "partial": "",
        "items": 100,
        "model": {"name": model, "sha256": sha256},
        "limit": None,
    }
    path.write_text(json.dumps(raw | other), encoding="utf-8")
    return run


def table(name, *runs, number=0):
    return tables.build(name, [tables.read_run(run) for run in runs])[number]


def row(filled, name):
    found = next(row for row in filled.rows if row.name == name)
    return {formats._full_label(column): cell for column, cell in zip(filled.columns, found.cells, strict=True)}


@pytest.mark.parametrize(
    ("model", "average", "share"),
    [
        ("Claude3.5-Sonnet", "81.7", 100.36689419795225),
        ("InternVL2-Llama3-76B", "81.4", 100.0),
        ("Mini-InternVL-1B", "60.6", 74.47098976109216),
        ("Mini-InternVL-2B", "66.8", 82.07508532423209),
        ("Mini-InternVL-4B", "72.8", 89.39249146757679),
    ],
)
def test_published_averages_follow_from_the_published_numbers(model, average, share):
    cells = row(table("general"), model)
    assert cells["Avg."].text == average
    assert cells["% of 76B"].value == pytest.approx(share, abs=1e-9)
    assert not any(average == str(value) for r in published.GENERAL for value in r.values if r.model == model)


def test_an_average_without_every_benchmark_says_so():
    filled = table("general")
    marks = row(filled, "Claude3.5-Sonnet")["Avg."].footnotes
    assert dict(filled.notes)[marks[0]] == "average of 8 of 9 benchmarks"
    assert row(filled, "Mini-InternVL-4B")["Avg."].footnotes == ()


def test_every_sheet_has_a_number_or_a_dash_for_every_column():
    for name, sheets in PAPER_TABLES.items():
        for paper_table in sheets:
            assert paper_table.rows, name
            for published_row in paper_table.rows:
                assert len(published_row.values) == len(paper_table.columns), (name, published_row.model)
                assert published_row.source


COLUMNS = [
    column
    for sheets in PAPER_TABLES.values()
    for paper_table in sheets
    for column in paper_table.columns
    if column.benchmark
]


@pytest.mark.parametrize("name", sorted({column.benchmark for column in COLUMNS}))
def test_columns_name_figures_and_splits_that_the_benchmark_has(name, tmp_path):
    benchmark = plugins.find("benchmarks", name)
    folder = benchmark.EXAMPLE.write(tmp_path)
    items = list(benchmark.items(folder))
    predictions = [Prediction(item_id=i.id, text=t) for i, t in zip(items, benchmark.EXAMPLE.good, strict=False)]
    replies = benchmark.EXAMPLE.judge

    def judge(prompt, *, temperature=0.0, system=""):
        return next((reply for part, reply in replies.items() if part in prompt), "")

    values = benchmark.score(items, predictions, judge=judge if replies else None).values
    known = {*benchmark.SPLITS, *getattr(benchmark, "UNSCORED", ())}
    for column in (column for column in COLUMNS if column.benchmark == name):
        assert (column.metric or benchmark.PRIMARY_METRIC) in values, (column.label, sorted(values))
        assert not column.splits or known & set(column.splits), f"{column.label}: the splits are {sorted(known)}"


def test_a_run_fills_its_columns_and_its_average(tmp_path):
    write_score(tmp_path, "chartqa", {"accuracy": 70.25})
    write_score(tmp_path, "ocrbench", {"score": 700.0}, primary_metric="score")
    filled = table("general", tmp_path)
    cells = row(filled, "mine")
    assert (cells["ChartQA"].text, cells["OCRBench"].text, cells["MMMU"].text) == ("70.2", "700", "-")
    assert cells["Avg."].value == pytest.approx((70.25 + 70) / 2)
    assert [dict(filled.notes)[mark] for mark in cells["Avg."].footnotes] == ["average of 2 of 9 benchmarks"]
    assert not next(r for r in filled.rows if r.name == "mine").published


def test_what_cannot_be_compared_is_marked(tmp_path):
    write_score(tmp_path, "chartqa", {"accuracy": 70.0}, limit=50, items=50)
    write_score(tmp_path, "docvqa", {"accuracy": 60.0}, split="val")
    write_score(tmp_path, "mathvista", {"accuracy": 30.0}, split="testmini", partial="without a\njudge")
    filled = table("general", tmp_path)
    cells, notes = row(filled, "mine"), dict(filled.notes)
    said = {label: [notes[mark] for mark in cell.footnotes] for label, cell in cells.items() if cell.footnotes}
    assert said["ChartQA"] == ["a part of the benchmark: 50 items"]
    assert said["DocVQA"] == ["split val; the paper's is test"]
    assert said["MathVista"] == ["without a judge"]
    assert "average with marked scores in it" in said["Avg."]
    assert len(set(notes)) == len(notes)


def test_other_data_in_an_official_shape_is_marked(tmp_path):
    own = write_score(tmp_path / "own", "dior_rsvg", {"accuracy": 95.0}, of=20, items=20)
    official = write_score(tmp_path / "official", "dior_rsvg", {"accuracy": 80.0}, of=7500, items=7500, model="other")
    found = table("remote", own, official)
    sentences = dict(found.notes)
    marks = {
        row.name: [sentences[m] for cell in row.cells for m in cell.footnotes]
        for row in found.rows
        if not row.published
    }
    assert marks == {"mine": ["other data: 20 items where the official split has 7,500"], "other": []}


def test_another_tile_limit_is_marked(tmp_path):
    found = table("general", write_score(tmp_path, "chartqa", {"accuracy": 50.0}, of=2500, tiles_setting=3))
    assert "at most 3 tiles, not the benchmark's own limit" in dict(found.notes).values()


@pytest.mark.parametrize("name", ["=1+1", "+x", "-x", "@SUM(A1)"])
def test_no_name_is_a_formula_in_a_spreadsheet(tmp_path, name):
    written = formats.comma_separated(table("general", write_score(tmp_path, "chartqa", {"accuracy": 5.0}, model=name)))
    assert [row["model"] for row in csv.DictReader(io.StringIO(written))][-1] == f"'{name}"


def test_latex_can_be_referred_to():
    written = formats.latex(table("remote"))
    assert r"\label{tab:remote-sensing}" in written
    assert r"\toprule" in written
    assert r"\bottomrule" in written
    assert "hline" not in written


def test_another_protocol_is_marked_and_the_papers_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_first_protocol", lambda benchmark: "internvl")
    write_score(tmp_path / "a", "chartqa", {"accuracy": 70.0}, protocol="vlmevalkit", model="other")
    write_score(tmp_path / "b", "chartqa", {"accuracy": 70.0}, protocol="internvl")
    filled = table("general", tmp_path / "a", tmp_path / "b")
    notes = dict(filled.notes)
    assert [notes[m] for m in row(filled, "other")["ChartQA"].footnotes] == [
        "protocol vlmevalkit; the paper's is internvl"
    ]
    assert row(filled, "mine")["ChartQA"].footnotes == ()


def test_the_papers_protocol_goes_before_another(tmp_path):
    write_score(tmp_path, "chartqa", {"accuracy": 70.0}, protocol="standard-order")
    write_score(tmp_path / "chartqa", "paper", {"accuracy": 72.0}, benchmark="chartqa", protocol="paper")
    filled = table("general", tmp_path)
    assert row(filled, "mine")["ChartQA"].value == 72.0
    assert not any("protocol" in sentence for _, sentence in filled.notes)


def test_splits_of_one_benchmark_keep_apart_and_runs_of_one_model_share_a_row(tmp_path):
    metrics = {"type/presence": 90.0, "type/comp": 91.0, "accuracy": 90.5}
    write_score(tmp_path / "one", "rsvqa_hr", metrics, split="test1")
    write_score(tmp_path / "two", "rsvqa_hr", {name: value - 5 for name, value in metrics.items()}, split="test2")
    filled = table("remote", tmp_path / "one", tmp_path / "two")
    assert [r.name for r in filled.rows if not r.published] == ["mine"]
    cells = row(filled, "mine")
    assert (cells["RSVQA-HR test1 presence"].value, cells["RSVQA-HR test2 presence"].value) == (90.0, 85.0)
    assert cells["RSVQA-HR test2 presence"].footnotes == ()


def test_runs_that_fill_the_same_columns_keep_their_rows(tmp_path):
    write_score(tmp_path / "one", "chartqa", {"accuracy": 1.0})
    write_score(tmp_path / "two", "chartqa", {"accuracy": 2.0})
    names = [r.name for r in table("general", tmp_path / "one", tmp_path / "two").rows if not r.published]
    assert names == [f"mine ({tmp_path / 'one'})", f"mine ({tmp_path / 'two'})"]


def test_a_benchmarks_own_folder_and_split_folders_are_runs_too(tmp_path):
    write_score(tmp_path, "chartqa", {"accuracy": 3.0})
    assert [score.benchmark for score in tables.read_run(tmp_path / "chartqa")] == ["chartqa"]
    (tmp_path / "rsvqa_hr").mkdir()
    (tmp_path / "chartqa").rename(tmp_path / "rsvqa_hr" / "test1")
    assert len(tables.read_run(tmp_path)) == 1


def test_drivelm_is_printed_as_the_paper_prints_it(tmp_path):
    write_score(tmp_path, "drivelm", {"final": 0.575, "accuracy": 0.7, "chatgpt": 60.0, "match": 40.0}, split="val")
    cells = row(table("drivelm", tmp_path), "mine")
    assert [cell.text for cell in cells.values()] == ["0.5750", "0.7000", "60.00", "40.00"]


def test_a_figure_that_a_partial_score_lacks_says_why(tmp_path):
    write_score(tmp_path, "drivelm", {"accuracy": 0.7}, split="val", partial="no judge")
    filled = table("drivelm", tmp_path)
    cells = row(filled, "mine")
    assert [cell.text for cell in cells.values()] == ["-", "0.7000", "-", "-"]
    assert all(cell.footnotes == ("a",) for cell in cells.values())
    assert filled.notes == (("a", "no judge"),)


def test_figures_that_could_not_be_computed_are_no_numbers(tmp_path):
    write_score(tmp_path, "bddx_text", {"description/CIDEr": None, "description/B4": float("nan"), "full/B4": 3.0})
    cells = row(table("bddx", tmp_path), "mine")
    assert [cells[f"{name} B4"].text for name in ("description", "full")] == ["-", "3.00"]
    write_score(tmp_path / "b", "chartqa", {"x": 2.0}, primary_metric={"name": "x", "value": 2.0})
    assert row(table("general", tmp_path / "b"), "mine")["ChartQA"].value == 2.0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds no JSON object"),
        ('{"benchmark": "chartqa"}', "'values'"),
        ("\xff", "score.json"),
    ],
)
def test_a_broken_score_is_named(tmp_path, content, said):
    path = tmp_path / "chartqa" / "score.json"
    path.parent.mkdir()
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=said) as caught:
        tables.read_run(tmp_path)
    assert str(path) in str(caught.value)
    assert str(caught.value).endswith("; score the benchmark again")


def test_folders_without_scores_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no"):
        tables.read_run(tmp_path)
    with pytest.raises(ValueError, match="is not there"):
        tables.read_run(tmp_path / "none")
    with pytest.raises(ValueError, match="known: general, remote"):
        tables.build("generall")


NASTY = "a|b_c*d <i>&e\\f%#$~^{}[x](y)`z`\n第二"


@pytest.fixture
def nasty(tmp_path):
    write_score(tmp_path, "chartqa", {"accuracy": 50.0}, model=NASTY, partial="50 % | <b> & _")
    return table("general", tmp_path)


def test_markdown_stays_a_table(nasty):
    lines = [line for line in formats.markdown(nasty).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(nasty.rows)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(nasty.columns) + 2}
    assert "<i>" not in lines[-1]
    assert "<b>" not in formats.markdown(nasty)
    assert "第二" in lines[-1]


def test_latex_has_one_cell_for_each_column_and_balanced_braces(nasty):
    written = formats.latex(nasty)
    body = written[written.index("\\toprule") : written.index("\\end{tabular}")]
    rows = [line for line in body.splitlines() if "&" in line]
    assert len(rows) == 1 + len(nasty.rows)
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {len(nasty.columns)}
    bare = re.sub(r"\\[{}\\]", "", written)
    depth = 0
    for sign in bare:
        depth += (sign == "{") - (sign == "}")
        assert depth >= 0
    assert depth == 0
    assert not re.search(r"(?<!\\)[%#$]", written.split("\n", 1)[1])
    assert not re.search(r"(?<!\\)[_^~]", written)


def test_latex_groups_span_their_columns():
    written = formats.latex(table("remote"))
    assert r"\multicolumn{4}{c}{RSVQA-LR}" in written
    assert r"\cmidrule(lr){2-5} \cmidrule(lr){6-8} \cmidrule(lr){9-11}" in written


def test_csv_reads_back(nasty):
    rows = list(csv.DictReader(io.StringIO(formats.comma_separated(nasty))))
    assert len(rows) == len(nasty.rows)
    own = rows[-1]
    assert own["published"] == "no"
    assert own["ChartQA"] == "50"
    assert "ChartQA: 50 % | <b> & _" in own["notes"]
    assert float(rows[2]["Avg."]) == pytest.approx(60.6111111, abs=1e-6)


def test_text_stands_in_columns(nasty):
    lines = formats.text(nasty).splitlines()
    rule = next(line for line in lines if line.startswith("---"))
    first = lines.index(rule)
    assert {formats._width(line) for line in lines[first + 1 : first + 6]} <= {
        len(rule),
        *range(len(rule) - 8, len(rule)),
    }
    places = {line.index(".", 30) for line in lines[first + 1 : first + 4]}
    assert len(places) == 1
    assert lines[-1].startswith("published: ")


def test_footnote_letters_go_on_after_z():
    assert [tables._letter(n) for n in (0, 25, 26, 51, 52)] == ["a", "z", "aa", "az", "ba"]


@pytest.fixture
def minivl(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["minivl", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_the_command_prints_all_tables_or_the_named(minivl, tmp_path):
    code, out, _ = minivl("table")
    assert code == 0
    assert out.count("published: ") == 6
    write_score(tmp_path, "chartqa", {"accuracy": 50.0})
    code, out, _ = minivl("table", "general", "--runs", tmp_path, "--json")
    assert json.loads(out)[0]["rows"][-1]["values"]["ChartQA"] == 50.0
    code, _, err = minivl("table", "drivelm", "--runs", tmp_path)
    assert code == 0
    assert "no score of these tables" in err


def test_the_command_refuses_unknown_names_in_a_line(minivl, tmp_path):
    for arguments in (["nothing"], ["general", "--format", "pdf"], ["general", "--runs", tmp_path / "none"]):
        code, _, err = minivl("table", *arguments)
        assert code == 1
        assert err.count("\n") == 1


def test_a_folder_with_two_models_gives_two_rows_and_missing_answers_a_mark(tmp_path):
    write_score(tmp_path, "chartqa", {"accuracy": 50.0}, model="first")
    write_score(tmp_path, "ai2d", {"accuracy": 40.0}, model="second", sha256="", notes={"missing": 3})
    filled = table("general", tmp_path)
    assert row(filled, "first")["ChartQA"].text == "50.0"
    assert row(filled, "first")["AI2D"].text == "-"
    [mark] = row(filled, "second")["AI2D"].footnotes
    assert dict(filled.notes)[mark] == "3 of 100 items have no answer and count as empty"
