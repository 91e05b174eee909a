"""Loads a model that `maskwright export --format torch24` wrote.

    python load_torch24.py FOLDER                    # loads it and says what became of each projection
    from load_torch24 import load; model = load("FOLDER", device="cuda")

Needs torch 2.3 or newer, safetensors and transformers. On a GPU that runs 2:4 (NVIDIA, compute capability 8.0 or newer; AMD through
a ROCm build that has the class) packed projections become SparseSemiStructuredTensorCUTLASS, one layer at a time, without a dense
copy. Elsewhere, and on the CPU, they are unpacked to ordinary weights with zeros.
"""

import json
import os
import sys

import torch
from safetensors import safe_open


def unpack(packed, meta, shape):
    """The dense weight of packed values and metadata, by index arithmetic alone."""
    rows, cols = shape
    group, kept = (2, 1) if packed.dtype == torch.float32 else (4, 2)
    wide = meta.dtype == torch.int32
    nibbles = 8 if wide else 4
    block, interleave = (16, 2) if wide else (32, 4)
    count = cols // group // nibbles
    r = torch.arange(rows).unsqueeze(1).expand(rows, count)
    c = torch.arange(count).unsqueeze(0).expand(rows, count)
    row = r // block * block + r % 8 * interleave + r % block // 8
    up = (row % 2 == 0) & (c % 2 == 1)
    down = (row % 2 == 1) & (c % 2 == 0)
    row = row + up.long() - down.long()
    col = c - up.long() + down.long()
    place = col // 2 * 2 * rows + row * 2 + col % 2
    words = meta.cpu().flatten()[place].to(torch.int64)
    codes = (words.unsqueeze(-1) >> (4 * torch.arange(nibbles))) & 15
    codes = codes.reshape(rows, cols // group)
    at = [codes & 3, codes >> 2] if kept == 2 else [(codes & 3) // 2]
    index = torch.stack(at, -1) + group * torch.arange(cols // group).unsqueeze(-1)
    dense = torch.zeros(rows, cols, dtype=packed.dtype)
    return dense.scatter_(1, index.reshape(rows, -1), packed.cpu())


def sparse_class(device):
    """The class of sparse tensors, or None and why there is none."""
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        return None, "no CUDA or ROCm device is used"
    version = tuple(int(x) for x in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 3):
        return None, f"torch {torch.__version__} is older than 2.3"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return None, "compute capability 8.0 or newer is needed"
    try:
        from torch.sparse import SparseSemiStructuredTensorCUTLASS as cls
    except ImportError as error:
        return None, str(error)
    return cls, None


def put(model, name, value):
    """Sets a parameter by name."""
    module, _, leaf = name.rpartition(".")
    owner = model.get_submodule(module)
    setattr(owner, leaf, torch.nn.Parameter(value, requires_grad=False))


def load(folder, device="cpu", model_class=None, report=print):
    """The model of a folder, in evaluation mode on `device`."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with open(os.path.join(folder, "torch24.json"), encoding="utf-8") as file:
        index = json.load(file)
    if index.get("format") != "maskwright-torch24" or index.get("format_version") != 1:
        raise SystemExit(f"{folder}: torch24.json is of another format or version")
    packed = {p["name"]: p for p in index["projections"] if p["packed"]}
    cls, why = sparse_class(device)
    if cls is None:
        report(f"dense route: {why}")
    config = AutoConfig.from_pretrained(folder)
    build = model_class or AutoModelForCausalLM.from_config
    with torch.device("meta"):
        model = build(config)
    for shard in index["shards"]:
        with safe_open(os.path.join(folder, shard), "pt") as file:
            names = set(file.keys())
            for name in file.keys():
                if name.endswith((".packed", ".meta")) and name.rsplit(".", 1)[0] + ".weight" in packed:
                    continue
                put(model, name, file.get_tensor(name).to(device))
            for name, info in packed.items():
                key = name[: -len(".weight")]
                if key + ".packed" not in names:
                    continue
                values, meta = file.get_tensor(key + ".packed"), file.get_tensor(key + ".meta")
                weight = None
                if cls is not None:
                    try:
                        weight = cls(torch.Size(info["shape"]), values.to(device), meta.to(device), None, None, None)
                    except (RuntimeError, ValueError, TypeError) as error:
                        report(f"dense: {name}: {error}")
                if weight is None:
                    weight = unpack(values, meta, info["shape"]).to(device)
                put(model, name, weight)
    for p in index["projections"]:
        if not p["packed"]:
            report(f"dense: {p['name']}: {p['dense_because']}")
    model.tie_weights()
    restore_buffers(model, config, device)
    left = [n for n, p in model.named_parameters() if p.is_meta]
    if left:
        raise SystemExit(f"{folder}: the shards lack {left[0]} ({len(left)} parameters)")
    return model.eval()


def restore_buffers(model, config, device):
    """Makes the modules anew whose buffers no file holds (the rotary frequencies)."""
    for name, module in list(model.named_modules()):
        if any(b is not None and b.is_meta for b in module._buffers.values()):
            owner, _, leaf = name.rpartition(".")
            with torch.device(device):
                setattr(model.get_submodule(owner), leaf, type(module)(config=config))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    target = sys.argv[2] if len(sys.argv) > 2 else ("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load(sys.argv[1], target)
    kinds = {type(p.data).__name__ for p in loaded.parameters()}
    print(f"loaded on {target}: {sum(1 for _ in loaded.parameters())} parameters of {', '.join(sorted(kinds))}")
