"""The plan of a study: crossing, hashes, order, references."""

import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from sparsemm_eval.config import knobs_in_use
from sparsemm_eval.methods import methods as all_methods
from sparsemm_eval.study import plan, study_file, yaml_lines
from sparsemm_eval.study.cell import Cell
from tests.study.running import FACTS

TEXT = """\
name: s
models: [{name: a, family: llava, pretrained: p}]
methods: [fullkv, snapkv, pyramidkv, adakv, sparsemm, random, mask, mask_random]
budgets: [16, 32]
tasks: [t, [u, v]]
seeds: [0, 1, 2]
knobs: {window: 8, kernel_size: [5, 7], ratio: [0.1, 0.2], mask_ratio: 0.1}
"""


def cells_of(text, facts=FACTS):
    study, problems = study_file.read(yaml_lines.parse(text))
    cells, crossing = plan.cross(study, facts)
    assert problems + crossing == []
    return cells


def hashes(text, facts=FACTS):
    return sorted(cell.hash for cell in cells_of(text, facts))


def test_the_grid_is_what_its_axes_say():
    cells = cells_of(TEXT)
    counts = Counter(cell.method for cell in cells if cell.tasks == ("t",))
    # budgets × kernel_size, × ratio where it is used, × seeds where something is drawn
    assert counts == {
        "fullkv": 1,
        "snapkv": 2 * 2,
        "pyramidkv": 2 * 2,
        "adakv": 2 * 2,
        "sparsemm": 2 * 2 * 2,
        "random": 2 * 2 * 2 * 3,
        "mask": 1,
        "mask_random": 3,
    }
    assert len(cells) == 2 * sum(counts.values())
    assert len({cell.id for cell in cells}) == len({cell.hash for cell in cells}) == len(cells)


def test_settings_are_dropped_where_they_play_no_part():
    by_method = {cell.method: cell for cell in cells_of(TEXT)}
    assert by_method["fullkv"].model_args == {"pretrained": "p"}
    assert by_method["fullkv"].budget is None
    assert by_method["fullkv"].seed is None
    assert by_method["mask"].model_args == {"pretrained": "p", "mask_ratio": 0.1}
    assert by_method["mask_random"].model_args == {"pretrained": "p", "mask_ratio": 0.1, "mask_seed": 2}
    assert by_method["snapkv"].model_args == {"pretrained": "p", "budget": 32, "window": 8, "kernel_size": 7}
    assert by_method["random"].seed == by_method["random"].model_args["seed"] == 2
    assert "seed" not in by_method["sparsemm"].model_args


def test_fullkv_comes_first():
    text = TEXT.replace("[{name: a", "[{name: b, family: qwen2vl, dtype: float32, max_pixels: 9}, {name: a")
    cells = cells_of(text)
    first = [cell for cell in cells if cell.method == "fullkv"]
    assert cells[: len(first)] == first
    assert len(first) == 4


def test_cells_are_compared_with_the_fullkv_run_that_agrees_in_all_that_changes_one():
    text = """\
name: s
models: [{name: a, family: llava, pretrained: p}]
methods: [snapkv, fullkv]
budgets: 16
tasks: t
knobs: {window: 8, dtype: [float32, bfloat16]}
"""
    cells = cells_of(text)
    by_method = {method: [cell for cell in cells if cell.method == method] for method in ("snapkv", "fullkv")}
    for cell in by_method["snapkv"]:
        [full] = [other for other in by_method["fullkv"] if other.comparison == cell.comparison]
        assert full.model_args["dtype"] == cell.model_args["dtype"]


def test_axes_that_go_together():
    text = TEXT.replace("knobs: {", "zip: [[budget, ratio]]\nknobs: {")
    sparse = {(c.budget, c.model_args["ratio"]) for c in cells_of(text) if c.method == "sparsemm"}
    assert sparse == {(16, 0.1), (32, 0.2)}
    # Where one of them plays no part, the other is crossed.
    assert {cell.budget for cell in cells_of(text) if cell.method == "snapkv"} == {16, 32}


def test_pruners_are_crossed_with_what_they_use_and_compared_with_whole_prompts():
    text = """\
name: s
models: [{name: a, family: llava, pretrained: p}]
methods: [snapkv, fullkv]
budgets: 16
tasks: t
knobs: {window: 8, prune: [fastv, none, divprune], image_share: [0.25, 0.5], prune_layer: 3}
"""
    cells = cells_of(text)
    found = [(c.method, c.model_args.get("prune"), c.model_args.get("image_share")) for c in cells]
    axes = [(None, None), *itertools.product(("fastv", "divprune"), (0.25, 0.5))]
    assert sorted(map(str, found)) == sorted(str((m, *one)) for m in ("snapkv", "fullkv") for one in axes)
    assert all(("prune_layer" in c.model_args) == (c.model_args.get("prune") == "fastv") for c in cells)
    assert found[0] == ("fullkv", None, None)  # it runs first, and all are compared with it
    assert len({str(cell.comparison) for cell in cells}) == 1


def test_excluded_cells_are_left_out():
    text = (
        TEXT
        + "exclude: [{method: sparsemm, budget: 16}, {method: random, seed: 2, task: u}, {method: adakv}]\n"
    )
    cells, every = cells_of(text), cells_of(TEXT)
    gone = {cell.id for cell in every} - {cell.id for cell in cells}
    assert gone == {
        cell.id
        for cell in every
        if (cell.method == "sparsemm" and cell.budget == 16)
        or (cell.method == "random" and cell.seed == 2 and "u" in cell.tasks)
        or cell.method == "adakv"
    }


def test_further_cells_fix_some_axes_and_cross_the_others():
    text = """\
name: s
models: [{name: a, pretrained: p}, {name: b, pretrained: q}]
methods: [fullkv]
budgets: [16, 32]
tasks: [t, u]
knobs: {window: 8}
cells:
  - {method: streamingllm, sinks: 0}
  - {method: sparsemm, ratio: 1}
  - {method: sparsemm, budget: 64, ratio: 0.1, model: b, task: u}
"""
    found = Counter(
        (c.method, c.model, c.tasks, c.budget, c.model_args.get("ratio"), c.model_args.get("sinks"))
        for c in cells_of(text)
        if c.method != "fullkv"
    )
    grid = list(itertools.product("ab", [("t",), ("u",)], (16, 32)))
    expected = [("streamingllm", *place, None, 0) for place in grid]
    expected += [("sparsemm", *place, 1, None) for place in grid]
    assert found == Counter([*expected, ("sparsemm", "b", ("u",), 64, 0.1, None)])


def test_the_hash_holds_code_versions_and_data_and_the_id_does_not():
    for change in ({"data_key": lambda *_: "other"}, {"surroundings": {"code": "other", "torch": "1"}}):
        changed = cells_of(TEXT, dataclasses.replace(FACTS, **change))
        before = cells_of(TEXT)
        assert [cell.id for cell in changed] == [cell.id for cell in before]
        assert not {cell.hash for cell in changed} & {cell.hash for cell in before}


CHANGES = {
    "window: 8": "window: 9",
    "kernel_size: [5, 7]": "kernel_size: [5, 9]",
    "ratio: [0.1, 0.2]": "ratio: [0.1, 0.3]",
    "mask_ratio: 0.1": "mask_ratio: 0.2",
    "budgets: [16, 32]": "budgets: [16, 33]",
    "seeds: [0, 1, 2]": "seeds: [0, 1, 3]",
    "pretrained: p": "pretrained: q",
    "family: llava": "family: qwen2vl",
    "tasks: [t, [u, v]]": "tasks: [t, [v, u]]",
    "name: s": "name: s\nlimit: 5",
    "models:": "batch_size: 2\nmodels:",
    "knobs: {": "knobs: {dtype: bfloat16, ",
}


@pytest.mark.parametrize(("old", "new"), CHANGES.items())
def test_the_hash_depends_on_every_setting(old, new):
    assert old in TEXT
    assert hashes(TEXT) != hashes(TEXT.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: s", "name: other"),
        ("name: s", "name: s\noutput: elsewhere"),
        ("{name: a", "{name: another-label"),
        ("name: s", "name: s\nwandb: {mode: offline, project: x}"),
        ("name: s", "name: s\nretries: 7"),
        ("name: s", "name: s\nnproc: 2"),
        ("ratio: [0.1, 0.2]", "ratio: [0.2, 0.1]"),
        ("window: 8", "window: 8.0"),
    ],
)
def test_the_hash_does_not_depend_on_labels_and_ways_of_running(old, new):
    assert old in TEXT
    assert hashes(TEXT) == hashes(TEXT.replace(old, new, 1))


def test_the_hash_depends_on_the_content_of_head_scores_where_they_are_used():
    other = dataclasses.replace(FACTS, head_scores_key=lambda given, pretrained: "other content")
    before = {cell.hash: cell.method for cell in cells_of(TEXT)}
    after = {cell.hash: cell.method for cell in cells_of(TEXT, other)}
    assert {before[digest] for digest in before.keys() - after.keys()} == {"sparsemm", "mask", "mask_random"}
    unchanged = {before[digest] for digest in before.keys() & after.keys()}
    assert unchanged == {"fullkv", "snapkv", "pyramidkv", "adakv", "random"}


def test_the_hash_depends_on_the_weights():
    trained_again = dataclasses.replace(FACTS, checkpoint_key=lambda pretrained: "other weights")
    assert not set(hashes(TEXT)) & set(hashes(TEXT, trained_again))


def test_a_models_own_setting_goes_before_the_studys():
    text = TEXT.replace("pretrained: p}", "pretrained: p, kernel_size: 3}")
    assert {cell.model_args.get("kernel_size") for cell in cells_of(text)} == {None, 3}


def test_the_familys_checkpoint_where_none_is_named():
    assert cells_of(TEXT.replace(", pretrained: p", ""))[0].model_args["pretrained"] == "default/llava"


def test_paths_are_found_from_any_working_directory(tmp_path, monkeypatch):
    (tmp_path / "scores.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    cells = cells_of(TEXT.replace("knobs: {", "knobs: {head_scores: scores.json, "))
    given = {cell.model_args["head_scores"] for cell in cells if "head_scores" in cell.model_args}
    assert given == {str(tmp_path / "scores.json")}


def test_arguments_are_lmms_evals():
    cell = next(cell for cell in cells_of(TEXT.replace("name: s", "name: s\nlimit: 3")) if cell.budget == 32)
    arguments = cell.arguments(Path("/f"))
    assert arguments == [
        "--model",
        "llava_snapkv",
        "--model_args",
        "pretrained=p,budget=32,window=8,kernel_size=5,journal=/f/journal,stats_dir=/f/stats",
        "--tasks",
        "t",
        "--batch_size",
        "1",
        "--output_path",
        "/f/lmms",
        "--limit",
        "3",
        "--log_samples",
    ]
    assert "--limit" not in cells_of(TEXT)[0].arguments(Path("/f"))


def test_a_record_gives_the_cell_back():
    for cell in cells_of(TEXT):
        assert Cell.from_record(cell.record(Path("/f"))) == cell


def test_ids_are_names_of_folders_however_long():
    text = TEXT.replace(
        "tasks: [t, [u, v]]", f"tasks: [[{', '.join(f'long/task*{i}' for i in range(60))}], t]"
    )
    cells = cells_of(text)
    assert len({cell.id for cell in cells}) == len(cells)
    for cell in cells:
        assert len(cell.id) < 120
        assert not set(cell.id) & set("/*: ,")


@effort(suppress_health_check=[HealthCheck.too_slow])
@given(
    methods=st.lists(st.sampled_from(sorted(all_methods())), min_size=1, unique=True),
    budgets=st.lists(st.integers(1, 10**6), min_size=1, max_size=3, unique=True),
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True),
    windows=st.lists(st.integers(1, 64), min_size=1, max_size=3, unique=True),
    ratios=st.lists(st.floats(0, 1), min_size=1, max_size=2, unique=True),
    models=st.lists(st.sampled_from("abcd"), min_size=1, max_size=2, unique=True),
)
def test_cells_are_exactly_the_different_runs(methods, budgets, seeds, windows, ratios, models):
    study = study_file.Study(
        name="s",
        models=[{"name": m, "family": "llava", "pretrained": f"p{m}"} for m in models],
        methods=methods,
        budgets=budgets,
        tasks=["t", "u"],
        seeds=seeds,
        knobs={"window": windows, "ratio": ratios},
    )
    cells, _ = plan.cross(study, FACTS)
    expected = set()
    for m, t, method, b, s, w, r in itertools.product(models, "tu", methods, budgets, seeds, windows, ratios):
        evicts, knobs = all_methods()[method].evicts, knobs_in_use(all_methods()[method])
        draws = any(knob.draws for knob in knobs.values())
        scored = "ratio" in knobs
        by_budget = (b if evicts else None, w if "window" in knobs else None)
        expected.add((m, t, method, *by_budget, s if draws else None, r if scored else None))
    found = {
        (
            c.model,
            c.tasks[0],
            c.method,
            c.budget,
            c.model_args.get("window"),
            c.seed,
            c.model_args.get("ratio"),
        )
        for c in cells
    }
    assert found == expected
    assert len(cells) == len(expected) == len({cell.hash for cell in cells})


def test_each_score_is_crossed_with_its_own_knobs():
    text = """\
name: s
models: [{name: a, pretrained: p}]
methods: [fullkv, snapkv, streamingllm]
budgets: [16]
tasks: [t]
seeds: [0, 1]
knobs: {window: 8, kernel_size: [5, 7], score: [window_attention, random]}
"""
    cells = cells_of(text)
    found = [
        (c.method, c.model_args.get("score"), c.model_args.get("kernel_size"), c.model_args.get("seed"))
        for c in cells
    ]
    assert sorted(found, key=str) == sorted(
        [
            ("fullkv", None, None, None),
            *(("snapkv", "window_attention", kernel, None) for kernel in (5, 7)),
            *(("snapkv", "random", None, seed) for seed in (0, 1)),
            *(("streamingllm", "window_attention", kernel, None) for kernel in (5, 7)),
            *(("streamingllm", "random", None, seed) for seed in (0, 1)),
        ],
        key=str,
    )
    assert {cell.model_name for cell in cells} == {"vlm_fullkv", "vlm_snapkv", "vlm_streamingllm"}


def test_a_table_in_a_file_counts_with_its_content(tmp_path):
    file, text = tmp_path / "table.json", TEXT.replace("methods: [", "methods: [mixkv, ")
    found = []
    for table in ("[[0.1]]", "[[0.2]]"):
        file.write_text(table)
        changed = text.replace("knobs: {", f"knobs: {{redundancy: {file}, ")
        found.append({cell.hash for cell in cells_of(changed) if cell.method == "mixkv"})
    assert found[0]
    assert not found[0] & found[1]
