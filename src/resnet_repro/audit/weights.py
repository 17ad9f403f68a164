"""From a published file to our net: obtained, verified, parsed, its tensors renamed."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from resnet_repro.audit.table import AuditError, Entry
from resnet_repro.data.download import PAUSES_SECONDS, SourceError, download
from resnet_repro.models import build_model
from resnet_repro.models.layers import ZeroPad

CACHE = Path(".cache/published_weights")

OUTER = {
    "a_martyn": {"stem": "convIn", "stem_norm": "bnIn", "linear": "fcOut"},
    "common": {"stem": "conv1", "stem_norm": "bn1", "linear": "linear"},
}
LAYERS = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2"}


def obtain(entry: Entry, cache: Path, files: Path | None = None, pauses: Sequence[float] = PAUSES_SECONDS) -> bytes:
    """The verified content of a file: from the folder `files`, or from its URL by way of the folder `cache`; in
    both it lies in a folder with the collection's name. `pauses`: see `download`.

    Raises:
        AuditError: it is not there, or not the file of the table.
        DataError, OSError: see `download`.
    """
    path = (files or cache) / entry.key / entry.file.file
    if files is None:
        try:
            download(entry.url, path, entry.file.bytes, pauses=pauses)
        except SourceError as error:
            raise AuditError(
                f"{entry.url} does not give {entry.name}: {error}. With --files FOLDER it is taken from a folder"
            ) from None
    try:
        with path.open("rb") as stream:
            content = stream.read(entry.file.bytes + 1)
    except OSError as error:
        raise AuditError(f"{path}: {error.strerror}. Without --files it is had from {entry.url}") from None
    if (actual := hashlib.sha256(content).hexdigest()) != entry.file.sha256:
        remedy = f"replace it by {entry.url}, or remove it and leave --files out"
        if files is None:
            path.unlink()
            remedy = f"dropped; if it is the same when run again, {entry.url} has changed since it was entered"
        raise AuditError(
            f"{path}: {len(content):,} bytes with the sha256 {actual}, where the table has {entry.file.bytes:,} with "
            f"{entry.file.sha256}: {remedy}"
        )
    return content


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
