"""Reports: self-contained HTML files with tables, images and curves."""

from __future__ import annotations

from pathlib import Path


def build(run: Path, against: Path | None = None) -> Path:
    """Write the report of an adaptation or an evaluation, whichever the folder holds; returns the file's path.

    Raises:
        ValueError: the folder is neither, a file in it is malformed, or ``against`` does not fit.
    """
    from mini_internvl.report import adaptation, eval_folder, evaluation, run_folder

    for folder in (run, against):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{folder} is no folder; give one that minivl adapt or minivl eval wrote")
    if (run / run_folder.RESULT).is_file():
        if against is not None:
            raise ValueError(f"{run} is an adaptation, which is compared with its base already; leave --against out")
        return adaptation.build(run)
    for folder in (run, against):
        if folder is not None and not eval_folder.is_evaluation(folder):
            raise ValueError(
                f"{folder} holds neither {run_folder.RESULT} of an adaptation nor BENCHMARK/{eval_folder.SCORE} of an "
                "evaluation; give the folder of a finished run"
            )
    return evaluation.build(run, against)
