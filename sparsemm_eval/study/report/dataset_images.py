"""Pictures of a data set's rows, as a process: a request on standard input, JSON on standard output."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

from sparsemm_eval.model.images import rgb_image
from sparsemm_eval.study.report.images import data_uri


def pictures(request: dict[str, Any]) -> dict[int, str]:
    """Row number -> data URI of the row's ``image``.

    Parameters
    ----------
    request : dict
        ``path``, ``name``, ``split``, ``data_files`` as for ``datasets.load_dataset``; ``docs``: row numbers.
    """
    import datasets

    files = {} if request["data_files"] is None else {"data_files": request["data_files"]}
    rows = datasets.load_dataset(request["path"], request["name"], split=request["split"], **files)
    found = {}
    for doc in request["docs"]:
        buffer = io.BytesIO()
        rgb_image(rows[doc]["image"]).save(buffer, "PNG")
        found[doc] = data_uri(buffer.getvalue())
    return found


if __name__ == "__main__":
    print(json.dumps(pictures(json.load(sys.stdin))))
