"""FullKV: the whole prompt, what every other method is compared with."""

from sparsemm_eval.methods.base import Method, Style
from sparsemm_eval.methods.published import sparsemm_table

METHOD = Method(
    name="fullkv",
    title="FullKV",
    meaning="nothing is evicted",
    published=sparsemm_table(None, (0.68, 0.52, 0.65, 0.55, 0.73)),
    style=Style("#1c2128", "o"),
)
