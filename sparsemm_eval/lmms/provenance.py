"""The wrappers' run record in lmms-eval's results file: configuration, versions, commit, measurements."""

from __future__ import annotations

import re
import time
from pathlib import Path

from sparsemm_eval.errors import EvaluationError
from sparsemm_eval.lmms.arguments import Run
from sparsemm_eval.lmms.results import ResultsFile

_STATS_DIR = re.compile(r"(?:^|,)stats_dir=([^,]+)")


def complete(file: ResultsFile, run: Run, since: float) -> ResultsFile:
    """Put the record of a run into its results file under the key ``sparsemm``, if one was asked for.

    Parameters
    ----------
    file : ResultsFile
    run : Run
        Asks for a record with ``stats_dir=…`` in its model_args.
    since : float
        When the run began, in seconds since the epoch; older records are those of other runs.

    Returns
    -------
    ResultsFile
        With the record; unchanged where none was asked for.

    Raises
    ------
    EvaluationError
        If the record is missing.
    """
    asked = _STATS_DIR.search(run.model_args)
    if asked is None:
        return file
    # lmms-eval takes seconds to import, and most runs need nothing of it here.
    from sparsemm_eval.model_wrappers.records.run_record import complete_results, read_runs

    records = [
        record
        for record in read_runs(asked[1])
        if record["model_name"] == run.model and Path(record["path"]).stat().st_mtime >= since
    ]
    if not records:
        raise EvaluationError(f"{run.model} left no run record in stats_dir={asked[1]}")
    complete_results(file.path, records[-1])
    return ResultsFile(file.path, {**file.contents, "sparsemm": records[-1]})


def now() -> float:
    """The time to compare records with; file systems may keep whole seconds only."""
    return float(int(time.time()))
