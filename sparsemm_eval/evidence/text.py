"""The evidence as text: the numbers that ``evidence.md.j2`` puts into its sentences and tables."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import torch

from sparsemm_eval.errors import EvaluationError
from sparsemm_eval.evidence.measure import EFFORTS, Evidence
from sparsemm_eval.heads.scores.facts import SHARES, TOP_SHARE, agreement, noteworthy_heads, share_of_top
from sparsemm_eval.heads.scores.table import HeadScores, count_of
from sparsemm_eval.studies import FOLDER
from sparsemm_eval.study.folder import StudyFolder
from sparsemm_eval.study.results import collect
from sparsemm_eval.study.table_formats import write_tables
from sparsemm_eval.study.tables import Study, of_kind

WIDTH = 110  # characters of a line
WINDOW = 8  # where a study has the embedded readers' own
#: What the study of each window keeps beside it in its smallest row.
WINDOW_ALONE = {
    8: "SnapKV at budget 9 keeps the window of 8 and one entry more, the smallest budget there is.",
    16: "StreamingLLM with no sinks keeps as many of the last tokens and nothing else.",
}
DRAWS = 300  # of the bootstrap of head-score tables


def document(found: Evidence, study: Path, figures: str, option: str) -> str:
    """The whole document; its tables of accuracy are those of a study's folder.

    `figures` is the folder of figures as the document refers to it, `option` how the command was called.

    Raises
    ------
    EvaluationError
        If the study has no finished cells.
    """
    results = Study.of(*collect([study]))
    masking, accuracy = (of_kind(results, kind) for kind in ("masking", "main"))
    if not masking or not accuracy:
        raise EvaluationError(f"{study}: not done, run `sparsemm study run evidence` first")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sparsemm_eval.evidence", ""),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["fill"] = _fill
    record = StudyFolder(study).settings()
    window = record["settings"].get("knobs", {}).get("window", [WINDOW])[0]
    shipped = record["name"].replace("-", "/", 1)  # one of a folder of studies
    first = next(iter(found.stacks.values()))
    mean = HeadScores(first.mean(0))
    total = mean.table.numel()
    best_layer, best_head = mean.best_heads(1)[0]
    return environment.get_template("evidence.md.j2").render(
        option=option,
        study=shipped if (FOLDER / f"{shipped}.yaml").is_file() else record["name"],
        figures=figures,
        name=found.reader.name,
        parameters=round(found.reader.model.num_parameters() / 1e6),
        window=window,
        window_alone=WINDOW_ALONE[window],
        weights=found.reader.fingerprint["weights"][:19],
        images=EFFORTS[found.effort],
        total=total,
        top=count_of(TOP_SHARE, total),
        concentration=list(_concentration(first)),
        noteworthy=noteworthy_heads(mean),
        best_layer=best_layer,
        best_head=best_head,
        kinds=found.kinds,
        counted=found.counted,
        **_agreements(found),
        masking=write_tables(masking, "markdown").strip(),
        accuracy=write_tables(accuracy, "markdown").strip(),
        word=found.word.word,
        on_word=f"{found.on_word:.1%}",
    )


def _fill(text: str, indent: str = "") -> str:
    """A paragraph as lines of at most ``WIDTH`` characters, all but the first indented."""
    wrapper = textwrap.TextWrapper(
        width=WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return wrapper.fill(" ".join(text.split())) + "\n"


def _concentration(stack: torch.Tensor) -> Iterator[tuple[str, str]]:
    """Name of a share of the best heads, and the part of the score it holds."""
    mean, tables = HeadScores(stack.mean(0)), [HeadScores(table) for table in resampled_tables(stack, DRAWS)]
    for share in SHARES:
        drawn = [share_of_top(table, share) for table in tables]
        heads = f"{share:.0%} ({count_of(share, mean.table.numel())})"
        yield heads, _ranged(share_of_top(mean, share), drawn)


def _agreements(found: Evidence) -> dict[str, Any]:
    """Each kind's agreement with the first kind as cells, and the cosines that the text names."""
    first, *others = found.kinds
    reference = resampled_tables(found.stacks[first.name], DRAWS, seed=1)
    cells, cosines = {first.name: ["–"] * 3}, {True: [], False: []}
    for kind in others:
        stack = found.stacks[kind.name]
        whole = agreement(HeadScores(found.stacks[first.name].mean(0)), HeadScores(stack.mean(0)))
        cosines[kind.known].append((kind.name, whole.cosine))
        pairs = [
            agreement(HeadScores(a), HeadScores(b))
            for a, b in zip(reference, resampled_tables(stack, DRAWS, seed=2), strict=True)
        ]
        cells[kind.name] = [
            _ranged(getattr(whole, name), [getattr(pair, name) for pair in pairs])
            for name in ("spearman", "cosine", "overlap")
        ]
    return {
        "agreements": cells,
        "known": f"{min(cosine for _, cosine in cosines[True]):.3f}",
        "unknown": ", ".join(f"{cosine:.3f} ({name})" for name, cosine in cosines[False]),
    }


def resampled_tables(stack: torch.Tensor, draws: int, seed: int = 0) -> torch.Tensor:
    """Head-score tables float64 [draws, L, H], each summing to one, of images drawn with replacement.

    ``stack`` float64 [images, L, H] holds the scores of single images.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(stack), (draws, len(stack)), generator=generator)
    means = stack[chosen].mean(1)
    return means / means.sum((1, 2), keepdim=True)


def _ranged(value: float, draws: list[float]) -> str:
    """A value with the 95 % interval of its bootstrap draws; draws without a value are left out."""
    known = torch.tensor([draw for draw in draws if not math.isnan(draw)], dtype=torch.float64)
    low, high = known.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return f"{value:.3f} ({low:.3f} … {high:.3f})"
