"""A study whose cells are `fake_cell`, run in this process or in one of its own that can be killed.

``python -m tests.study.running STUDY.YAML WORKERS`` runs it.
"""

import json
import sys
from pathlib import Path

from sparsemm_eval.study import plan, study_file, yaml_lines
from sparsemm_eval.study.cell_run import How
from sparsemm_eval.study.folder import StudyFolder
from sparsemm_eval.study.runner import Runner

FACTS = plan.Facts(
    lambda family: f"default/{family}",
    lambda given, pretrained: f"scores:{given or pretrained}",
    lambda pretrained: f"weights:{pretrained}",
    lambda task, include_path: f"data:{task}",
    {"code": "c", "torch": "1"},
)
TEXT = """\
name: fake
output: {output}
models:
  - {{name: reader, family: llava, pretrained: tiny-reader}}
methods: {methods}
budgets: {budgets}
tasks: {tasks}
knobs: {{window: 8}}
limit: {limit}
retries: {retries}
"""


def write_study(path, **changes):
    values = {
        "output": path.parent / "out",
        "methods": "[fullkv, snapkv, sparsemm]",
        "budgets": "[16, 32]",
        "tasks": "[one, [two, three]]",
        "limit": 5,
        "retries": 1,
        **changes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(TEXT.format(**values))
    return path


def load(path):
    """Study, cells and folder, without the checks that need the wrappers."""
    study, problems = study_file.read(yaml_lines.read(Path(path)))
    cells, crossing = plan.cross(study, FACTS)
    assert not problems + crossing
    return study, cells, StudyFolder(study.output)


def fake_command(cell, arguments, nproc):
    return [sys.executable, str(Path(__file__).with_name("fake_cell.py")), *arguments]


def how(retries=1, **changes):
    return How(**{"retries": retries, "command": fake_command, "poll": 0.02, "pause": 0.01, **changes})


def table(root):
    """What the done cells' results say; times and paths aside."""
    rows = {}
    for status_file in sorted(Path(root).glob("cells/*/status.json")):
        status = json.loads(status_file.read_text())
        if status["state"] == "done":
            contents = json.loads((status_file.parent / status["results"]).read_text())
            journal = b"".join(
                path.read_bytes() for path in sorted(status_file.parent.glob("journal/*/*.jsonl"))
            )
            rows[status_file.parent.name] = (contents["results"], journal.decode())
    return rows


def runner(path, workers=1, cells=None, how_=None, **changes):
    study, all_cells, folder = load(path)
    folder.prepare(study, all_cells)
    chosen = all_cells if cells is None else cells(all_cells)
    return Runner(folder, chosen, how_ or how(study.retries), [{}] * workers, **changes)


if __name__ == "__main__":
    outcome = runner(sys.argv[1], int(sys.argv[2])).run()
    sys.exit(0 if outcome.complete else 1)
