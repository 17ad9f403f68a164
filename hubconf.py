"""PyTorch Hub: `torch.hub.load(REPOSITORY, MODEL, pretrained=True)`, with an entry for each plan in plans/."""

import json
import pathlib
import sys

dependencies = ["numpy", "pandas", "pydantic", "ruamel.yaml", "safetensors", "torch"]
_ROOT = pathlib.Path(__file__).resolve().parent


def _entry(path):
    plan = json.loads(path.read_text(encoding="utf-8"))

    def entry(pretrained=False, device="cpu", seed=1):
        if str(_ROOT / "src") not in sys.path:
            sys.path.insert(0, str(_ROOT / "src"))
        from resnet_repro.evidence import Plan
        from resnet_repro.pretrained import FOLDER, load, untrained

        if pretrained:
            return load(plan["model"], device, _ROOT / FOLDER)
        return untrained(Plan.read(path), seed).to(device)

    entry.__name__ = entry.__qualname__ = plan["model"]
    entry.__doc__ = f"""{plan["model"]}: {plan["layers"]} layers, {plan["parameters"]:,} parameters, a net of the family
    {plan["architecture"]["family"]}, trained by the recipe {plan["recipe_name"]} of params.yaml.

    (N, 3, 32, 32) uint8 pixels, red, green, blue, 0 to 255 -> (N, 10) float32 logits: the preprocessing is inside.

    Args:
        pretrained: the weights in pretrained/, in eval mode, `classes` the names of the ten; an error where there are
            none of this model. Otherwise the net as its training begins, in train mode, with pixels read as 0 to 1
            unless the recipe names constants, since other statistics are those of training images.
        device: where the net is to be, as torch names it.
        seed: of the initial weights, without `pretrained`.
    """
    return entry


globals().update({path.stem: _entry(path) for path in sorted((_ROOT / "plans").glob("*.json"))})
