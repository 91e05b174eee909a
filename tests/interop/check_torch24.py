"""Check a model that `maskwright export --format torch24` wrote against PyTorch and against the same model with zeros.

    python check_torch24.py TORCH24_DIR HF_DIR

On the CPU: packed values and metadata are byte-equal to those of PyTorch's own helper, the tensor class and the folder's loader unpack
them to the weights with zeros, and the loaded model's logits are equal to those of the model with zeros. Prints one JSON object;
exits with 1 when something differs.
"""
import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from torch.sparse import SparseSemiStructuredTensorCUTLASS
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def main(packed_dir, dense_dir):
    warnings.filterwarnings("ignore", message=".*prototype.*")
    packed_dir, dense_dir = Path(packed_dir), Path(dense_dir)
    sys.path.insert(0, str(packed_dir))
    from load_torch24 import load, unpack

    index = json.loads((packed_dir / "torch24.json").read_text())
    packed = {k: v for shard in index["shards"] for k, v in load_file(packed_dir / shard).items()}
    dense = {k: v for file in sorted(dense_dir.glob("*.safetensors")) for k, v in load_file(file).items()}
    errors, checked = [], 0
    for line in (p for p in index["projections"] if p["packed"]):
        name = line["name"]
        prefix = name.removesuffix(".weight")
        values, meta, weight = packed[f"{prefix}.packed"], packed[f"{prefix}.meta"], dense[name]
        expected = sparse_semi_structured_from_dense_cutlass(weight)
        tensor = SparseSemiStructuredTensorCUTLASS(torch.Size(line["shape"]), values, meta, None, None, None)
        for what, equal in [
            ("packed values", same(values, expected[0])),
            ("metadata", same(meta, expected[1])),
            ("to_dense", same(tensor.to_dense(), weight)),
            ("unpack", same(unpack(values, meta, line["shape"]), weight)),
        ]:
            if not equal:
                errors.append(f"{name}: {what}")
        checked += 1
    model = load(packed_dir, report=lambda text: None)
    reference = transformers.AutoModelForCausalLM.from_pretrained(dense_dir, dtype=next(model.parameters()).dtype)
    ids = torch.arange(3, 35).unsqueeze(0)
    with torch.no_grad():
        difference = (model(ids).logits - reference.eval()(ids).logits).abs().max().item()
    if difference != 0 or checked == 0:
        errors.append(f"logits differ by {difference}, {checked} projections are packed")
    print(json.dumps(dict(torch=torch.__version__, packed=checked, of=len(index["projections"]),
                          logits_difference=difference, errors=errors[:5])))
    return 1 if errors else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
