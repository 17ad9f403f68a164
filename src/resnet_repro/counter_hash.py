"""Random numbers as a function of counters: no state to save, the same on every device and in every order.

All arithmetic is on int64 tensors that hold values below 2**32 and whose products stay below 2**48, so
nothing overflows and nothing depends on the device.
"""

import torch
from torch import Tensor

_MASK = 0xFFFF_FFFF


def _multiply(x: Tensor, constant: int) -> Tensor:
    """x * constant modulo 2**32, in two products that fit 48 bits."""
    high = (x * (constant >> 16)) & 0xFFFF
    return ((high << 16) + x * (constant & 0xFFFF)) & _MASK


def _mix(x: Tensor) -> Tensor:
    """The finaliser of MurmurHash3 (A. Appleby): every output bit depends on every input bit."""
    x = x ^ (x >> 16)
    x = _multiply(x, 0x85EB_CA6B)
    x = x ^ (x >> 13)
    x = _multiply(x, 0xC2B2_AE35)
    return x ^ (x >> 16)


def hash32(*counters: int | Tensor) -> Tensor:
    """A 32-bit hash of the counters, which broadcast: int64 in [0, 2**32).

    Counters are non-negative and below 2**32. The order of the counters matters.
    """
    device = next((c.device for c in counters if isinstance(c, Tensor)), None)
    state = torch.full((), 0x9E37_79B9, dtype=torch.int64, device=device)
    for counter in counters:
        state = _mix((state * 31 + counter + 0x7F4A_7C15) & _MASK)
    return state
