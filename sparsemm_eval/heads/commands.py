"""``sparsemm heads``: commands that find visual heads and show them."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import combinations
from os.path import expanduser
from pathlib import Path
from typing import Annotated

import typer

from sparsemm_eval.errors import ConfigError, reason_of
from sparsemm_eval.files import check_target, remove_records, source_digest, users_path
from sparsemm_eval.heads.anchors.record import Anchor
from sparsemm_eval.heads.anchors.registry import anchor_named, known_anchors

app = typer.Typer(
    name="heads",
    help="Find visual heads: heads that look at the text in an image while they write it.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

BUILT_IN = ", ".join(name for name, anchor in known_anchors().items() if isinstance(anchor, Anchor))
STORED = ", ".join(name for name, anchor in known_anchors().items() if not isinstance(anchor, Anchor))

Model = Annotated[
    str, typer.Option(help="Shipped reader, hub id, or folder of a checkpoint.", parser=expanduser)
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
Dtype = Annotated[str, typer.Option(help="auto (as stored), bfloat16, float16, float32.")]
Scores = Annotated[
    str | None, typer.Option(help="Head scores. Default: those known for the model.", parser=expanduser)
]
Table = Annotated[
    str,
    typer.Argument(help="File, shipped name, hub id or published name of head scores.", parser=expanduser),
]
Plot = Annotated[
    Path | None, typer.Option(help="Draw a picture: a file that ends in .png or .svg.", parser=users_path)
]


@app.command(
    epilog="""Examples:

sparsemm heads score --model tiny-reader --out scores.json

sparsemm heads score --model llava-hf/llava-v1.6-vicuna-7b-hf --anchor synthdog --images 1000 --batch-size 4

sparsemm heads score --model llava-hf/llava-v1.6-vicuna-7b-hf --anchor documents --mode teacher

sparsemm heads score --model Qwen/Qwen2-VL-7B-Instruct --anchor mlt --data MLT2017 --mode teacher

In several processes: python -m torch.distributed.run --standalone --nproc_per_node 2 -m sparsemm_eval.cli
heads score --model tiny-reader"""
)
def score(
    model: Model,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write. Default: your own tables, found by the model's name.", parser=users_path
        ),
    ] = None,
    anchor: Annotated[
        str, typer.Option(help=f"Images with known text: {BUILT_IN}; of stored data: {STORED}.")
    ] = "pages",
    data: Annotated[
        str | None, typer.Option(help="Folder of stored data; or hub data, synthdog.", parser=expanduser)
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Number of images.")] = 200,
    mode: Annotated[
        str, typer.Option(help="generate: the model answers; teacher: it is given the ground truth.")
    ] = "generate",
    topk: Annotated[int, typer.Option(min=1, help="How many strongest keys per token count.")] = 1,
    include_base: Annotated[bool, typer.Option(help="Count LLaVA's thumbnail tokens as well.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length limit of answers.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Names the images; same seed, same scores.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps finished images; a killed run goes on from it.", parser=users_path
        ),
    ] = None,
) -> None:
    """Score every head of a model: how often its strongest attention lies on the text it is about to write.

    Finished images are kept in a journal, so the same command goes on where a killed one was.
    """
    from sparsemm_eval.heads.scores import facts
    from sparsemm_eval.heads.scores.lookup import cache_folder, file_name
    from sparsemm_eval.heads.scoring import score_heads as scoring
    from sparsemm_eval.heads.scoring.batch_scores import ScoringRule
    from sparsemm_eval.model import checkpoint
    from sparsemm_eval.model.placement import place

    rule = ScoringRule(mode, topk=topk, include_base=include_base, max_new_tokens=max_new_tokens)
    work = scoring.Workload(images, batch_size, seed)
    placement = place(device, None, dtype)
    out = out or cache_folder() / file_name(model)
    check_target("out", out)
    finished = journal or out.with_name(out.name + ".journal")
    check_target("journal", finished, folder=True)
    source = anchor_named(anchor, data)
    rule = replace(rule, rule=source.rule)
    mine = replace(work, rank=placement.rank, world_size=placement.world_size)
    loaded = checkpoint.load(checkpoint.find(model, revision, "model"), placement)
    origin = {
        "model": loaded.name,
        "weights": loaded.fingerprint["weights"],
        "revision": loaded.source.commit,
        "data": data and Path(data).name,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
    }
    identity = {**origin, "files": loaded.fingerprint["files"], "source": source_digest()}
    started = time.perf_counter()
    arguments = (loaded.model, loaded.processor, source, rule)
    scoring.score_heads(*arguments, mine, finished, identity, progress=placement.rank == 0)
    placement.accelerator.wait_for_everyone()
    placement.accelerator.end_training()
    if placement.rank != 0:
        return
    # Reading the journal again finds the images of the other processes.
    found = scoring.score_heads(*arguments, work, finished, identity)
    seconds = time.perf_counter() - started
    scores = scoring.summarise(found, scoring.describe(source, rule, work, origin))
    scores.save(out)
    if journal is None:
        remove_records(finished, scoring.KIND)
    for line in [*facts.lines(scores, top=5), f"{seconds:.1f} s, written to {out}"]:
        typer.echo(line)


@app.command(
    epilog="""Examples:

sparsemm heads show tiny-reader

sparsemm heads show scores.json --top 20 --plot map.png"""
)
def show(
    scores: Table,
    top: Annotated[int, typer.Option(min=0, help="How many of the best heads to list.")] = 10,
    plot: Plot = None,
) -> None:
    """Show where the visual heads are and how concentrated the scores are."""
    from sparsemm_eval.heads.figures import plots
    from sparsemm_eval.heads.scores import facts as table_facts
    from sparsemm_eval.heads.scores.lookup import resolve

    if plot is not None:
        plots.check_picture("plot", plot)
    table = resolve(scores)
    for line in table_facts.lines(table, top):
        typer.echo(line)
    if plot is not None:
        plots.save_head_map(table, plot, title=Path(scores).stem)
        typer.echo(f"written to {plot}")


@app.command(
    epilog="""Examples:

sparsemm heads compare tiny-reader mine.json

sparsemm heads compare a.json b.json c.json --plot a-against-b.svg"""
)
def compare(
    tables: Annotated[
        list[str], typer.Argument(help="Two or more: files or names, as for show.", parser=expanduser)
    ],
    plot: Plot = None,
) -> None:
    """Compare tables of one model pair by pair: rank correlation, cosine, overlap of the best 5 %.

    A plot shows the first two.
    """
    from sparsemm_eval.heads.figures import plots
    from sparsemm_eval.heads.scores.facts import agreement
    from sparsemm_eval.heads.scores.lookup import resolve

    if len(tables) < 2:
        raise ConfigError("tables", tables, "at least two tables")
    if plot is not None:
        plots.check_picture("plot", plot)
    loaded = [(name, resolve(name)) for name in tables]
    for (first, a), (second, b) in combinations(loaded, 2):
        found = agreement(a, b)
        typer.echo(
            f"{first} / {second}: Spearman {found.spearman:.4f}, cosine {found.cosine:.4f}, "
            f"overlap of the top 5 % {found.overlap:.1%}"
        )
    if plot is not None:
        (first, a), (second, b) = loaded[:2]
        plots.save_comparison(a, b, (Path(first).stem, Path(second).stem), plot)
        typer.echo(f"written to {plot}")


@app.command(
    epilog="""Example:

sparsemm heads figure page.png --model tiny-reader --word AB --out sheet.png"""
)
def figure(
    image: Annotated[Path, typer.Argument(help="Image file.", parser=users_path)],
    model: Model,
    out: Annotated[Path, typer.Option(help="Picture to write: .png or .svg.", parser=users_path)],
    scores: Scores = None,
    question: Annotated[str, typer.Option(help="What to ask the model.")] = "read all text",
    word: Annotated[str | None, typer.Option(help="Part of the answer. Default: its first word.")] = None,
    best: Annotated[int, typer.Option(min=1, help="How many of the best heads to show.")] = 3,
    worst: Annotated[int, typer.Option(min=0, help="How many of the worst heads to show.")] = 3,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Draw where the best and the worst heads look while the model writes a word."""
    from PIL import Image

    from sparsemm_eval.heads.figures.plots import check_picture
    from sparsemm_eval.heads.figures.word_attention import chosen_heads, save_sheet, word_attention
    from sparsemm_eval.heads.scores.lookup import resolve
    from sparsemm_eval.model import checkpoint
    from sparsemm_eval.model.images import rgb_image
    from sparsemm_eval.model.placement import place

    check_picture("out", out)
    try:
        with Image.open(image) as picture:
            picture = rgb_image(picture)
    except OSError as error:
        raise ConfigError("image", str(image), f"an image file ({reason_of(error)})") from error
    table = resolve(scores, model)
    found = checkpoint.find(model, argument="model")
    table.check_fits(*found.heads)
    loaded = checkpoint.load(found, place(device, None, dtype))
    seen = word_attention(loaded.model, loaded.processor, picture, question, word)
    save_sheet(seen, table, chosen_heads(table, best, worst), out)
    typer.echo(f"answer: {seen.answer}\nwritten to {out}")


@app.command(
    "import",
    epilog="""Example:

sparsemm heads import visual_head/head_score/qwen.json --model Qwen/Qwen2-VL-7B-Instruct --out qwen.json""",
)
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="File of the official format, one entry 'layer-head' per head.", parser=users_path
        ),
    ],
    out: Annotated[Path, typer.Option(help="File to write, in this package's format.", parser=users_path)],
    model: Annotated[str | None, typer.Option(help="The model the scores belong to.")] = None,
) -> None:
    """Turn a score file of the official code into this package's format."""
    from sparsemm_eval.heads.scores.table import import_official

    check_target("out", out)
    table = import_official(file, model)
    table.save(out)
    typer.echo(f"{table.num_layers} layers x {table.num_heads} query heads, written to {out}")
