"""What a trained net sees in image files.

Pillow reads them: it knows more kinds of pixels than torchvision.io, and what it opens can be confined to plain raster
formats (its reader of EPS runs Ghostscript). A file is judged by its content, and nothing is decoded before its size in
pixels is known: whatever the files are, they take some 2 GB of memory at most.
"""

import csv
import io
import json
import logging
import os
import stat
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from resnet_repro.engine import configure, resolve
from resnet_repro.errors import DataError, ReproError
from resnet_repro.evaluation import Evaluator, batches
from resnet_repro.evidence import WEIGHTS, write_atomically
from resnet_repro.mistakes import nearest, printable
from resnet_repro.models import NUM_CLASSES
from resnet_repro.models.classifier import Classifier, to_fastest_layout
from resnet_repro.params import Engine, load
from resnet_repro.pretrained import FOLDER, published, read_published

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 89_478_485
"""Pillow's own limit, from which on it warns: a quarter of a gigabyte in three bytes a pixel"""
MAX_BYTES = 4 * MAX_PIXELS
"""of a file: WebP, and a chunk of PNG, are read whole before anything is known of them"""
LARGE, ALONE = 1 << 23, RLock()
"""An image of more pixels, or four times the bytes, is decoded alone: WebP takes 16 bytes a pixel for it."""
SIZE, LEAST = 32, 256
"""pixels a side: as the net wants it, and the least to which a large image is reduced fast before it is resized well"""
WORKERS, BATCH_SIZE, SHEET_IMAGES = 4, 128, 100
FIELDS = ("file", "rank", "class", "probability", "model", "run")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""CIFAR-10's, in the order of its labels: https://www.cs.toronto.edu/~kriz/cifar.html"""


class ImageError(ReproError):
    """A file is no image that can be read."""


@dataclass(frozen=True)
class Prediction:
    """An image as the net saw it, and its likeliest classes, or why there is none."""

    path: Path
    image: Tensor | None = None  # (3, 32, 32) uint8
    top: tuple[tuple[str, float], ...] = ()  # class and probability, the likeliest first
    problem: str = ""


def read_image(path: Path) -> Tensor:
    """An image file as (3, 32, 32) uint8, red, green, blue, 0 to 255: the middle square, resized with antialiasing.

    The first picture of several, turned upright by its EXIF, over white where it is transparent, 16 bits scaled to 8.
    Of 32x32 pixels it stays as it is.

    Raises:
        ImageError: it is missing, damaged, too large or no image of `FORMATS`.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for a writer
            raise ImageError("no file, or a folder that cannot be opened")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"{status.st_size:,} bytes, more than {MAX_BYTES:,}: scale it down first")
        alone = ALONE if status.st_size > 4 * LARGE else nullcontext()
        with alone, Image.open(path, formats=FORMATS) as image:
            whole = image.width * image.height
            if whole > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.draft(None, (LEAST, LEAST))  # JPEG can be decoded to an eighth of its size, unless it is progressive
            decoded = whole if "progressive" in image.info else image.width * image.height
            with ALONE if decoded > LARGE else nullcontext():
                ImageOps.exif_transpose(image, in_place=True)
                pixels = torch.from_numpy(_middle_square(image)).permute(2, 0, 1)
        return transforms.resize(pixels, [SIZE, SIZE], antialias=True).contiguous()
    except ImageError as error:
        reason = str(error)
    except Image.DecompressionBombError:
        reason = f"more than {MAX_PIXELS:,} pixels: scale it down first"
    except UnidentifiedImageError:
        reason = f"no image, or damaged at its start; those that are read are {', '.join(FORMATS)}"
    except Exception as error:  # what a damaged file raises is not foreseeable
        reason = f"damaged ({type(error).__name__}: {printable(error)[:200]}): take a whole copy, or save it anew"
        if isinstance(error, OSError) and error.filename:  # it could not be opened
            reason = str(error.strerror)
    raise ImageError(f"{printable(path)}: {reason}")


def _middle_square(image: Image.Image) -> np.ndarray:
    """(H, H, 3) uint8, H below 2 * LEAST."""
    mode = image.mode[0] if image.mode[0] in "IF" else "RGBA" if image.has_transparency_data else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    side = min(image.size)
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    box, factor = (left, top, left + side, top + side), side // LEAST
    image = image.reduce(factor, box) if factor > 1 else image.crop(box)
    if mode in "IF":  # Pillow's own conversion cuts off at 255
        values, highest = np.asarray(image, dtype=np.float64), 1.0 if mode == "F" else 65535.0
        if not (values.min() >= 0 and values.max() <= highest):
            raise ImageError(f"pixels beyond 0 to {highest:g}, so that white cannot be told: save it with 8 bits")
        return np.stack([np.rint(values * (255 / highest)).astype(np.uint8)] * 3, axis=-1)
    if mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return np.array(image)


def find_images(paths: Iterable[Path]) -> tuple[list[Path], int]:
    """The files among `paths` and, in order, those below its folders that are images by their suffix; and how many
    others are there. A folder that cannot be opened is among the files. Links to folders are not followed."""
    found, others = list[Path](), 0
    suffixes = {suffix for suffix, form in Image.registered_extensions().items() if form in FORMATS}
    for path in paths:  # what os.walk cannot open is a file, or refused by the system
        walk = os.walk(path, onerror=lambda error: found.append(Path(error.filename)))
        files = sorted(Path(folder, name) for folder, _, names in walk for name in names)
        images = [file for file in files if file.suffix.lower() in suffixes]
        found.extend(images)
        others += len(files) - len(images)
    return found, others


def trained_run(workspace: Path, name: str) -> Path:
    """The folder of a run that is trained here: the run `name`, or the lowest seed of the model `name`.

    Raises:
        ReproError: there is none; it says how to get it.
    """
    trained = [path.parent for path in sorted((workspace / "runs").glob(f"*/{WEIGHTS}"))]
    if found := [run for run in trained if name in (run.name, run.name.rpartition("-")[0])]:
        return min(found, key=lambda run: (len(run.name), run.name))
    params = load(workspace / "params.yaml")
    runs = params.runs | params.ablations
    keys = {run.model: key for key, run in reversed(runs.items())} | {key: key for key in runs}
    here = f"; trained here: {', '.join(run.name for run in trained)}" if trained else ""
    if name not in keys:
        raise ReproError(f"params.yaml has no model or run {printable(name)}{nearest(name, keys)}")
    stage = f"train@{keys[name]}" if keys[name] in params.runs else f"ablations/dvc.yaml:train@{keys[name]}"
    raise ReproError(
        f"the weights of {name} are not here: `dvc pull runs/{keys[name]}` fetches them where a remote has them, "
        f"`dvc repro {stage}` trains them{here}; published in {FOLDER}/: "
        f"{', '.join(published(workspace / FOLDER)) or 'none'}"
    )


def find_weights(workspace: Path, name: str) -> Path:
    """The folder of `trained_run`, or where it is not trained here the published file of that model, or of that run.

    Raises:
        ReproError: there is neither; it says how to get it.
        CheckpointError: the published file is damaged.
    """
    try:
        return trained_run(workspace, name)
    except ReproError:
        files = published(workspace / FOLDER)
        model = name if name in files else name.rpartition("-")[0]
        if model in files and (name == model or name == read_published(workspace / FOLDER, model)[1].provenance.key):
            return files[model]
        raise


def class_names(workspace: Path) -> tuple[str, ...]:
    """Of the data set that is prepared here, or CIFAR-10's. Raises DataError: they are not what `prepare` wrote."""
    path = workspace / "data/cifar10/classes.json"
    try:
        names = tuple(map(str, json.loads(path.read_bytes())))
    except FileNotFoundError:
        return CLASSES
    except (ValueError, TypeError):
        names = ()
    if len(names) != NUM_CLASSES:
        raise DataError(f"{path} is no list of {NUM_CLASSES} names: run `dvc repro --force prepare`")
    return names


def predict(
    classifier: Classifier, paths: Sequence[Path], classes: Sequence[str], num_top: int = 3
) -> Iterator[Prediction]:
    """Predictions in the order of `paths`, in float32, on the GPU if there is one: `classifier` is moved there.

    Threads decode the next files while the net sees those before.
    """
    engine = resolve(Engine(mode="eager", precision="fp32"))
    configure(engine)
    to_fastest_layout(classifier, engine.torch_device)
    evaluator = Evaluator(classifier.net, engine)

    def read(path: Path) -> Prediction:
        try:
            return Prediction(path, read_image(path))
        except ImageError as error:
            return Prediction(path, problem=str(error))

    def likeliest(images: list[Tensor]) -> Iterator[tuple[tuple[str, float], ...]]:
        stacked = torch.stack(images).to(engine.torch_device)
        for row in evaluator.probabilities(batches(stacked, stacked, classifier.normalizer)).tolist():
            yield tuple(sorted(zip(classes, row, strict=True), key=lambda entry: -entry[1])[:num_top])

    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # it would complain of files without their names
    with ThreadPoolExecutor(WORKERS) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ahead = pool.map(read, paths[:BATCH_SIZE])
        for end in range(BATCH_SIZE, len(paths) + BATCH_SIZE, BATCH_SIZE):
            those, ahead = list(ahead), pool.map(read, paths[end : end + BATCH_SIZE])
            tops = likeliest([one.image for one in those if one.image is not None])
            yield from (one if one.image is None else replace(one, top=next(tops)) for one in those)


def as_table(predictions: Iterable[Prediction], run: str) -> str:
    """For a terminal: a row for each image that could be read."""
    table = Table("file", "class", "probability", box=None, pad_edge=False, title=run, title_justify="left")
    for one in predictions:
        if one.top:
            names, chances = zip(*one.top, strict=True)
            cells = (printable(one.path), "\n".join(names), "\n".join(f"{chance:7.2%}" for chance in chances))
            table.add_row(*(Text(cell, overflow="fold") for cell in cells))
    console = Console(width=max(Console().width, 80))
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def as_json(predictions: Iterable[Prediction], run: str) -> str:
    """A list of records, one for each image and likely class: file, rank (1 is the likeliest), class, probability,
    model and run. An image that could not be read has none. `file` is exact, whatever it holds."""
    return json.dumps([dict(zip(FIELDS, row, strict=True)) for row in _rows(predictions, run)], indent=1) + "\n"


def as_csv(predictions: Iterable[Prediction], run: str) -> str:
    """The same, with what is not printable in a name spelt out."""
    buffer = io.StringIO()
    rows = ((printable(file), *others) for file, *others in _rows(predictions, run))
    csv.writer(buffer, lineterminator="\n").writerows([FIELDS, *rows])
    return buffer.getvalue()


def _rows(predictions: Iterable[Prediction], run: str) -> Iterator[tuple[str, int, str, float, str, str]]:
    for one in predictions:
        for rank, (name, probability) in enumerate(one.top, start=1):
            yield str(one.path), rank, name, probability, run.rpartition("-")[0], run


WRITERS = {"table": as_table, "json": as_json, "csv": as_csv}


def write_sheet(predictions: Iterable[Prediction], path: Path) -> int:
    """Draw the first `SHEET_IMAGES` images, as the net saw them, into a PNG file. How many there are on it.

    Raises:
        ReproError: it cannot be written.
    """
    drawn = [(one, one.image) for one in predictions if one.image is not None][:SHEET_IMAGES]
    width, height, columns = 124, 144, 10
    sheet = Image.new("RGB", (width * min(len(drawn), columns), height * -(-len(drawn) // columns)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, (one, image) in enumerate(drawn):
        left, top = index % columns * width + 14, index // columns * height + 8
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        sheet.paste(picture.resize((3 * SIZE, 3 * SIZE), Image.Resampling.NEAREST), (left, top))
        name, (likeliest, chance) = printable(one.path.name), one.top[0]
        text = f"{name if len(name) <= 16 else name[:15] + '…'}\n{likeliest} {chance:.0%}"
        draw.multiline_text((left, top + 3 * SIZE + 2), text, "black", font, spacing=2)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise ReproError(f"the contact sheet {printable(path)} cannot be written: {error.strerror}") from None
    return len(drawn)
