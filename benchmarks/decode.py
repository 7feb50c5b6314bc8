"""Decode, RandomResizedCrop to 224, flip and batch: images per second of a core, against pipelines image by image.

    python -m benchmarks.decode [--rounds 9] [--images 256]

The images are generated, 500 x 400, smooth with edges and a little grain, as JPEG of quality 90 in a temporary folder:
their files are about as large as ImageNet's of that size. All contenders make batches of 64 uint8 tensors on one
thread:

- `ours` is `limbeck.data.decode.train_views`, as the processes of a run call it, its draws included;
- `per image` opens, converts, cuts, resizes, flips with Pillow and makes a tensor of each image, then stacks them: what
  torchvision's classes do, without the classes, with boxes that are drawn beforehand;
- `torchvision, Pillow` and `torchvision, tensors` are its v2 transforms on Pillow's images and on those of
  `decode_jpeg`, where torchvision can be imported.

Before the times are taken, views of `per image` are compared with ours, given our boxes: they are equal to a level, as
torch resizes ours. The contenders take turns; CPU time is what is measured, so that other work on the machine counts
little; medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from limbeck.config import AugmentOptions
from limbeck.data.decode import Crop, MiddleView, train_views
from limbeck.data.image_files import ImageFiles, class_folders
from limbeck.data.resized_crop import draw_boxes
from limbeck.draws import integers

WIDTH, HEIGHT, QUALITY = 500, 400, 90
SIZE, BATCH, SEED = 224, 64, 0
SHARES = (0.08, 1.0)
Batches = Callable[[Tensor, int], Tensor]  # places in the folder, epoch -> uint8 (N, 224, 224, 3) or (N, 3, 224, 224)


def write_images(folder: Path, count: int) -> None:
    """Write smooth pictures with a few edges."""
    (folder / "one").mkdir(parents=True)
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH] / WIDTH
    for number in range(count):
        draws = np.random.default_rng(number)
        levels = np.zeros((HEIGHT, WIDTH, 3))
        for octave in range(1, 7):
            for channel in range(3):
                angle, phase = draws.uniform(0, 6.3, 2)
                wave = np.sin(2**octave * 3 * (rows * np.sin(angle) + columns * np.cos(angle)) + phase)
                levels[..., channel] += wave * 60 / octave
        for _ in range(12):
            top, left, size = draws.uniform(0, 0.8), draws.uniform(0, 0.9), draws.uniform(0.02, 0.3)
            inside = (rows > top) & (rows < top + size) & (columns > left) & (columns < left + size)
            levels[inside] += draws.uniform(-60, 60, 3)
        levels = (128 + levels + draws.normal(0, 5, levels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(levels).save(folder / "one" / f"{number:05d}.jpg", quality=QUALITY)


def ours(files: ImageFiles) -> Batches:
    """Batches as a run's processes make them."""
    options, view = AugmentOptions(resized_crop=SHARES, flip=True), MiddleView(256, SIZE)
    return lambda places, epoch: train_views(files, places, places, (Crop(options, view, SEED, epoch),))[0]


def per_image(files: ImageFiles) -> Batches:
    """Image by image with Pillow and torch; the draws are made beforehand."""
    paths = [files.path(place) for place in range(len(files))]

    def batch(places: Tensor, epoch: int) -> Tensor:
        boxes = draw_boxes(HEIGHT, WIDTH, SHARES, seed=SEED, epoch=epoch, indices=places).tolist()
        flips = integers(SEED, epoch, places, "flip", 2).tolist()
        views = []
        for place, (top, left, height, width), flip in zip(places.tolist(), boxes, flips, strict=True):
            with open(paths[place], "rb") as file:
                image = Image.open(file).convert("RGB")
            image = image.crop((left, top, left + width, top + height))
            image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            if flip:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            views.append(torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous())
        return torch.stack(views)

    return batch


def torchvisions(files: ImageFiles) -> dict[str, Batches]:
    """torchvision's own pipelines; none where it cannot be imported."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg, read_file
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:
        print(f"without torchvision: {str(error).splitlines()[0]}")
        return {}
    paths = [files.path(place) for place in range(len(files))]
    views = [v2.RandomResizedCrop(SIZE, scale=SHARES, antialias=True), v2.RandomHorizontalFlip()]
    of_pillow, of_tensors = v2.Compose([*views, v2.PILToTensor()]), v2.Compose(views)

    def pillow(places: Tensor, epoch: int) -> Tensor:
        return torch.stack([of_pillow(Image.open(paths[place]).convert("RGB")) for place in places.tolist()])

    def tensors(places: Tensor, epoch: int) -> Tensor:
        decoded = (decode_jpeg(read_file(paths[place]), ImageReadMode.RGB) for place in places.tolist())
        return torch.stack([of_tensors(image) for image in decoded])

    return {"torchvision, Pillow": pillow, "torchvision, tensors": tensors}


def main() -> int:
    """Compare, then time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=256)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), asked.images)
        files = class_folders(Path(folder), lambda line: None)
        print(f"{asked.images} JPEGs of {WIDTH} x {HEIGHT}, {float(files.sizes.double().mean()) / 1000:.0f} kB each")
        contenders = {"ours": ours(files), "per image": per_image(files), **torchvisions(files)}
        batches = torch.arange(asked.images).split(BATCH)
        for places in batches:
            found, expected = (contenders[name](places, 1) for name in ("ours", "per image"))
            if (found.permute(0, 3, 1, 2).int() - expected.int()).abs().max() > 1:
                print("the views of `ours` and `per image` differ by more than a level", file=sys.stderr)
                return 1
        print("the views of `ours` and `per image` are equal to a level")
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for epoch in range(asked.rounds + 1):
            for name, batch in contenders.items():
                start = time.process_time()
                for places in batches:
                    batch(places, epoch)
                if epoch:  # the first round is not counted
                    seconds[name].append((time.process_time() - start) / asked.images)
    report(seconds)
    return 0


def report(seconds: dict[str, list[float]]) -> None:
    """Print images per second of CPU time, their range, and the ratio to ours."""
    best = statistics.median(seconds["ours"])
    for name, times in seconds.items():
        middle = statistics.median(times)
        low, high = 1 / max(times), 1 / min(times)
        print(f"{name:22} {1 / middle:7.0f} images/s a core ({low:.0f} to {high:.0f}), {middle / best:.2f} times ours")


if __name__ == "__main__":
    sys.exit(main())
