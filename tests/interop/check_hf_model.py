"""Load a written model with transformers, measure its perplexity and compare its tensors with the model it came from.

    python check_hf_model.py MODEL_DIR --text FILE --window 256 [--windows K] [--expect PPL --rtol 1e-3]
                             [--against SOURCE --pattern 2:4 [--dense REGEX]]

Prints one JSON object; exits with 1 when a check fails and with 2 when something cannot be read.

Perplexity as GPTQ, SparseGPT and Wanda count it: the whole text tokenised once with the folder's tokenizer and its
default special tokens, windows that do not overlap, the tail dropped, window - 1 predictions a window, exp of the mean
of the windows' means. Arithmetic in float32 whatever the stored type.
"""
import argparse
import json
import math
import re
import sys
from pathlib import Path

import safetensors
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

PROJECTION = re.compile(r"\.layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj\.weight$")


def token_windows(model_dir, text_file, window, windows=None):
    """I64 [windows, window] of the text's tokens, the tail dropped."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    ids = torch.tensor(tokenizer(Path(text_file).read_text(encoding="utf-8")).input_ids)
    count = len(ids) // window
    if windows is not None:
        if windows > count:
            raise ValueError(f"{text_file}: {windows} windows of {window} asked for, the text has {count}")
        count = windows
    if count == 0:
        raise ValueError(f"{text_file}: {len(ids)} tokens are less than one window of {window}")
    return ids[: count * window].view(count, window)


@torch.no_grad()
def mean_nll(logits_of, ids, batch=8, loss_dtype=torch.float64):
    """Mean of the windows' mean negative log-likelihoods; `logits_of` maps I64 [b, T] to F32 [b, T, V]."""
    total = 0.0
    for part in ids.split(batch):
        # Vocabulary last: over a strided axis torch adds the exponentials one by one, which in float32 loses the
        # small ones and moves the perplexity of a 4096-word model by 8e-6 of itself.
        logits = logits_of(part)[:, :-1].flatten(0, 1).to(loss_dtype)
        loss = torch.nn.functional.cross_entropy(logits, part[:, 1:].flatten(), reduction="none")
        total += loss.double().view(len(part), -1).mean(dim=1).sum().item()
    return total / len(ids)


def load_model(model_dir):
    model, info = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, output_loading_info=True)
    problems = {k: sorted(map(str, v)) for k, v in info.items() if v}
    if problems:
        raise ValueError(f"{model_dir}: transformers reports {problems}")
    return model.eval()


def tensors(model_dir):
    """Name to (tensor, file), from the index when there is one."""
    model_dir = Path(model_dir)
    index = model_dir / "model.safetensors.index.json"
    if index.exists():
        names = json.loads(index.read_text())["weight_map"]
        files = sorted(set(names.values()))
    else:
        names, files = None, ["model.safetensors"]
    out = {}
    for file in files:
        with safetensors.safe_open(model_dir / file, "pt") as f:
            for name in f.keys():
                if names is not None and names.get(name) != file:
                    raise ValueError(f"{model_dir / file}: holds {name}, the index says {names.get(name)}")
                out[name] = (f.get_tensor(name), file)
    if names is not None and set(names) != set(out):
        raise ValueError(f"{index}: names tensors that no file holds: {sorted(set(names) - set(out))[:3]}")
    return out


def bits(t):
    return t.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[t.element_size()])


def compare(written_dir, source_dir, n, m, dense):
    """Differences that break the promise: at most N of M kept, kept weights and all else bit-equal."""
    written, source = tensors(written_dir), tensors(source_dir)
    errors = []
    if set(written) != set(source):
        errors.append(f"names differ: {sorted(set(written) ^ set(source))[:4]}")
    facts = dict(pruned_tensors=0, kept=0, weights=0, groups=0, groups_below_n=0, equal_tensors=0)
    for name in sorted(set(written) & set(source)):
        a, b = written[name][0], source[name][0]
        if a.dtype != b.dtype or a.shape != b.shape:
            errors.append(f"{name}: {a.dtype} {list(a.shape)}, the source has {b.dtype} {list(b.shape)}")
            continue
        same = bits(a) == bits(b)
        if not PROJECTION.search(name) or (dense and re.search(dense, name)):
            facts["equal_tensors"] += 1
            if not same.all():
                errors.append(f"{name}: not pruned, yet {int((~same).sum())} elements differ from the source")
            continue
        if a.shape[1] % m:
            errors.append(f"{name}: {a.shape[1]} columns do not divide by {m}")
            continue
        changed = ~same & (bits(a) != 0)
        if changed.any():
            r, c = changed.nonzero()[0].tolist()
            errors.append(f"{name}[{r}, {c}]: {a[r, c].item()} is neither +0 nor the source's {b[r, c].item()} "
                          f"({int(changed.sum())} such)")
        count = (a != 0).view(-1, m).sum(dim=1)
        if (count > n).any():
            g = int((count > n).nonzero()[0])
            per_row = a.shape[1] // m
            errors.append(f"{name}: row {g // per_row}, group {g % per_row} keeps {int(count[g])} of {m} "
                          f"({int((count > n).sum())} groups above {n})")
        # Fewer than N is legal; it only happens for good reason where the source itself has zeros.
        possible = (b != 0).view(-1, m).sum(dim=1).clamp(max=n)
        facts["groups_below_n"] += int((count < possible).sum())
        facts["pruned_tensors"] += 1
        facts["kept"] += int((a != 0).sum())
        facts["weights"] += a.numel()
        facts["groups"] += count.numel()
    if facts["pruned_tensors"] == 0:
        errors.append("no projection found")
    return facts, errors


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model_dir")
    p.add_argument("--text", help="UTF-8 text to measure on; without it no perplexity")
    p.add_argument("--window", type=int, default=256, help="tokens a window")
    p.add_argument("--windows", type=int, help="only the first so many")
    p.add_argument("--expect", type=float, help="perplexity it must have")
    p.add_argument("--rtol", type=float, default=1e-3)
    p.add_argument("--against", metavar="SOURCE", help="the dense model it was made from")
    p.add_argument("--pattern", default="2:4", help="keep N of M, as N:M")
    p.add_argument("--dense", metavar="REGEX", help="projections that were left dense")
    p.add_argument("--threads", type=int, help="CPU threads")
    args = p.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if args.threads:
        torch.set_num_threads(args.threads)

    result = dict(model=str(args.model_dir), transformers=transformers.__version__, torch=torch.__version__, errors=[])
    try:
        model = load_model(args.model_dir)
        if args.text:
            ids = token_windows(args.model_dir, args.text, args.window, args.windows)
            nll = mean_nll(lambda x: model(x).logits, ids)
            result.update(text=str(args.text), window=args.window, windows=len(ids),
                          predictions=len(ids) * (args.window - 1), nll=nll, perplexity=math.exp(nll))
            if args.expect is not None:
                off = abs(result["perplexity"] / args.expect - 1)
                result["relative_difference"] = off
                if not off <= args.rtol:
                    result["errors"].append(
                        f"perplexity {result['perplexity']:.6g}, expected {args.expect:.6g} within {args.rtol:g}")
        elif args.expect is not None:
            p.error("--expect needs --text")
        if args.against:
            n, m = (int(x) for x in args.pattern.split(":"))
            facts, errors = compare(args.model_dir, args.against, n, m, args.dense)
            result.update(against=str(args.against), pattern=args.pattern, **facts)
            result["errors"] += errors[:8]
            if len(errors) > 8:
                result["errors"].append(f"and {len(errors) - 8} more")
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as e:
        result["errors"].append(f"{type(e).__name__}: {e}")
        print(json.dumps(result, indent=1))
        return 2
    print(json.dumps(result, indent=1))
    return 1 if result["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
