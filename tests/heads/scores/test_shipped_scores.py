"""The head scores that come with the package belong to the readers that come with it."""

from __future__ import annotations

import json
import re

import pytest

from sparsemm_eval.heads.scores.facts import hit_rate, share_of_top
from sparsemm_eval.heads.scores.lookup import resolve, shipped_names
from sparsemm_eval.model.checkpoint import find
from sparsemm_eval.model.fingerprint import local_fingerprint
from sparsemm_eval.model.shipped import BUILT

NAMES = [name for name in shipped_names() if name.removesuffix("-text") not in BUILT]


@pytest.mark.skipif(not NAMES, reason="no head scores are shipped")
@pytest.mark.parametrize("name", NAMES)
def test_shipped_scores_fit_their_reader(name):
    scores = resolve(name)
    facts = scores.provenance
    reader = facts["model"]
    assert name == reader or name.startswith(f"{reader}-"), "a reader's further tables bear its name"
    assert scores.weights == local_fingerprint(reader)["weights"], "score it again"
    config = find(reader).config.get_text_config()
    scores.check_fits(config.num_hidden_layers, config.num_attention_heads)
    assert not re.search(r"(?<![\w:])/\w+/", json.dumps(facts)), "no path of the machine it was made on"
    if name != reader:  # of other anchors, which it may not read
        assert facts["images"] >= 50
        return
    assert facts["images"] >= 100
    # readers read with few heads, and those look where they read
    assert share_of_top(scores, 0.1) > 0.5
    assert hit_rate(scores, scores.best_heads(1)[0]) > 0.5
