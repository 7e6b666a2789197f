"""COCO detection, the control: objects instead of text, the name of a category and its box."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.anchors.record import Anchor, TextBox
from sparsemm_eval.heads.anchors.stored import file_sample, files_by_name, folder_of, stored_anchor

REQUEST = "Name all objects in the image."


def coco_anchor(data: str | None = None) -> Anchor:
    """Read one ``instances_*.json`` and its images anywhere below one folder.

    An annotation's ``bbox`` is [left, top, width, height] in pixels. Crowds (``iscrowd``), whose boxes hold
    many objects and whatever is between them, and images without other annotations are left out.

    Raises
    ------
    ConfigError
        If the folder, the file or an image is missing, or the file is of another format.
    """
    folder = folder_of(data, "coco", "one instances_*.json and the images it names")
    found = sorted(folder.rglob("instances_*.json"))
    if len(found) != 1:
        raise ConfigError("data", str(folder), f"exactly one instances_*.json, not {len(found)}")
    paths = files_by_name(folder)
    try:
        record = json.loads(found[0].read_text(encoding="utf-8"))
        names = {category["id"]: category["name"] for category in record["categories"]}
        objects: dict[Any, list[TextBox]] = defaultdict(list)
        for annotation in record["annotations"]:
            if annotation.get("iscrowd"):
                continue
            left, top, width, height = annotation["bbox"]
            text = names[annotation["category_id"]]
            objects[annotation["image_id"]].append(TextBox(text, (left, top, left + width, top + height)))
        items = [
            (paths[image["file_name"]], objects[image["id"]])
            for image in record["images"]
            if image["id"] in objects
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError("data", found[0].name, f"COCO instances whose images exist ({error!r})") from error
    return stored_anchor("coco", items, lambda item: file_sample(item[0].stem, *item, REQUEST))
