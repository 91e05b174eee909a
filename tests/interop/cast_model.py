"""Write a copy of a model folder in another type.

    python cast_model.py MODEL_DIR OUT_DIR float16|bfloat16|float32
"""
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def main(model_dir, out_dir, dtype):
    model_dir, out_dir = Path(model_dir), Path(out_dir)
    out_dir.mkdir(parents=True)
    for path in model_dir.iterdir():
        if path.suffix == ".safetensors":
            tensors = {k: v.to(getattr(torch, dtype)) for k, v in load_file(path).items()}
            save_file(tensors, out_dir / path.name, metadata={"format": "pt"})
        elif path.is_file():
            shutil.copy(path, out_dir)
    config = json.loads((model_dir / "config.json").read_text())
    config.pop("dtype", None)
    config["torch_dtype"] = dtype
    (out_dir / "config.json").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
