"""The one place where a command's errors leave."""

import pytest

from sparsemm_eval.errors import ConfigError, EvaluationError, HeadScoreError, JournalError, in_one_line
from sparsemm_eval.study.yaml_lines import StudyError


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (ConfigError("budget", 0, "an integer >= 1"), "budget=0 is not valid: expected an integer >= 1", 2),
        (HeadScoreError("head scores are all zero"), "head scores are all zero", 2),
        (StudyError("a.yaml", []), "0 problems in a.yaml; nothing was started", 2),
        (EvaluationError("no results"), "no results", 1),
        (JournalError("in use"), "in use", 1),
        (FileNotFoundError(2, "No such file or directory", "x.png"), "x.png: No such file or directory", 1),
        (OSError(28, "No space left on device"), "No space left on device", 1),
    ],
)
def test_every_error_is_one_line_with_a_code(capsys, error, line, code):
    with pytest.raises(SystemExit) as ended, in_one_line():
        raise error
    assert ended.value.code == code
    assert capsys.readouterr().err == f"sparsemm: {line}\n"


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), in_one_line():
        1 / 0  # noqa: B018
