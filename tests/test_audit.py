"""The audit: foreign nets against a reference written from their descriptions, files that are not what they
should be, and, where they lie beside the repository, the eight published files."""

import functools
import hashlib
import http.server
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from typer.testing import CliRunner

from killing import write_params
from resnet_repro import audit as module
from resnet_repro.audit import AuditError, Claim, Entry
from resnet_repro.cli import app
from resnet_repro.data.archive import TEST_MEMBER, read_members
from resnet_repro.data.arrays import Arrays
from resnet_repro.data.decoding import decode_batch
from resnet_repro.evidence import sha256_of
from resnet_repro.params import load
from resnet_repro.pretrained import PAGE
from resnet_repro.pretrained import published as our_files
from test_real_data import ARCHIVE, ROOT

State = dict[str, Tensor]

DEPTH = 14  # two blocks in each group
OUTER = {"a_martyn": ("convIn", "bnIn", "fcOut"), "common": ("conv1", "bn1", "linear")}
BLOCKS = {
    "a_martyn": [["stack1.0", "stack1.1"], ["stack2a", "stack2b.0"], ["stack3a", "stack3b.0"]],
    "common": [[f"layer{group}.{index}" for index in (0, 1)] for group in (1, 2, 3)],
}
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def foreign_state(names: str) -> State:
    """Random weights and statistics under foreign names."""
    generator = torch.Generator().manual_seed(0)
    state: State = {}

    def conv(name: str, channels: int, width: int) -> None:
        state[f"{name}.weight"] = torch.randn(width, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5

    def norm(name: str, width: int) -> None:
        for leaf, low in (("weight", 0.5), ("running_var", 0.5), ("bias", -0.5), ("running_mean", -0.5)):
            state[f"{name}.{leaf}"] = torch.rand(width, generator=generator) + low
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    stem, stem_norm, linear = OUTER[names]
    conv(stem, 3, 16)
    norm(stem_norm, 16)
    channels = 16
    for width, group in zip((16, 32, 64), BLOCKS[names], strict=True):
        for block in group:
            conv(f"{block}.conv1", channels, width)
            norm(f"{block}.bn1", width)
            conv(f"{block}.conv2", width, width)
            norm(f"{block}.bn2", width)
            channels = width
    state[f"{linear}.weight"] = torch.randn(10, 64, generator=generator)
    state[f"{linear}.bias"] = torch.randn(10, generator=generator)
    return state


def reference(state: State, names: str, shortcut: str, images: Tensor) -> Tensor:
    """(N, 3, 32, 32) float64 -> (N, 10) logits of the foreign net. shortcut: none, behind, both_sides (where the
    zeros of option A go)."""
    weights = {name: value.double() for name, value in state.items()}

    def conv(input: Tensor, name: str, stride: int = 1) -> Tensor:
        return F.conv2d(input, weights[f"{name}.weight"], stride=stride, padding=1)

    def norm(input: Tensor, name: str) -> Tensor:
        leaves = ("running_mean", "running_var", "weight", "bias")
        mean, variance, scale, shift = (weights[f"{name}.{leaf}"] for leaf in leaves)
        return F.batch_norm(input, mean, variance, scale, shift)

    stem, stem_norm, linear = OUTER[names]
    x = norm(conv(images, stem), stem_norm).relu()
    for number, group in enumerate(BLOCKS[names]):
        for index, block in enumerate(group):
            halves = number > 0 and index == 0
            z = norm(conv(x, f"{block}.conv1", 2 if halves else 1), f"{block}.bn1").relu()
            z = norm(conv(z, f"{block}.conv2"), f"{block}.bn2")
            if shortcut != "none" and halves:
                missing = x.shape[1]
                front = missing // 2 if shortcut == "both_sides" else 0
                z = z + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, front, missing - front))
            elif shortcut != "none":
                z = z + x
            x = z.relu()
    return F.linear(x.mean(dim=(2, 3)), weights[f"{linear}.weight"], weights[f"{linear}.bias"])


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def table_of(content: bytes, names: str = "common", family: str = "resnet", **changes: object) -> dict[str, Any]:
    """A table with one file."""
    file = {"file": "net.pt", "bytes": len(content), "architecture": {"family": family, "depth": DEPTH}}
    collection = {
        "project": "someone's",
        "licence": "BSD-3-Clause",
        "url": "http://127.0.0.1:1",
        "names": names,
        "preprocessing": {"kind": "constants", "mean": MEAN, "std": STD},
        "files": {"net": {**file, "sha256": hashlib.sha256(content).hexdigest(), "claims": CLAIMS}},
    }
    return {"collections": {"them": {**collection, **changes}}}


CLAIMS = [
    {"error_percent": 5.0, "what": "lowest over epochs", "where": "README"},
    {"error_percent": 7.5, "what": "last epoch", "where": "log"},
]


def entry_of(content: bytes, names: str = "common", family: str = "resnet", **changes: object) -> Entry:
    table = module.Table.model_validate(table_of(content, names, family, **changes))
    (entry,) = module.entries_of(table)
    return entry


def images_of(count: int) -> np.ndarray:
    """(count, 3, 32, 32) uint8 of coarse squares, more unlike each other than noise."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 3, 4, 4), dtype=np.uint8)
    return coarse.repeat(8, axis=2).repeat(8, axis=3)


# ---- foreign nets


@pytest.mark.parametrize("wrap", ["", "module."])
@pytest.mark.parametrize(
    ("names", "shortcut"),
    [("a_martyn", "none"), ("a_martyn", "behind"), ("common", "none"), ("common", "behind"), ("common", "both_sides")],
)
def test_our_net_with_their_weights_gives_their_logits(names: str, shortcut: str, wrap: str) -> None:
    state = foreign_state(names)
    named = {f"{wrap}{name}": value for name, value in state.items()}
    content = saved({"state_dict": named, "best_prec1": 91.7} if wrap else named)
    family, zeros = ("plain", "behind") if shortcut == "none" else ("resnet", shortcut)
    net = module.load_net(entry_of(content, names, family, zeros=zeros), content).double()
    images = torch.from_numpy(images_of(2)) / 255.0
    torch.testing.assert_close(net(images.double()), reference(state, names, shortcut, images.double()))


def test_where_the_zeros_go_matters() -> None:
    """Or the test above would show nothing."""
    images = torch.from_numpy(images_of(2)).double() / 255
    state = foreign_state("common")
    behind, both = (reference(state, "common", shortcut, images) for shortcut in ("behind", "both_sides"))
    assert (behind - both).abs().max() > 0.1


def test_files_older_than_the_counters_are_read() -> None:
    content = saved({name: v for name, v in foreign_state("common").items() if not name.endswith("_tracked")})
    module.load_net(entry_of(content), content)


# ---- files that are not what they should be


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: {**state, "linear.scale": torch.ones(1)}, "1 tensors that the net has not, 'linear.scale'"),
        (lambda state: {**state, "layer2.0.shortcut.0.weight": torch.ones(1)}, "'layer2.0.shortcut.0.weight'"),
        (lambda state: {n: v for n, v in state.items() if n != "bn1.bias"}, "lacks 1 tensors of the net, 'bn1.bias'"),
        (lambda state: {}, "lacks"),
        # one number in the file, four terabytes if it were copied
        (lambda state: {**state, "linear.weight": torch.zeros(1).expand(10**6, 10**6)}, "the net's is [10, 64]"),
        (lambda state: {**state, "linear.bias": torch.full((10,), float("nan"))}, "linear.bias holds values that"),
        (lambda state: {**state, "linear.bias": torch.zeros(10, dtype=torch.int64)}, "of another kind: torch.int64"),
        (lambda state: {**state, "linear.weight": torch.zeros(10, 64).to_sparse()}, "of another kind"),
        (lambda state: {**state, "linear.weight": torch.zeros(10, 64, device="meta")}, "of another kind"),
        (lambda state: list(state.values()), "holds no tensors by their names"),
        (lambda state: {**state, "epoch": 3}, "holds no tensors by their names"),
    ],
)
def test_other_tensors_are_refused(change: Callable[[State], object], said: str) -> None:
    content = saved(change(foreign_state("common")))
    with pytest.raises(AuditError) as caught:
        module.load_net(entry_of(content), content)
    message = str(caught.value)
    assert said in message
    assert message.startswith("them/net, net.pt: ")
    assert message.endswith("Do the table's `names` and `architecture` fit this file?")


def test_a_payload_is_not_run_and_a_damaged_file_has_a_message(tmp_path: Path) -> None:
    payload = saved({"conv1.weight": Payload(tmp_path / "made")})
    whole = saved(foreign_state("common"))
    for content in (payload, whole[:-100], whole[:100], b"", b"<html>not found</html>"):
        with pytest.raises(AuditError, match="damaged, or holds more than tensors"):
            module.load_net(entry_of(content or b"\0"), content)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content[:-1], "with the sha256"),
        (lambda content: content + b"\0", "with the sha256"),
        (lambda content: content[:-1] + b"\1", "with the sha256"),
        (lambda content: None, "No such file"),
    ],
)
def test_another_file_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[bytes], bytes | None], said: str
) -> None:
    monkeypatch.setattr(torch, "load", None)
    content = saved(foreign_state("common"))
    path = tmp_path / "them" / "net.pt"
    path.parent.mkdir()
    if (found := change(content)) is not None:
        path.write_bytes(found)
    with pytest.raises(AuditError) as caught:
        module.obtain(entry_of(content), tmp_path / "cache", tmp_path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert "http://127.0.0.1:1/net.pt" in str(caught.value)  # where the right one is


@pytest.fixture
def published(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The URL of a folder, and the folder."""
    folder = tmp_path / "published"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()


def test_a_url_is_fetched_once_and_verified_before_it_is_used(tmp_path: Path, published: tuple[str, Path]) -> None:
    url, folder = published
    content, cache = saved(foreign_state("common")), tmp_path / "cache"
    entry = entry_of(content, url=url)
    with pytest.raises(AuditError, match=r"net\.pt does not give them/net: HTTP status 404 .* --files FOLDER"):
        module.obtain(entry, cache)
    for other, reason in (
        (content + b"\0", "bytes, too much for net.pt"),
        (content[:-1], "dropped.* has changed since"),
        (content[:-1] + b"\1", "dropped.* has changed since"),
    ):
        (folder / "net.pt").write_bytes(other)
        with pytest.raises(AuditError, match=reason):
            module.obtain(entry, cache)
        assert not list(cache.rglob("net.pt"))
    (folder / "net.pt").write_bytes(content)
    assert module.obtain(entry, cache) == content
    (folder / "net.pt").unlink()
    assert module.obtain(entry, cache) == content


def test_without_a_network_the_reason_is_short(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match=r"net.pt does not give them/net: .*Connection refused \(tried 1 times\)\."):
        module.obtain(entry_of(b"\0"), tmp_path, pauses=())


# ---- the table


def test_the_table_claims_what_papers_prints_and_preprocesses_as_the_recipe() -> None:
    table = module.load_table()
    assert all(len(entry.claims) == 2 for entry in module.entries_of(table))
    recipe = load(ROOT / "params.yaml").recipes["a_martyn"]
    assert table.collections["a-martyn"].preprocessing == recipe.preprocessing


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("sha256:", "sha265:", "unknown key; did you mean 'sha256'?"),
        ("depth: 32", "depth: 33", "depth 33 does not exist"),
        ("a-martyn, README", "a-martyn, READNE", "no source 'a-martyn, READNE'; did you mean 'a-martyn, README'?"),
        ("file: plainnet20.pt", "file: ../plainnet20.pt", "string should match pattern"),
        ("shortcut: A", "shortcut: B", "with option A can be audited"),
        ("files:", "files", "could not find expected ':'"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = module.TABLE.read_text()
    (tmp_path / "table.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(AuditError) as caught:
        module.load_table(tmp_path / "table.yaml")
    assert said in str(caught.value)
    if ":" in new:  # a broken syntax is found further down
        first = text[: text.index(old)].count("\n") + 1
        numbers = [int(part.split(":")[1]) for part in str(caught.value).splitlines()]
        assert any(first - 5 <= number <= first + 1 for number in numbers)


def test_weights_are_chosen_by_their_names() -> None:
    table = module.load_table()
    (entry,) = module.entries_of(table, ["a-martyn/plain56"])
    assert (entry.key, entry.file.file) == ("a-martyn", "plainnet56.pt")
    assert len(module.entries_of(table, ["a-martyn"])) == len(module.entries_of(table)) == 8
    with pytest.raises(AuditError, match="no weights 'a-martyn/resent20'; did you mean 'a-martyn/resnet20'"):
        module.entries_of(table, ["a-martyn/resent20"])


# ---- verdicts and the report


@pytest.mark.parametrize(
    ("claimed", "wrong", "difference"),
    [(9.5, 969, 0.19), (9.69, 969, 0), (13.5, 1307, -0.43), (8.0, 800, 0)],
)
def test_a_verdict_is_by_whole_images_of_ten_thousand(claimed: float, wrong: int, difference: float) -> None:
    verdict = module.judge(Claim(error_percent=claimed, what="", where=""), 100 * wrong / 10_000)
    assert (verdict.difference_points, verdict.confirmed) == (difference, difference == 0)


@pytest.fixture
def known() -> tuple[bytes, Arrays]:
    """A foreign net's file, and 40 images with labels of which it gets three wrong."""
    state, images = foreign_state("common"), images_of(40)
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    pixels = (torch.from_numpy(images).double() / 255 - mean) / std
    logits = reference(state, "common", "both_sides", pixels)
    state["linear.bias"] -= logits.mean(dim=0).float()  # or a random net says one class only
    best, second = (logits - logits.mean(dim=0)).topk(2).values.T
    assert (best - second).min() > 1e-4, "float32 must not decide"
    labels = (logits - logits.mean(dim=0)).argmax(dim=1).numpy().astype(np.uint8)
    assert len(set(labels.tolist())) > 2
    labels[:3] = (labels[:3] + 1) % 10
    classes = tuple("abcdefghij")
    return saved(state), Arrays(images[:0], labels[:0], images, labels, classes, sha256="")


def test_the_report_says_which_claims_the_file_holds(tmp_path: Path, known: tuple[bytes, Arrays]) -> None:
    content, arrays = known
    entry = entry_of(content, zeros="both_sides")
    path = tmp_path / "them" / "net.pt"
    path.parent.mkdir()
    path.write_bytes(content)
    module.write_report(module.audit([entry], tmp_path / "cache", arrays, tmp_path), tmp_path)
    (row,) = json.loads((tmp_path / "audit.json").read_text())["weights"]
    assert (row["name"], row["sha256"], row["num_test_images"]) == ("them/net", sha256_of(path), 40)
    assert row["test_error_percent"] == 7.5
    assert [claim["confirmed"] for claim in row["claims"]] == [False, True]
    # 6n+2 layers with n = 2: stem, 2n convolutions a group, their normalisation, linear
    convolutions = 9 * (3 * 16 + 16 * 16 * 4 + 16 * 32 + 32 * 32 * 3 + 32 * 64 + 64 * 64 * 3)
    assert row["parameters"] == convolutions + 2 * (16 * 5 + 32 * 4 + 64 * 4) + 64 * 10 + 10
    text = (tmp_path / "audit.md").read_text()
    assert "README (lowest over epochs): 0 of 1 claims confirmed; they differ by +2.50 to +2.50 points." in text
    assert "log (last epoch): 1 of 1 claims confirmed." in text
    assert "hold the weights of log (last epoch); README (lowest over epochs) prints the error of other" in text


def test_the_command_audits_a_table_of_ones_own_and_leaves_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: tuple[bytes, Arrays]
) -> None:
    content, arrays = known
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)
    for folder in ("data/cifar10", "them"):
        Path(folder).mkdir(parents=True)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        np.save(f"data/cifar10/{name}.npy", getattr(arrays, name))
    Path("data/cifar10/classes.json").write_text(json.dumps(arrays.classes))
    Path("them/net.pt").write_bytes(content)
    Path("own.yaml").write_text(json.dumps(table_of(content, zeros="both_sides")))
    said = CliRunner().invoke(app, ["audit", "them", "--files", ".", "--table", "own.yaml"])
    assert said.exit_code == 0, said.output
    assert "5.00, differs by +2.50" in said.output
    assert "7.50, confirmed" in said.output
    assert not Path("reports").exists()


# ---- the published files

PUBLISHED = ROOT.parent / "shared/data/published-weights"
MEASURED = {
    **{"plain20": 9.69, "plain32": 10.04, "plain44": 11.56, "plain56": 13.07},
    **{"resnet20": 8.04, "resnet32": 7.79, "resnet44": 7.51, "resnet56": 7.46},
}
"""As a-martyn's own code evaluates its files."""

if ARCHIVE.is_file() and PUBLISHED.is_dir():

    @pytest.fixture(scope="module")
    def official() -> Arrays:
        with ARCHIVE.open("rb") as stream:
            members = dict(read_members(stream, load(ROOT / "params.yaml").data.members))
        images, labels = decode_batch(members[TEST_MEMBER])
        return Arrays(images[:0], labels[:0], images, labels, tuple("abcdefghij"), sha256="")

    @pytest.mark.parametrize(
        "name",
        [name if name == "resnet20" else pytest.param(name, marks=pytest.mark.slow) for name in MEASURED],
    )
    def test_a_published_file_gives_the_last_epoch_and_not_the_lowest(name: str, official: Arrays) -> None:
        entries = module.entries_of(module.load_table(), [f"a-martyn/{name}"])
        (audited,) = module.audit(entries, Path("unused"), official, PUBLISHED)
        log = pd.read_csv(PUBLISHED / "a-martyn" / f"{Path(audited.file).stem}.csv")
        assert audited.test_error_percent == MEASURED[name] == round(100 * log.test_err.iloc[-1], 2)
        assert audited.parameters == audited.published_parameters
        lowest, last = audited.claims
        assert lowest.error_percent == round(100 * log.test_err.min(), 2)
        assert (lowest.confirmed, last.confirmed) == (False, True)

    @pytest.mark.parametrize("name", sorted(our_files(ROOT / "pretrained")))
    def test_our_own_weights_give_what_their_page_prints(name: str, official: Arrays, tmp_path: Path) -> None:
        """By the rule for others, to two decimals."""
        folder = tmp_path / "pretrained"
        folder.mkdir()
        (folder / f"{name}.safetensors").symlink_to(ROOT / "pretrained" / f"{name}.safetensors")
        (audited,) = module.audit_own(folder, official)
        (claim,) = audited.claims
        line = next(line for line in (ROOT / "pretrained" / PAGE).read_text().splitlines() if f"| {name} |" in line)
        assert claim.confirmed
        assert f"| {audited.test_error_percent:.2f} |" in line
        assert len(audited.response_stds or ()) == int(name[-2:]) - 1
