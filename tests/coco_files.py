"""A few small images with boxes, in files as COCO has them."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

CATEGORIES = (3, 7, 44)  # ids as COCO's, with gaps


def write_coco(root, *, images=7, seed=0):
    """Write two folders of images of several shapes, and their annotations, below `root`/coco."""
    draw = np.random.default_rng(seed)
    for name in ("train2017", "val2017"):
        folder = root / "coco" / name
        folder.mkdir(parents=True)
        (root / "coco" / "annotations").mkdir(exist_ok=True)
        listed, boxes = [], []
        for number in range(images):
            width, height = (int(side) for side in draw.integers(40, 90, 2))
            image = 1000 - number  # ids fall, so that the order of the file is not that of the ids
            pixels = draw.integers(0, 255, (height, width, 3), dtype=np.uint8)
            for _ in range(0 if number == 2 else 1 + number % 3):
                x, y = draw.uniform(0, width - 24), draw.uniform(0, height - 24)
                side = draw.uniform(12, 24)
                label = int(draw.integers(len(CATEGORIES)))
                pixels[int(y) : int(y + side), int(x) : int(x + side)] = 80 * label
                boxes.append({"image_id": image, "category_id": CATEGORIES[label], "bbox": [x, y, side, side]})
            listed.append({"id": image, "file_name": f"{image:012}.jpg", "width": width, "height": height})
            Image.fromarray(pixels).save(folder / f"{image:012}.jpg", quality=95)
        boxes.append({"image_id": 1000, "category_id": 3, "bbox": [0.0, 0.0, 30.0, 30.0], "iscrowd": 1})
        content = {
            "images": listed,
            "categories": [{"id": number, "name": f"thing {number}"} for number in CATEGORIES],
            "annotations": [{"id": place + 1, "iscrowd": 0, **box} for place, box in enumerate(boxes)],
        }
        (root / "coco" / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
    return root
