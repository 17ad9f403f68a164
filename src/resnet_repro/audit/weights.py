"""From a published file to our net: obtained, verified, parsed, its tensors renamed."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import requests
import torch
import urllib3
from torch import Tensor, nn

from resnet_repro.audit.table import AuditError, Entry, WeightFile
from resnet_repro.data.download import CONNECT_SECONDS, READ_SECONDS
from resnet_repro.evidence import write_atomically
from resnet_repro.models import build_model
from resnet_repro.models.layers import ZeroPad

CACHE = Path(".cache/published_weights")

OUTER = {
    "a_martyn": {"stem": "convIn", "stem_norm": "bnIn", "linear": "fcOut"},
    "common": {"stem": "conv1", "stem_norm": "bn1", "linear": "linear"},
}
LAYERS = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2"}


def obtain(entry: Entry, cache: Path, files: Path | None = None) -> bytes:
    """The verified content of a file: from the folder `files`, or from its URL by way of the folder `cache`; in
    both it lies in a folder with the collection's name.

    Raises:
        AuditError: it is not there, or not the file of the table.
    """
    path = (files or cache) / entry.key / entry.file.file
    if files is None and not path.exists():
        content = _download(entry.url, entry.file.bytes)
        _verify(content, entry.file, entry.url, "it has changed since it was entered in the table")
        write_atomically(path, content)
        return content
    try:
        with path.open("rb") as stream:
            content = stream.read(entry.file.bytes + 1)
    except OSError as error:
        raise AuditError(f"{path}: {error.strerror}. Without --files it is had from {entry.url}") from None
    _verify(content, entry.file, str(path), f"replace it by {entry.url}, or remove it and leave --files out")
    return content


def _download(url: str, num_bytes: int) -> bytes:
    """The file at `url`, or its first `num_bytes` + 1 bytes."""
    try:
        with requests.get(url, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as response:
            response.raise_for_status()
            return bytes(response.raw.read(num_bytes + 1, decode_content=True))
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        reason = getattr(error.args[0] if error.args else None, "reason", error)  # below the layers of wrapping
        raise AuditError(f"{url} gives no file: {reason}. With --files FOLDER it is taken from a folder") from None


def _verify(content: bytes, file: WeightFile, where: str, remedy: str) -> None:
    if len(content) > file.bytes:
        raise AuditError(f"{where} has more than the table's {file.bytes:,} bytes: {remedy}")
    if len(content) < file.bytes:
        raise AuditError(f"{where} has {len(content):,} bytes of the table's {file.bytes:,}: {remedy}")
    if (actual := hashlib.sha256(content).hexdigest()) != file.sha256:
        raise AuditError(f"{where} has the sha256 {actual}, not the table's {file.sha256}: {remedy}")


def load_net(entry: Entry, content: bytes) -> nn.Module:
    """Our net with the weights of a verified file.

    Raises:
        AuditError: the file holds other tensors than the net has.
    """
    net = build_model(entry.file.architecture)
    own = {_their_name(ours, entry.collection.names): tensor for ours, tensor in net.state_dict().items()}
    try:
        theirs = _parse(content)
        _check(theirs, own)
    except AuditError as error:
        raise AuditError(
            f"{entry.name}, {entry.file.file}: {error}. Do the table's `names` and `architecture` fit this file?"
        ) from None
    for name, tensor in theirs.items():
        own[name].copy_(tensor)
    for module in net.modules():
        if isinstance(module, ZeroPad) and entry.collection.zeros == "both_sides":
            module.register_forward_hook(_half_in_front)
    return net.eval().requires_grad_(False)


def _half_in_front(pad: ZeroPad, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """(N, C, H, W), with half of the zeros that `pad` put behind the channels moved in front of them."""
    return output.roll(pad.extra_channels // 2, dims=1)


def _parse(content: bytes) -> dict[str, Tensor]:
    """The tensors of a file, without what may be wrapped around them or their names."""
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise whatever they happen to spell
        raise AuditError(f"it is damaged, or holds more than tensors ({type(error).__name__})") from None
    if isinstance(state, Mapping):
        state = state.get("state_dict", state)
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise AuditError("it holds no tensors by their names")
    prefix = "module." if all(name.startswith("module.") for name in state) else ""  # of DataParallel
    return {name.removeprefix(prefix): value for name, value in state.items()}


def _check(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise the first difference between a file's tensors and the net's own, by the same names."""
    lacking = own.keys() - state.keys()
    # files older than PyTorch 0.4.1 do not count batches, and evaluation does not ask for it
    if missing := sorted(name for name in lacking if not name.endswith(".num_batches_tracked")):
        raise AuditError(f"it lacks {len(missing)} tensors of the net, {missing[0]!r} first")
    if unknown := sorted(state.keys() - own.keys()):
        raise AuditError(f"it has {len(unknown)} tensors that the net has not, {unknown[0]!r} first")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise AuditError(f"{name} has the shape {list(tensor.shape)}, and the net's is {list(own[name].shape)}")
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not dense or tensor.is_floating_point() != own[name].is_floating_point():
            raise AuditError(f"{name} is of another kind: {tensor.dtype}, {tensor.layout}, {tensor.device}")
        if not tensor.isfinite().all():
            raise AuditError(f"{name} holds values that are not finite")


def _their_name(ours: str, names: str) -> str:
    """The name of our tensor in github.com/a-martyn/resnet, whose subsampling blocks have names of their own, or
    as torchvision names it (`common`), and most 6n+2 nets after it."""
    *module, leaf = ours.split(".")
    if len(module) == 1:
        return f"{OUTER[names][module[0]]}.{leaf}"
    _, group, index, _, layer = module
    number = int(group) + 1
    block = f"layer{number}.{index}"
    if names == "a_martyn":
        rest = f"stack{number}b.{int(index) - 1}" if int(index) else f"stack{number}a"
        block = rest if number > 1 else f"stack1.{index}"
    return f"{block}.{LAYERS[layer]}.{leaf}"
