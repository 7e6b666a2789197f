"""Every mistake in a study file is named with its line, key, value and remedy, all of them at once."""

import json
import subprocess
import sys

import pytest

from sparsemm_eval.study import checks, known_tasks, study_file, yaml_lines
from sparsemm_eval.study.yaml_lines import StudyError

GOOD = """\
name: tiny
models:
  - name: reader
    family: llava
    pretrained: tiny-reader
methods: [fullkv, snapkv, sparsemm,
  random]
budgets: [16, 32]
tasks: [pages_qa]
seeds: [0, 1]
knobs:
  window: 8
  kernel_size: [5, 7]
limit: 4
"""


@pytest.fixture(autouse=True)
def without_lmms_eval(monkeypatch, request):
    """Its own listing takes several seconds; the YAML files name all that these tests use."""
    if "asks_lmms_eval" not in request.fixturenames:
        monkeypatch.setattr(known_tasks, "_of_lmms_eval", lambda include_path=None: [])


@pytest.fixture
def asks_lmms_eval():
    """For the test that needs it."""


def problems_of(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(StudyError) as caught:
        checks.load(path)
    assert all(problem.text(str(path)) in str(caught.value) for problem in caught.value.problems)
    return [(problem.line, problem.key, problem.value, problem.remedy) for problem in caught.value.problems]


def test_a_good_study(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(GOOD)
    study, cells = checks.load(path)
    assert study.name == "tiny"
    assert str(study.output) == "runs/tiny"
    assert len(cells) == 1 + 4 + 4 + 8


MISTAKES = [
    ("name: tiny", "name: Tiny study", 1, "name", "'Tiny study'", "a-z"),
    ("name: tiny", "name: tiny\nlimitt: 5", 2, "limitt", "5", "did you mean 'limit'?"),
    ("name: tiny", "name: tiny\noutput: a,b", 2, "output", "'a,b'", "comma"),
    ("name: tiny", "name: tiny\nbatch_size: many", 2, "batch_size", "'many'", "an integer >= 1"),
    ("name: tiny", "name: tiny\nretries: -1", 2, "retries", "-1", "an integer >= 0"),
    ("name: tiny", "name: tiny\nnproc: true", 2, "nproc", "True", "an integer >= 1"),
    ("name: tiny", "name: tiny\nwandb: {mode: of}", 2, "wandb.mode", "'of'", "offline"),
    ("name: tiny", "name: tiny\nwandb: {modus: x}", 2, "wandb.modus", "'x'", "did you mean 'mode'?"),
    ("name: tiny", "name: tiny\nname: b", 2, "name", "a second time", "also line 1"),
    ("limit: 4", "limit: 0.5", 14, "limit", "0.5", "an integer >= 1"),
    ("family: llava", "family: lava", 4, "models[0].family", "'lava'", "did you mean 'llava'?"),
    ("name: reader", "nam: reader", 3, "models[0].nam", "'reader'", "a model_arg"),
    ("pretrained: tiny-reader", "pretrained: ./none", 5, "models[0].pretrained", "'./none'", "exists"),
    (
        "pretrained: tiny-reader",
        "pretrained: no/scores",
        5,
        "models[0].pretrained",
        "'no/scores'",
        "head scores",
    ),
    ("family: llava", "family: llava\n    windwo: 8", 5, "models[0].windwo", "8", "did you mean 'window'?"),
    ("family: llava", "family: llava\n    budget: 8", 5, "models[0].budget", "8", "budgets:"),
    ("family: llava", "family: llava\n    sinks: 2", 5, "models[0].sinks", "2", "a method of this study"),
    ("family: llava", "family: llava\n    window: [8]", 5, "models[0].window", "[8]", "a number"),
    ("  random]", "  randum]", 7, "methods[3]", "'randum'", "did you mean 'random'?"),
    ("  random]", "  snapkv]", 7, "methods[3]", "'snapkv'", "every value once"),
    ("[16, 32]", "[16, 8]", 8, "budgets[1]", "8", "window (8)"),
    ("[16, 32]", "[16, 32.5]", 8, "budgets[1]", "32.5", "an integer >= 1"),
    ("[16, 32]", "[16, 16]", 8, "budgets[1]", "16", "every value once"),
    ("[16, 32]", "[]", 8, "budgets", "[]", "at least one"),
    ("budgets: [16, 32]", "budgets: null", 6, "methods[1]", "'snapkv'", "budgets: in the study"),
    ("[pages_qa]", "[pages_qa,\n  pages_ocrr]", 10, "tasks[1]", "'pages_ocrr'", "did you mean 'pages_ocr'?"),
    ("[pages_qa]", "[pages_qa, [pages_ocr, pages_qa]]", 9, "tasks[1][1]", "'pages_qa'", "every task once"),
    ("[pages_qa]", "[pages_qa, [[a]]]", 9, "tasks[1][0]", "['a']", "name of a task"),
    ("tasks: [pages_qa]\n", "", 1, "tasks", "None", "names of tasks"),
    ("seeds: [0, 1]", "seeds: [0, -1]", 10, "seeds[1]", "-1", "an integer >= 0"),
    ("window: 8", "window: 8\n  windwo: 9", 13, "knobs.windwo", "9", "did you mean 'window'?"),
    ("window: 8", "window: eight", 12, "knobs.window", "'eight'", "an integer >= 1"),
    ("window: 8", "window: {a: 1}", 12, "knobs.window", "{'a': 1}", "a number"),
    ("window: 8", "journal: off", 12, "knobs.journal", "False", "a journal of its own"),
    ("window: 8", "window: 8\n  seed: 3", 13, "knobs.seed", "3", "seeds:"),
    ("window: 8", "window: 8\n  batch_size: 3", 13, "knobs.batch_size", "3", "batch_size:"),
    (
        "window: 8",
        "window: 8\n  adakv_floor: 0.5",
        13,
        "knobs.adakv_floor",
        "[0.5]",
        "a method of this study",
    ),
    ("window: 8", "window: 8\n  min_pixels: 5", 13, "knobs.min_pixels", "[5]", "a method of this study"),
    ("window: 8", "window: 8\n  ratio: 1.5", 13, "knobs.ratio", "1.5", "[0, 1]"),
    ("window: 8", "window: 8\n  pooling: [avg, mox]", 13, "knobs.pooling[1]", "'mox'", "avg, max"),
    ("window: 8", "window: 8\n  dtype: float3", 13, "knobs.dtype", "'float3'", "float32"),
    (
        "window: 8",
        "window: 8\n  head_scores: ./x.json",
        13,
        "knobs.head_scores",
        "'./x.json'",
        "neither a file",
    ),
    ("[5, 7]", "[5, 6]", 13, "knobs.kernel_size[1]", "6", "an odd integer"),
    ("[5, 7]", "[5, 5.0]", 13, "knobs.kernel_size[1]", "5", "every value once"),
    ("[5, 7]", "['5', 5]", 13, "knobs.kernel_size[1]", "5", "every value once"),
    ("window: 8", "window: [1, true]", 12, "knobs.window[1]", "True", "an integer >= 1"),
    ("pretrained: tiny-reader", "pretrained: ''", 5, "models[0].pretrained", "''", "a Hub id"),
    ("[pages_qa]", "!!binary aGVsbG8=", 9, "tasks", "b'hello'", "name of a task"),
    ("name: reader", "name: !!binary aGVsbG8=", 3, "models[0].name", "b'hello'", "a name of letters"),
    ("limit: 4", "limit: 2024-13-01", 14, "the file", "its text", "a timestamp that can be read"),
    ("limit: 4", "limit: !!int x", 14, "the file", "its text", "an int that can be read"),
    ("[pages_qa]", f"[{300 * 'x'}.yaml]", 9, "tasks[0]", f"'{300 * 'x'}.yaml'", "a task of lmms-eval"),
    (
        "pretrained: tiny-reader",
        f"pretrained: /{300 * 'x'}",
        5,
        "models[0].pretrained",
        f"'/{300 * 'x'}'",
        "exists",
    ),
]


@pytest.mark.parametrize(("old", "new", "line", "key", "value", "remedy"), MISTAKES)
def test_a_mistake_is_named(tmp_path, old, new, line, key, value, remedy):
    assert old in GOOD
    found = problems_of(tmp_path, GOOD.replace(old, new, 1))
    assert [entry[:3] for entry in found if remedy in entry[3]] == [(line, key, value)], found


def test_a_folder_without_weights_is_named(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    found = problems_of(tmp_path, GOOD.replace("pretrained: tiny-reader", f"pretrained: {folder}"))
    [named] = [entry for entry in found if "it holds no weights" in entry[3]]
    assert named[:3] == (5, "models[0].pretrained", repr(str(folder)))


def test_all_mistakes_at_once(tmp_path):
    text = (
        GOOD.replace("limit: 4", "limit: none").replace("window: 8", "window: 40").replace("[5, 7]", "[4, 7]")
    )
    text = text.replace("pages_qa", "pages_qq").replace("  random]", "  mask, rnd]")
    keys = [entry[1] for entry in problems_of(tmp_path, text)]
    assert keys == [
        "methods[4]",
        "budgets[0]",
        "budgets[1]",
        "tasks[0]",
        "seeds",
        "knobs.kernel_size[0]",
        "limit",
    ]


def test_seeds_and_budgets_need_methods_that_use_them(tmp_path):
    only = GOOD.replace("[fullkv, snapkv, sparsemm,\n  random]", "[fullkv]").replace("  window: 8\n", "")
    only = only.replace("  kernel_size: [5, 7]\n", "  dtype: float32\n")
    found = problems_of(tmp_path, only)
    assert [(line, key) for line, key, _, _ in found] == [(7, "budgets"), (9, "seeds")]
    assert "draws" in found[1][3]
    without = GOOD.replace("budgets: [16, 32]\n", "")
    assert [(line, key) for line, key, _, _ in problems_of(tmp_path, without)] == [(6, "methods[1]")]


def test_equal_cells_of_two_models(tmp_path):
    twins = GOOD.replace("methods:", "  - {name: b, family: llava, pretrained: tiny-reader}\nmethods:")
    found = problems_of(tmp_path, twins)
    assert {entry[:2] for entry in found} <= {(6, "models[1]")}
    assert "reader-fullkv" in found[0][3]


MORE = [
    ("zip: [[budget, windwo]]", "zip[0]", "lists of one length"),
    ("zip: [[budget]]", "zip[0]", "two or more"),
    ("exclude: [snapkv]", "exclude[0]", "a mapping of settings"),
    ("exclude: [{method: snapkw}]", "exclude[0].method", "did you mean 'snapkv'?"),
    ("cells: [{budget: 16}]", "cells[0]", "a mapping with a method"),
    ("cells: [{method: snapkv, budget: 16, kernel_size: 5}]", "cells[0]", "no two equal cells"),
    ("cells: [{method: snapkv, windwo: 16}]", "cells[0].windwo", "did you mean 'window'?"),
    ("cells: [{method: snapkv, model: raeder}]", "cells[0].model", "did you mean 'reader'?"),
    ("cells: [{method: snapkv, task: pages_qb}]", "cells[0].task", "did you mean 'pages_qa'?"),
    ("cells: [{method: fullkv, budget: 32}]", "cells[0].budget", "fullkv does not use it"),
    ("cells: [{method: adakv, seed: 1}]", "cells[0].seed", "adakv does not use it"),
    ("cells: [{method: snapkv, ratio: 0.1, budget: 24}]", "cells[0].ratio", "snapkv does not use it"),
    ("exclude: [{metod: snapkv}]", "exclude[0]", "settings of at least one cell"),
    ("exclude: [{method: snapkv, budget: 17}]", "exclude[0]", "settings of at least one cell"),
    ("cells: [{method: snapkv, budget: many}]", "cells[0].budget", "an integer >= 1"),
    ("include_path: ./nowhere", "include_path", "one folder with YAML files"),
    ("include_path: ''", "include_path", "one folder with YAML files"),
    ("include_path: ~nobody/tasks", "include_path", "one folder with YAML files"),
    ("zip: [[kernel_size, kernel_size]]", "zip[0]", "every setting once"),
    ("zip: [[kernel_size, budget], [budget, seed]]", "zip[1]", "every setting once"),
    ("exclude: [{methot: null}]", "exclude[0]", "settings of at least one cell"),
    ("exclude: [{sinks: null}]", "exclude[0]", "settings of at least one cell"),
    ("exclude: [{model: reader}]", "exclude", "entries that leave a cell to run"),
    ("cells: [{method: adakv, budget: 2024-01-01}]", "cells[0].budget", "an integer >= 1"),
    ("cells: [{method: adakv, budget: '16'}]", "cells[0].budget", "an integer >= 1"),
    ("cells: [{method: adakv, window: }]", "cells[0].window", "a number, a word"),
    ("cells: [{method: adakv, window: [8]}]", "cells[0].window", "a number, a word"),
    ("cells: [{method: adakv, pretrained: x}]", "cells[0].pretrained", "models:"),
    ("cells: [{method: adakv, journal: x}]", "cells[0].journal", "a journal of its own"),
    (r'output: "runs\nmore"', "output", "a folder without a comma"),
    (r'wandb: {project: "a\n# b"}', "wandb.project", "a text on one line"),
    (r'cells: [{method: adakv, window: "8\n9"}]', "cells[0].window", "a number, a word"),
]


@pytest.mark.parametrize(("line", "key", "remedy"), MORE)
def test_a_mistake_in_how_axes_are_combined_is_named(tmp_path, line, key, remedy):
    found = problems_of(tmp_path, GOOD + line + "\n")
    assert [entry[1] for entry in found if remedy in entry[3]] == [key], found


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("seeds: [0, 1]", "seeds: [x]", "seeds[0]"),
        ("window: 8", "window: [[8]]", "knobs.window[0]"),
        ("budgets: [16, 32]", "budgets: [x]", "budgets[0]"),
    ],
)
def test_a_list_of_which_nothing_is_left_brings_no_further_mistakes(tmp_path, old, new, key):
    assert key in [entry[1] for entry in problems_of(tmp_path, GOOD.replace(old, new))]
    budgets = [entry for entry in problems_of(tmp_path, GOOD.replace(old, new)) if entry[2] == "[]"]
    assert budgets == []


def test_a_list_that_goes_with_others_may_have_mistakes(tmp_path):
    text = GOOD.replace("[16, 32]", "[16, 32, x]").replace("[5, 7]", "[5, 7, 9]")
    found = problems_of(tmp_path, text + "zip: [[budget, kernel_size]]\n")
    assert [entry[1] for entry in found] == ["budgets[2]"]


def test_a_further_cell_without_any_budget_is_named(tmp_path):
    text = GOOD.replace("[fullkv, snapkv, sparsemm,\n  random]", "[fullkv]").replace(
        "budgets: [16, 32]\n", ""
    )
    found = problems_of(tmp_path, text + "cells: [{method: adakv}]\n")
    assert ("cells[0]", "budget: here, or budgets: in the study") in [
        (key, text) for _, key, _, text in found
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",  # grows without end
        "a: &a [*a]",  # holds itself
        "[" * 3000 + "]" * 3000,
    ],
)
def test_texts_that_would_never_end_are_refused_at_once(text):
    with pytest.raises(StudyError):
        yaml_lines.parse(text)


def own_task(folder, name="mine", data="one"):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(f"task: {name}\ndataset_path: parquet\n")
    (folder / "data.txt").write_text(data)
    return folder


def test_own_tasks_are_found_and_known_by_their_content(tmp_path):
    folder = own_task(tmp_path / "tasks")
    path = tmp_path / "study.yaml"
    path.write_text(GOOD.replace("[pages_qa]", "[pages_qa, mine]") + f"include_path: {folder}\n")
    _, cells = checks.load(path)
    assert {cell.tasks for cell in cells} == {("pages_qa",), ("mine",)}
    assert {cell.include_path for cell in cells} == {str(folder)}
    before = known_tasks.data_key("mine", str(folder))
    assert before == known_tasks.data_key(str(folder / "mine.yaml"))
    own_task(folder, data="two")
    known_tasks._content.cache_clear()
    assert known_tasks.data_key("mine", str(folder)) != before
    assert known_tasks.data_key("ocrbench") == "ocrbench"


@pytest.mark.parametrize("text", ["a: [1", "", "- 1", "just text", "a: !!python/object:os.system x"])
def test_what_is_no_study_at_all(tmp_path, text):
    assert problems_of(tmp_path, text)[0][0] == 1


def test_a_missing_file(tmp_path):
    with pytest.raises(StudyError, match="readable"):
        checks.load(tmp_path / "none.yaml")


def test_head_scores_are_known_by_their_content(tmp_path):
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"0-0": [1.0], "0-1": [2.0]}))
    one = checks.head_scores_key(str(scores), "anything")
    scores.write_text(json.dumps({"0-0": [1.0], "0-1": [3.0]}))
    assert checks.head_scores_key(str(scores), "anything") != one
    assert checks.head_scores_key(None, "Qwen/Qwen2-VL-7B-Instruct").startswith("git-blob:")
    assert checks.head_scores_key("qwen", "x") == checks.head_scores_key(None, "Qwen/Qwen2-VL-7B-Instruct")
    assert checks.head_scores_key(None, "tiny-reader") == checks.head_scores_key("tiny-reader", "x")


def test_tasks_of_both_packages_and_patterns():
    names = ["pages_qa", "sparsemm_suite", "ocrbench", "docvqa_val", "pages_*", "mmbench_en_dev_static"]
    assert known_tasks.missing(names)[0] == []


def test_lmms_eval_is_asked_about_what_no_file_names(monkeypatch):
    monkeypatch.setattr(known_tasks, "_of_lmms_eval", lambda include_path=None: ["made_in_python"])
    unknown, known = known_tasks.missing(["made_in_python", "nowhere"])
    assert unknown == ["nowhere"]
    assert "made_in_python" in known


@pytest.mark.slow
def test_lmms_eval_lists_its_tasks(asks_lmms_eval):
    names = known_tasks._of_lmms_eval()
    assert {"pages_qa", "ocrbench", "sparsemm_suite"} <= set(names)
    unknown, _ = known_tasks.missing(["nowhere"])
    assert unknown == ["nowhere"]


def test_validation_loads_no_lmms_eval_and_no_pandas(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(GOOD)
    code = (
        "import sys, pathlib\nfrom sparsemm_eval.study import checks\n"
        f"checks.load(pathlib.Path({str(path)!r}))\n"
        "print([name for name in ('lmms_eval', 'pandas', 'wandb') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_lines_of_nested_places():
    document = yaml_lines.parse("a:\n  b: 1\n  c:\n    - 1\n    - {d: 2,\n       e: 3}\n")
    assert document.line(("a", "b")) == 2
    assert document.line(("a", "c", 1, "e")) == 6
    assert document.line(("a", "c", 1, "not there")) == 5
    assert document.line(("nothing",)) == 1
    assert yaml_lines.key_text(("a", 0, "b")) == "a[0].b"


def test_one_value_stands_for_a_list():
    text = GOOD.replace("[16, 32]", "16").replace("[pages_qa]", "pages_qa").replace("[0, 1]", "3")
    study, problems = study_file.read(yaml_lines.parse(text))
    assert problems == []
    assert (study.budgets, study.tasks, study.seeds) == ((16,), (("pages_qa",),), (3,))
