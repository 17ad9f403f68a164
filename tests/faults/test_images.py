"""Image files of any kind, through `predict`."""

import csv
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import pack

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from killing import make_trained
from reliability import Injections
from resnet_repro.cli import app
from resnet_repro.errors import ReproError
from resnet_repro.mistakes import printable
from resnet_repro.predict import FORMATS, WRITERS, ImageError, Prediction, find_images, read_image, write_sheet

AREA = "Images"
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
NOISE = Image.fromarray(PIXELS)


def encoded(form: str, image: Image.Image = NOISE, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def saved(folder: Path, content: bytes, name: str = "x.png") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def lying() -> Image.Exif:
    """Says that the picture is to be turned by 90 degrees, clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def half_red() -> Image.Image:
    """Red below; to the left when it is turned."""
    image = Image.new("RGB", (40, 40))
    image.paste("red", (0, 20, 40, 40))
    return image


def palette() -> Image.Image:
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return image


GREY16 = Image.fromarray(np.full((40, 40), 0x8080, dtype=np.uint16))
PLAIN = Image.new("RGB", (40, 40), "red")
SEVERAL = {"save_all": True, "append_images": [Image.new("RGB", (40, 40), "blue")] * 2}
DENSE = {"progressive": True, "lossless": True, "compression": "tiff_lzw"}  # each format heeds its own
WHOLE = {
    **{form: encoded(form, exif=lying()) for form in FORMATS},
    **{f"{form}, dense": encoded(form, **DENSE) for form in FORMATS},
    **{f"{form}, animated": encoded(form, **SEVERAL) for form in ("GIF", "PNG", "WEBP")},
    **{f"JPEG, {mode}": encoded("JPEG", NOISE.convert(mode)) for mode in ("CMYK", "L")},
    **{f"PNG, {mode}": encoded("PNG", NOISE.convert(mode)) for mode in ("1", "LA", "P", "I;16")},
    "TIFF, floating point": encoded("TIFF", Image.new("F", (40, 40), 0.5)),
}


@pytest.mark.fault("an image file is truncated or has flipped bits", "it is read, or refused by its name, at once")
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("form", WHOLE)
def test_damaged(tmp_path: Path, form: str, injected: Injections) -> None:
    whole, choose = WHOLE[form], random.Random(form)
    assert read_image(saved(tmp_path, whole)).shape == (3, 32, 32)
    for number in range(injected.count(40, 1000)):
        damaged = bytearray(whole)
        if number % 2:
            del damaged[choose.randrange(len(whole)) :]
        for _ in range(0 if number % 2 else choose.randint(1, 8)):  # half of them in the header
            damaged[choose.randrange(choose.choice([len(whole), 200]))] ^= 1 << choose.randrange(8)
        with injected():
            path, began = saved(tmp_path, bytes(damaged)), time.thread_time()
            try:
                said = f"{path}: {list(read_image(path).shape)}"
            except ImageError as error:
                said = str(error)
            assert time.thread_time() - began < 5
            assert said.startswith(f"{path}: ")
            assert said.isprintable()


OTHERS = {
    "nothing": b"",
    "text": b"no image",
    "HTML": b"<!doctype html><img src=x>",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "PDF": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>",
    "PostScript, which Pillow would run": encoded("EPS"),
    "a program": b"\x7fELF\x02\x01\x01" + bytes(60),
    "a pickle": b"cos\nsystem\n(S'touch ran'\ntR.",
}


@pytest.mark.fault("a file that is no image, under an image's name", "it is refused by its name; nothing in it runs")
@pytest.mark.parametrize("kind", OTHERS)
def test_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError, match=r"x\.png: no image, or damaged at its start; those that are read are BMP"):
        read_image(saved(tmp_path, OTHERS[kind]))
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def header(width: int, height: int) -> bytes:
    """Of a PNG file."""
    content = b"IHDR" + pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return content + pack(">I", zlib.crc32(content))


PROMISING = {  # what says 40 x 40, and what is written there instead
    "BMP": (pack("<iii", 40, 40, 40), pack("<iii", 40, 100_000, 100_000)),
    "GIF": (pack("<HH", 40, 40), pack("<HH", 65_535, 65_535)),
    "JPEG": (pack(">HH", 40, 40), pack(">HH", 65_500, 65_500)),
    "PNG": (header(40, 40), header(100_000, 100_000)),
    "PNG, a little": (header(40, 40), header(10_000, 9_000)),
    "PNG, a line": (header(40, 40), header(1, 2**31 - 1)),
    "PPM": (b"40 40", b"100000 100000"),
    "TIFF": tuple(pack("<HHIIHHII", 256, 4, 1, side, 257, 4, 1, side) for side in (40, 100_000)),
    "WEBP": (pack("<I", 39 | 39 << 14), pack("<I", 16382 | 16382 << 14)),
}
BOUNDED = """
import resource, sys, warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from resnet_repro.predict import WORKERS, ImageError, read_image
def outcome(path):
    try:
        return str(list(read_image(Path(path)).shape))
    except ImageError as error:
        return str(error)
warnings.simplefilter("ignore")
outcome("missing")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(*ThreadPoolExecutor(WORKERS).map(outcome, sys.argv[1:]), sep="\\n")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024))
"""


def outcomes(*paths: Path) -> tuple[list[str], int]:
    """Of `read_image`, in parallel in a process of its own, and how many bytes its memory grew."""
    done = subprocess.run([sys.executable, "-c", BOUNDED, *paths], capture_output=True, text=True, check=True)
    *messages, grown = done.stdout.splitlines()
    return messages, int(grown)


@pytest.mark.fault("an image that promises more pixels than memory holds", "it is refused before it takes memory")
def test_bombs(tmp_path: Path, injected: Injections) -> None:
    paths = []
    for form, (true, promised) in PROMISING.items():
        whole = encoded(form.partition(",")[0], **({"lossless": True} if form == "WEBP" else {}))
        assert true in whole, form
        paths.append(saved(tmp_path, whole.replace(true, promised), form))
    sparse = saved(tmp_path, encoded("WEBP"), "sparse")  # Pillow reads such files whole
    os.truncate(sparse, 1 << 40)
    with injected(len(paths) + 1):
        messages, grown = outcomes(*paths, sparse)
        expected = [f"{path}: more than 89,478,485 pixels: scale it down first" for path in paths]
        assert messages == [*expected, f"{sparse}: 1,099,511,627,776 bytes, more than 357,913,940: scale it down first"]
        assert grown < 50 << 20


@pytest.mark.fault("many large images, or of one by many pixels", "each is read, and few at a time, in little memory")
def test_large(tmp_path: Path, injected: Injections) -> None:
    large, lines = encoded("PNG", Image.new("1", (5000, 5000))), [(1, 100_000), (100_000, 1), (3, 65_000)]
    paths = [saved(tmp_path, large, str(number)) for number in range(4)]
    paths += [saved(tmp_path, encoded("PNG", Image.new("RGB", size, "red")), f"{size}") for size in lines]
    with injected(len(paths)):
        messages, grown = outcomes(*paths)
        assert messages == ["[3, 32, 32]"] * len(paths)
        assert grown < 250 << 20  # one takes 125 MB


RED, GREY, WHITE = (255, 0, 0), (128, 128, 128), (255, 255, 255)
ODD: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "CMYK": (encoded("TIFF", Image.new("CMYK", (40, 40), (0, 255, 255, 0))), RED),
    "CMYK, as Adobe's JPEG": (encoded("JPEG", Image.new("CMYK", (40, 40), (0, 255, 255, 0))), RED),
    **{f"16 bits of grey, {form}": (encoded(form, GREY16), GREY) for form in ("PNG", "TIFF", "PPM")},
    "1 bit": (encoded("PNG", Image.new("1", (40, 40), 1)), WHITE),
    "a palette": (encoded("PNG", palette()), (200, 100, 50)),
    "a transparent palette": (encoded("PNG", palette(), transparency=1), WHITE),
    "grey, half transparent": (encoded("PNG", Image.new("LA", (40, 40), (0, 128))), (127, 127, 127)),
    "transparent": (encoded("PNG", Image.new("RGBA", (40, 40), (9, 9, 9, 0))), WHITE),
    "floating point": (encoded("TIFF", Image.new("F", (40, 40), 0.5)), GREY),
    **{f"turned by EXIF, {form}": (encoded(form, half_red(), exif=lying()), RED) for form in ("PNG", "TIFF", "WEBP")},
    **{f"animated, {form}": (encoded(form, PLAIN, **SEVERAL, lossless=True), RED) for form in ("GIF", "PNG", "WEBP")},
}


@pytest.mark.fault("CMYK, 16 bits, palettes, transparency, EXIF, animation", "the colours are those that people see")
@pytest.mark.parametrize("kind", ODD)
def test_odd_kinds(tmp_path: Path, kind: str) -> None:
    content, expected = ODD[kind]
    assert read_image(saved(tmp_path, content))[:, 16, 4].tolist() == pytest.approx(expected, abs=1)


@pytest.mark.fault("pixels whose range is unknown", "the file is refused, and what cannot be told is said")
@pytest.mark.parametrize("value", [1e9, -1.0, float("nan")])
def test_unknown_ranges(tmp_path: Path, value: float) -> None:
    with pytest.raises(ImageError, match=r"x\.png: pixels beyond 0 to 1, so that white cannot be told: save it with 8"):
        read_image(saved(tmp_path, encoded("TIFF", Image.new("F", (40, 40), value))))


@contextmanager
def as_nobody() -> Iterator[None]:
    user = os.geteuid()
    os.seteuid(user or 65534)  # root may read everything
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.fault("no file but a folder, a pipe, a dangling link, or no right to read", "it is refused by its name")
def test_no_files(injected: Injections) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        os.mkfifo(folder / "pipe.png")
        (folder / "link.png").symlink_to("nowhere")
        (folder / "circle.png").symlink_to("circle.png")
        (folder / "up").symlink_to(folder)
        (folder / "folder.png").mkdir(mode=0)
        saved(folder, WHOLE["PNG"], "secret.png").chmod(0)
        reasons = {
            "circle.png": "Too many levels of symbolic links",
            "folder.png": "no file, or a folder that cannot be opened",
            "link.png": "No such file or directory",
            "pipe.png": "no file, or",
            "secret.png": "Permission denied",
        }
        with as_nobody():
            found, _ = find_images([folder, folder / "missing.png"])  # ends, although a link leads back up
            assert sorted(path.name for path in found) == sorted([*reasons, "missing.png"])
            for path in found:
                with injected(), pytest.raises(ImageError, match=f"{path}: {reasons.get(path.name, 'No such file')}"):
                    read_image(path)


NAMES = ["\x1b[31mred\x1b]0;title\x07.png", "[bold]a.png", "a\nb.png", "\udcff\udcfe.png", "=1+1,2.png", "\u202egnp"]


@pytest.mark.fault("a file name of escape sequences, markup or bytes that are no text", "it is spelt out, inert")
@pytest.mark.parametrize("name", NAMES)
def test_hostile_names(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, b"no image", name)
    with pytest.raises(ImageError) as raised:
        read_image(path)
    assert str(raised.value).isprintable()
    seen = [Prediction(Path(name), torch.zeros(3, 32, 32, dtype=torch.uint8), (("dog", 0.5),))]
    written = {form: write(seen, "net-1") for form, write in WRITERS.items()}
    assert all(text.replace("\n", "").isprintable() for text in written.values())
    assert printable(name) in written["table"]
    assert printable(name) in next(csv.DictReader(io.StringIO(written["csv"])))["file"]
    assert json.loads(written["json"])[0]["file"] == name
    assert write_sheet(seen, tmp_path / "sheet.png") == 1


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a small run that is trained, and a folder with two images and a text."""
    folder = tmp_path_factory.mktemp("workspace")
    make_trained(folder)
    (folder / "run").rename((folder / "runs").mkdir() or folder / "runs/resnet-1")
    (folder / "images/deeper").mkdir(parents=True)
    saved(folder / "images", WHOLE["PNG"], "good [bold].png")
    saved(folder / "images/deeper", WHOLE["JPEG"], os.fsdecode(b"\xff.JPG"))
    saved(folder / "images", b"text", "notes.txt")
    return folder


def call(workspace: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [
        sys.executable,
        "-c",
        "from resnet_repro.cli import main; main()",
        "predict",
        "--model=resnet",
        *arguments,
    ]
    return subprocess.run(command, cwd=workspace, capture_output=True, text=True, check=False, timeout=300)


MIXED = "good and broken images in one call", "the good ones are predicted, the broken ones named, and the status is 1"


@pytest.mark.fault(*MIXED)
def test_good_ones(workspace: Path) -> None:
    done = call(workspace, "images", "--sheet", "sheets/a.png")
    assert (done.returncode, "images/good [bold].png" in done.stdout, r"\udcff.JPG" in done.stdout) == (0, True, True)
    assert done.stderr.splitlines() == [
        "1 files in the folders are no images, by their names: left out",
        "sheets/a.png shows 2 of 2 images",
    ]


@pytest.mark.fault(*MIXED)
def test_mixed_ones(workspace: Path) -> None:
    bad = ["images/notes.txt", "missing.png", "pipe.png", "\x1b[31mcut.png", "bomb.png"]
    os.mkfifo(workspace / "pipe.png")
    saved(workspace, WHOLE["PNG"][:1000], "\x1b[31mcut.png")
    saved(workspace, WHOLE["PNG"].replace(*PROMISING["PNG"]), "bomb.png")
    done = call(workspace, *bad, "images", "--format", "json", "--top-k", "2")
    assert done.returncode == 1
    found = [(record["file"], record["rank"], record["model"], record["run"]) for record in json.loads(done.stdout)]
    good = ("images/deeper/\udcff.JPG", "images/good [bold].png")
    assert found == [(name, rank, "resnet", "resnet-1") for name in good for rank in (1, 2)]
    _, *complaints = done.stderr.splitlines()
    names = [name.replace("\x1b", r"\x1b") for name in bad]
    assert [line.partition(": ")[0] for line in complaints] == names, done.stderr


@pytest.mark.fault("a contact sheet that would replace an image, or has no place", "nothing is replaced; it is said")
@pytest.mark.parametrize(
    ("sheet", "message"),
    [
        ("images/deeper/../good [bold].png", "is one of the images: draw the contact sheet elsewhere"),
        ("images/notes.txt/a.png", "the contact sheet images/notes.txt/a.png cannot be written: "),
        ("images", "the contact sheet images cannot be written: Is a directory"),
    ],
)
def test_sheets(workspace: Path, monkeypatch: pytest.MonkeyPatch, sheet: str, message: str) -> None:
    monkeypatch.chdir(workspace)
    before = {path: path.read_bytes() for path in (workspace / "images").rglob("*") if path.is_file()}
    done = CliRunner().invoke(app, ["predict", "images", "--model", "resnet", "--sheet", sheet])
    assert isinstance(done.exception, ReproError)
    assert message in str(done.exception)
    assert before == {path: path.read_bytes() for path in (workspace / "images").rglob("*") if path.is_file()}
