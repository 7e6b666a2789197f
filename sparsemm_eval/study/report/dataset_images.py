"""Pictures of a data set's rows, as a process: a request on standard input, JSON on standard output."""

from __future__ import annotations

import io
import json
import socket
import sys
from typing import Any

from sparsemm_eval.model.images import rgb_image
from sparsemm_eval.study.report.images import data_uri


def pictures(request: dict[str, Any]) -> dict[int, str]:
    """Row number -> data URI of the row's ``image``.

    Parameters
    ----------
    request : dict
        ``path``, ``name`` and ``split`` as for ``datasets.load_dataset``; ``docs``: row numbers.
    """
    import datasets

    rows = datasets.load_dataset(request["path"], request["name"], split=request["split"])
    found = {}
    for doc in request["docs"]:
        buffer = io.BytesIO()
        rgb_image(rows[doc]["image"]).save(buffer, "PNG")
        found[doc] = data_uri(buffer.getvalue())
    return found


def _refuse(*_: Any) -> None:
    raise OSError("no network for pictures")


if __name__ == "__main__":
    socket.socket.connect = _refuse
    print(json.dumps(pictures(json.load(sys.stdin))))
