"""Check that transformers loads a written model bit for bit.

    python check_loaded.py FOLDER HF_DIR

FOLDER is a model as `maskwright export` wrote it (hf, or ct24 in an environment that reads it: requirements-ct24.txt); HF_DIR the `hf` export of
the same model and mask. Every parameter that transformers makes of FOLDER, in the type that it is stored in, must have the bits of HF_DIR's
files, and the logits must be those of HF_DIR. Prints one JSON object; exits with 1 when something differs.
"""
import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def bits(t):
    return t.detach().contiguous().view(torch.uint8)


def main(folder, reference):
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    files = {k: v for file in sorted(Path(reference).glob("*.safetensors")) for k, v in load_file(file).items()}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    state = model.state_dict()
    errors = [f"{name} is missing" for name in files if name not in state]
    # A tied output matrix is in no file.
    tied = {"lm_head.weight"} if getattr(model.config, "tie_word_embeddings", False) else set()
    errors += [f"{name} is in no file" for name in state if name not in files and name not in tied]
    equal = 0
    for name, expected in files.items():
        found = state.get(name)
        if found is None:
            continue
        if found.dtype == expected.dtype and found.shape == expected.shape and torch.equal(bits(found), bits(expected)):
            equal += 1
        else:
            errors.append(f"{name}: {found.dtype} {list(found.shape)} differs from {expected.dtype} {list(expected.shape)}")
    plain = AutoModelForCausalLM.from_pretrained(reference, dtype="auto").eval()
    ids = torch.arange(3, 35).unsqueeze(0)
    with torch.no_grad():
        difference = (model(ids).logits - plain(ids).logits).abs().max().item()
    if difference != 0:
        errors.append(f"the logits differ by {difference}")
    versions = dict(torch=torch.__version__, transformers=transformers.__version__)
    try:
        import compressed_tensors
        versions["compressed_tensors"] = compressed_tensors.__version__
    except ImportError:
        pass
    print(json.dumps(dict(**versions, folder=str(folder), equal_tensors=equal, of=len(files), errors=errors[:5])))
    return 1 if errors else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
