"""MathVista, DriveLM and the averages against recorded results of the official code; judges are fixed replies."""

from __future__ import annotations

import json

import pytest

from mini_internvl.metrics import average, drivelm, mathvista

EXACT = 1e-9
CLOSE = 1e-6  # captions, relative

VERSIONS = {"vlmevalkit_2024_10": "2024-10", "vlmevalkit_head": "head"}
SCRIPTS = {  # key -> source, quick
    "internvl": ("internvl", False),
    "internvl_quick_extract": ("internvl", True),
    "official_mathvista": ("official", False),
    "official_mathvista_quick_extract": ("official", True),
}


def _read(golden, name):
    return json.loads((golden / "metrics" / f"{name}.json").read_text(encoding="utf-8"))


def _near(value, wanted, rel=0.0):
    return value == pytest.approx(wanted, rel=rel, abs=EXACT)


# MathVista.


def _problem(row):
    names = ("question_type", "answer_type", "answer", "precision")
    return mathvista.Problem(**{name: row[name] for name in names}, choices=row["choices"] or ())


def _script(problem, given, key):
    """What the official scripts write down for a case."""
    source, quick = SCRIPTS[key]
    response = given["response"]
    if quick:
        found = mathvista.quick_extraction(problem, response, source)
    else:
        found = mathvista.rule_extraction(problem, response)
    extraction = given["judge_response"] if found is None else found
    right = mathvista.extraction_right(problem, extraction, source)
    return found is None, extraction, mathvista.normalise(problem, extraction, source), right


@pytest.mark.parametrize("key", SCRIPTS)
def test_mathvista_scripts(golden, key):
    for case in _read(golden, "mathvista")["cases"]:
        problem, wanted = _problem(case["input"]), case["expected"][key]
        if "error" in wanted:
            continue
        asked, extraction, prediction, right = _script(problem, case["input"], key)
        assert extraction == wanted["extraction"], case["id"]
        stops = isinstance(wanted["prediction"], dict)
        assert prediction == (None if stops else wanted["prediction"]), case["id"]
        assert right == (wanted["true_false"] is True), case["id"]
        if "llm_required" in wanted:
            assert asked == wanted["llm_required"], case["id"]


def test_mathvista_rules(golden):
    for case in _read(golden, "mathvista")["cases"]:
        found = mathvista.rule_extraction(_problem(case["input"]), case["input"]["response"])
        assert found == case["expected"]["rule_extraction"], case["id"]
        assert (found is None) == case["expected"]["llm_required"], case["id"]


def _verdict(given, version):
    return mathvista.vlmevalkit(_problem(given), given["response"], lambda _: given["judge_response"], version)


@pytest.mark.parametrize("key", VERSIONS)
def test_mathvista_vlmevalkit(golden, key):
    for case in _read(golden, "mathvista")["cases"]:
        verdict, wanted = _verdict(case["input"], VERSIONS[key]), case["expected"][key]
        if "error" in wanted:
            assert not verdict.hit, case["id"]
            continue
        for found, value in ((verdict.prefetch, wanted["prefetch"]), (verdict.result, wanted["res"])):
            if isinstance(found, float) and isinstance(value, str):
                value = float(value)  # "Infinity"
            assert (found, type(found)) == (value, type(value)), case["id"]
        assert verdict.prefetched == wanted["prefetch_used"], case["id"]
        assert verdict.calls == wanted["judge_calls"], case["id"]
        assert verdict.hit == (wanted["hit"] is True), case["id"]


def test_mathvista_report(golden):
    suite = _read(golden, "mathvista")["suite"]
    rows = []
    for row in suite["items"].values():
        labels = {**row["metadata"], "question_type": row["question_type"], "answer_type": row["answer_type"]}
        rows.append((mathvista.extraction_right(_problem(row), row["extraction"]), labels))
    assert mathvista.official_scores(rows) == suite["scores"]


def test_mathvista_vlmevalkit_table(golden):
    data = _read(golden, "mathvista")
    suite = data["vlmevalkit_suite"]
    labels = [row["metadata"] for row in data["suite"]["items"].values()]  # in the order of the cases
    cases = {case["id"]: (case["input"], found) for case, found in zip(data["cases"], labels, strict=False)}
    asked = [cases[name] for name in suite["case_ids"]]
    # The tree named in the file's source is the head.
    rows = [(_verdict(given, "head"), found["task"], found["skills"]) for given, found in asked]
    assert len(rows) == suite["rows"]
    table = mathvista.vlmevalkit_table(rows)
    assert [row["Task&Skill"] for row in table] == [row["Task&Skill"] for row in suite["table"]]
    for row, wanted in zip(table, suite["table"], strict=True):
        for name in ("tot", "prefetch", "hit"):
            assert row[name] == wanted[name], (row["Task&Skill"], name)
        assert _near(row["prefetch_rate"], wanted["prefetch_rate"])
        assert _near(row["acc"], wanted["acc"])


# DriveLM.


def _drivelm_cases(golden, kind):
    return [case for case in _read(golden, "drivelm")["cases"] if case["type"] == kind]


def _asked(question, gold, answer, tags=()):
    return drivelm.Question(question=question, gold=gold, answer=answer, tags=tags)


def test_drivelm_match(golden):
    for case in _drivelm_cases(golden, "match"):
        given, wanted = case["input"], case["expected"]
        if "error" in wanted:
            with pytest.raises(ValueError, match="cannot be paired"):
                drivelm.match_points(given["answer"], given["GT"])
            results = drivelm.collect([[_asked("", given["GT"], given["answer"], [drivelm.MATCH])]])
            assert results.match == [0.0]
            assert results.broken == [0]
            continue
        found, f1 = drivelm.match_points(given["answer"], given["GT"])
        assert _near(f1, wanted["f1"]), case["id"]
        assert [list(point) for point in found] == wanted["matched_gt"], case["id"]


def test_drivelm_accuracy(golden):
    for case in _drivelm_cases(golden, "accuracy"):
        # Not as a frame's first question, whose gold answer is also read as points.
        asked = _asked("", case["input"]["GT"], case["input"]["answer"], [drivelm.ACCURACY])
        assert drivelm.collect([[_asked("", "", ""), asked]]).accuracy == [case["expected"]], case["id"]


def test_drivelm_graph(golden):
    for case in _drivelm_cases(golden, "graph_filter"):
        given, wanted = case["input"], case["expected"].get("question_kept", case["expected"])
        first = _asked("", given["first_GT"], given["first_answer"])
        results = drivelm.collect([[first, _asked(given["question"], "A", "A", [drivelm.ACCURACY])]])
        if isinstance(wanted, dict):
            assert results.broken, case["id"]
        else:
            assert results.kept == [True, wanted], case["id"]


def test_drivelm_coordinates(golden):
    for case in _drivelm_cases(golden, "internvl_post_process"):
        assert drivelm.to_cameras(case["input"]["prediction"]) == case["expected"], case["id"]


def test_drivelm_final_score(golden):
    for example in _read(golden, "drivelm")["readme_examples"]:
        given = example["input"]
        names = (*drivelm.BLEU, "ROUGE_L", "CIDEr")
        language = dict(zip(names, given["Bleu_1..4,ROUGE_L,CIDEr"], strict=True))
        final = drivelm.final_score(
            accuracy=given["accuracy"], chatgpt=given["chatgpt"], match=given["match"], language=language
        )
        assert _near(final, example["formula_value"]), example["name"]


def test_drivelm_suites(golden):
    for suite in _read(golden, "drivelm")["suites"]:
        answers = {row["id"]: row["answer"] for row in suite["predictions"]}
        marks = {(row["answer"], row["GT"]): float(row["score"]) for row in suite["judge_scores"]}
        frames = []
        for scene, data in suite["test_eval"].items():
            for frame, block in data["key_frames"].items():
                parts = ("perception", "prediction", "planning", "behavior")
                rows = [row for part in parts for row in block["QA"][part]]
                frames.append(
                    [
                        _asked(row["Q"], row["A"], answers[f"{scene}_{frame}_{number}"], row["tag"])
                        for number, row in enumerate(rows)
                    ]
                )
        _check_suite(drivelm.collect(frames), suite["expected"], lambda *pair, marks=marks: marks[pair])


def _check_suite(results, wanted, judge):
    counts = {"accuracy": results.accuracy, "chatgpt": results.judged}
    counts |= {"language": results.language, "match": results.match}
    counts = {name: len(rows) for name, rows in counts.items()}
    assert counts == wanted.get("counts", counts)
    if not all(counts.values()):  # the official script divides by 0 and has no score
        return

    def mean(values):
        return sum(values) / len(values)

    accuracy = mean(results.accuracy)
    chatgpt = mean(drivelm.judge_scores(results.judged, judge))
    judged = mean(drivelm.judge_scores(results.match_judged, judge))
    match = (100 * mean(results.match) + judged) / 2
    language = drivelm.language_scores(results.language)
    for name, value in (("accuracy", accuracy), ("chatgpt", chatgpt), ("match", match)):
        assert _near(value, wanted[name]), name
    for name, value in wanted["language"].items():
        assert _near(language[name], value, CLOSE), name
    parts = [chatgpt / 100, drivelm.language_part(language), match / 100, accuracy]
    assert _near(parts, wanted["normalized_parts_[chatgpt,language,match,accuracy]"], CLOSE)
    assert list(drivelm.WEIGHTS.values()) == wanted["weights"]
    final = drivelm.final_score(accuracy=accuracy, chatgpt=chatgpt, match=match, language=language)
    assert _near(final, wanted["final_score"], CLOSE)


# Averages.


def test_averages(golden):
    averages = {
        "mini_internvl_table": average.mini_internvl_average,
        "opencompass_leaderboard_8": average.leaderboard_average,
    }
    for case in _read(golden, "opencompass_average")["cases"]:
        wanted = case["expected"]
        value = averages[case["type"]](case["input"])
        if not isinstance(wanted["average"], int | float):
            assert value is None, case["id"]
            continue
        assert _near(value, wanted["average"]), case["id"]
        assert abs(value - wanted["average_1dp"]) <= 0.05 + EXACT, case["id"]
        if wanted.get("relative_to_76B_percent") is not None:
            assert _near(average.share_of_76b(value), wanted["relative_to_76B_percent"]), case["id"]
        if "printed_in_readme" in wanted:
            assert round(value, 1) == wanted["printed_in_readme"], case["id"]
