"""Hold the packer against PyTorch's own helpers on random weights, byte for byte.

    python check_packing.py MASKWRIGHT SCRATCH_DIR

Makes small random models of several shapes and types with random masks (the mask files are written here, by the format's description),
lets the binary MASKWRIGHT export them as torch24, and compares every projection with `sparse_semi_structured_from_dense_cutlass` (which
is what `to_sparse_semi_structured` calls), with `SparseSemiStructuredTensorCUTLASS(...).to_dense()` and with the loader of the export.
Everything on the CPU. Prints one JSON object; exits with 1 when something differs.
"""
import hashlib
import importlib.util
import itertools
import json
import math
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.sparse import SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}
# hidden_size, intermediate_size, heads, key and value heads, head_dim
SHAPES = [(64, 128, 2, 1, 32), (128, 192, 4, 2, 32), (256, 704, 4, 4, 64), (320, 64, 1, 1, 320)]
CASES = [(d, p) for d in (torch.float16, torch.bfloat16) for p in ((2, 4), (1, 4), (1, 2), (2, 8), (1, 8))]
CASES += [(torch.float32, (1, 2)), (torch.float32, (1, 4))]


def bits(t):
    return t.contiguous().view(torch.uint8)


def projections(shape):
    hidden, inter, heads, kv, dim = shape
    for module, rows, cols in [
        ("self_attn.q_proj", heads * dim, hidden), ("self_attn.k_proj", kv * dim, hidden),
        ("self_attn.v_proj", kv * dim, hidden), ("self_attn.o_proj", hidden, heads * dim),
        ("mlp.gate_proj", inter, hidden), ("mlp.up_proj", inter, hidden), ("mlp.down_proj", hidden, inter),
    ]:
        yield f"model.layers.0.{module}.weight", rows, cols


def random_weight(rows, cols, dtype, rng):
    """Of every size that the type has, with zeros of both signs and subnormals."""
    weight = torch.randn(rows, cols, generator=rng)
    what = torch.rand(rows, cols, generator=rng)
    tiny = torch.finfo(dtype).smallest_normal / 4
    weight = torch.where(what < 0.03, 0.0, torch.where(what < 0.06, -0.0, torch.where(what < 0.09, tiny, weight)))
    return torch.where(what > 0.97, weight * 1000, weight).to(dtype)


def write_model(folder, shape, dtype, rng):
    hidden, inter, heads, kv, dim = shape
    folder.mkdir(parents=True)
    weights = {"model.embed_tokens.weight": torch.randn(8, hidden, generator=rng).to(dtype)}
    for norm in ("model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"):
        weights[f"{norm}.weight"] = torch.ones(hidden, dtype=dtype)
    weights |= {name: random_weight(rows, cols, dtype, rng) for name, rows, cols in projections(shape)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = dict(model_type="llama", vocab_size=8, hidden_size=hidden, intermediate_size=inter, num_hidden_layers=1,
                  num_attention_heads=heads, num_key_value_heads=kv, head_dim=dim, max_position_embeddings=64,
                  tie_word_embeddings=True)
    (folder / "config.json").write_text(json.dumps(config))
    return weights


def write_mask(path, weights, shape, n, m, rng):
    """A random mask file; returns the masks as booleans."""
    choices = list(itertools.combinations(range(m), n))
    table = torch.zeros(len(choices), m, dtype=torch.bool)
    for rank, kept in enumerate(choices):
        table[rank, list(kept)] = True
    masks, packed, described = {}, {}, {}
    for name, rows, cols in projections(shape):
        ranks = torch.randint(len(choices), (rows * cols // m,), generator=rng)
        masks[name] = table[ranks].view(rows, cols)
        if len(choices) == 6:
            packing = "base6: i0 + 6*i1 + 36*i2 per byte"
            ranks = torch.nn.functional.pad(ranks, (0, -len(ranks) % 3)).view(-1, 3)
            data = (ranks * torch.tensor([1, 6, 36])).sum(1)
        else:
            width = math.ceil(math.log2(len(choices)))
            packing = f"bits: {width} per group, least significant first"
            flags = (ranks.unsqueeze(1) >> torch.arange(width) & 1).flatten()
            flags = torch.nn.functional.pad(flags, (0, -len(flags) % 8)).view(-1, 8)
            data = (flags << torch.arange(8)).sum(1)
        packed[f"{name}.nm_index"] = data.to(torch.uint8)
        digest = hashlib.sha256(bits(weights[name]).numpy().tobytes()).hexdigest()
        described[name] = dict(shape=[rows, cols], source_dtype=NAMES[weights[name].dtype], source_sha256=digest)
    order = "lexicographic in the kept positions; groups of the flattened tensor, row-major"
    save_file(packed, path, metadata=dict(
        format="maskwright-mask", format_version="1", pattern=f"{n}:{m}", order=order, packing=packing, method="random",
        seed="0", written_by="check_packing.py", tensors=json.dumps(described)))
    return masks


def loader(folder):
    """The module that an export puts beside the shards."""
    spec = importlib.util.spec_from_file_location("load_torch24", folder / "load_torch24.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(binary, scratch):
    warnings.filterwarnings("ignore", message=".*prototype.*")
    scratch = Path(scratch)
    shutil.rmtree(scratch, ignore_errors=True)
    rng = torch.Generator().manual_seed(0)
    errors, packed_count, dense_count = [], 0, 0
    for number, ((dtype, (n, m)), shape) in enumerate(itertools.product(CASES, SHAPES)):
        folder = scratch / str(number)
        weights = write_model(folder / "dense", shape, dtype, rng)
        masks = write_mask(folder / "mask", weights, shape, n, m, rng)
        for form in ("torch24", "hf"):
            subprocess.run([binary, "export", folder / "dense", "--mask", folder / "mask", "--format", form, "--quiet",
                            "--out", folder / form], check=True, stdout=subprocess.DEVNULL)
        unpack = loader(folder / "torch24").unpack
        index = json.loads((folder / "torch24/torch24.json").read_text())
        tensors = {k: v for shard in index["shards"] for k, v in load_file(folder / "torch24" / shard).items()}
        zeroed = load_file(folder / "hf/model.safetensors")
        for line in index["projections"]:
            name = line["name"]
            what = f"{name} {NAMES[dtype]} {line['shape']} {n}:{m}"
            # Zero where the mask prunes, all other bits as they were.
            masked = torch.where(masks[name], weights[name], torch.zeros((), dtype=dtype))
            if not torch.equal(bits(zeroed[name]), bits(masked)):
                errors.append(f"{what}: hf")
            if not line["packed"]:
                dense_count += 1
                if not torch.equal(bits(tensors[name]), bits(masked)):
                    errors.append(f"{what}: stored dense")
                continue
            prefix = name.removesuffix(".weight")
            values, meta = tensors[f"{prefix}.packed"], tensors[f"{prefix}.meta"]
            expected = sparse_semi_structured_from_dense_cutlass(masked)
            for part, ours, theirs in [("packed", values, expected[0]), ("meta", meta, expected[1])]:
                if ours.dtype != theirs.dtype or ours.shape != theirs.shape or not torch.equal(bits(ours), bits(theirs)):
                    errors.append(f"{what}: {part}")
            tensor = SparseSemiStructuredTensorCUTLASS(torch.Size(line["shape"]), values, meta, None, None, None)
            # PyTorch moves an F32 as two halves here, and where a half is a signalling NaN that changes one of its bits.
            if dtype != torch.float32 and not torch.equal(tensor.to_dense(), masked):
                errors.append(f"{what}: to_dense")
            if not torch.equal(unpack(values, meta, line["shape"]), masked):
                errors.append(f"{what}: unpack")
            packed_count += 1
    if packed_count == 0:
        errors.append("nothing was packed")
    print(json.dumps(dict(torch=torch.__version__, models=number + 1, packed=packed_count, dense=dense_count,
                          errors=errors[:5])))
    return 1 if errors else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
