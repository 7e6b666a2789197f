import pandas as pd

from sparsemm_eval.study.columns import crossed_knobs, of_reference, result_frame


def test_fullkv_of_pruned_prompts_is_no_reference():
    rows = [
        {"model": "m", "method": method, "prune": prune, "image_share": share}
        for method in ("fullkv", "snapkv")
        for prune, share in ((None, None), ("fastv", 0.5))
    ]
    cells = result_frame(rows, ["prune", "image_share"])
    assert of_reference(cells).tolist() == [True, False, False, False]
    assert crossed_knobs(cells) == ["prune"]
    plain = result_frame([{"model": "m", "method": one} for one in ("fullkv", "snapkv")], [])
    assert of_reference(plain).tolist() == [True, False]
    assert isinstance(of_reference(cells), pd.Series)
