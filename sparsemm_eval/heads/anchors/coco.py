"""COCO detection, the control: objects instead of text, the name of a category and its box.

An annotation's ``bbox`` is [left, top, width, height] in pixels. Crowds (``iscrowd``), whose boxes hold many
objects and whatever is between them, and images without other annotations are left out.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from sparsemm_eval.errors import ConfigError
from sparsemm_eval.heads.anchors import stored
from sparsemm_eval.heads.anchors.record import TextBox


def _items(folder: Path) -> list[tuple[str, Path, list[TextBox]]]:
    found = sorted(folder.rglob("instances_*.json"))
    if len(found) != 1:
        raise ConfigError("data", str(folder), f"exactly one instances_*.json, not {len(found)}")
    paths = stored.files_by_name(folder)
    with stored.format_expected(found[0].name, "COCO instances whose images exist"):
        record = json.loads(found[0].read_text(encoding="utf-8"))
        names = {category["id"]: category["name"] for category in record["categories"]}
        objects: dict[Any, list[TextBox]] = defaultdict(list)
        for annotation in record["annotations"]:
            if not annotation.get("iscrowd"):
                box = stored.box_of_size(*annotation["bbox"])
                objects[annotation["image_id"]].append(TextBox(names[annotation["category_id"]], box))
        named = [image for image in record["images"] if image["id"] in objects]
        files = [paths[image["file_name"]] for image in named]
        return [(file.stem, file, objects[image["id"]]) for file, image in zip(files, named, strict=True)]


HOLDS = "one instances_*.json and the images it names"
ANCHORS = (stored.folder_anchor("coco", HOLDS, _items, question="Name all objects in the image."),)
