"""Reproduce, number by number, what three papers print about CIFAR-10."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_repro.pretrained import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`load`, imported when it is first asked for: torch takes seconds."""
    if name == "load":
        from resnet_repro.pretrained import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
