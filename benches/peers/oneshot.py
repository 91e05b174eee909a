"""One-shot N:M pruning of a Llama in plain PyTorch on the CPU: what `maskwright prune --inputs pruned` does.

    python oneshot.py MODEL_DIR --calib train.txt --method descent [--start wanda] [--repair none]
                      [--eval valid.txt] [--compare sparsegpt] [--out masks.safetensors]

Prints one JSON object: seconds, the error of every projection, perplexity when there is a text to evaluate.

The decoder blocks are walked in order, and a block in four steps: (q, k, v), o, (gate, up), down. A step takes the
Gram matrix H = X^T X of its input X over all calibration tokens, prunes, and runs on what is left, so every step sees the
masks before it and nothing is run twice. Projections that share an input share H and are pruned as one stack of rows.

Methods (W: weights, h_j = H_jj, N of M weights of a group kept):

    magnitude   the largest |W|
    wanda       the largest |W| sqrt(h_j)
    ria         the largest (|W| / row sum of |W| + |W| / column sum of |W|) h_j^(1/4)
    sparsegpt   column by column with error feedback through the Cholesky factor of the inverse of H
    descent     from a start mask, group by group the pattern that lowers the error the most, until nothing gains

Repairs: `none` leaves the kept weights as they are; `update` (sparsegpt only) takes the weights its error feedback ends
with; `lstsq` solves every row's least squares for the kept weights.

Error of a projection: tr(D H D^T) / tr(W H W^T), D the change of the weights. All tensors are float32, the solves of
`lstsq` and the sums of the report float64.
"""
import argparse
import itertools
import json
import math
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer

SCORES = ("magnitude", "wanda", "ria")
METHODS = (*SCORES, "sparsegpt", "descent")


class Clock:
    """Wall-clock seconds by name."""

    def __init__(self):
        self.seconds = defaultdict(float)

    @contextmanager
    def __call__(self, name):
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begin


# ---------------------------------------------------------------------------------------------------------------- model


class Llama:
    """Weights and forward pass of a Hugging Face Llama; linear layers by their tensor's name."""

    def __init__(self, folder):
        folder = Path(folder)
        c = json.loads((folder / "config.json").read_text())
        if c.get("model_type") != "llama":
            raise ValueError(f"{folder}: model_type is {c.get('model_type')!r}, only llama is known here")
        for key in ("rope_scaling", "attention_bias", "mlp_bias"):
            if c.get(key):
                raise ValueError(f"{folder}: {key} = {c[key]} is not known here")
        self.blocks = c["num_hidden_layers"]
        self.heads = c["num_attention_heads"]
        self.kv_heads = c.get("num_key_value_heads") or self.heads
        self.head_dim = c.get("head_dim") or c["hidden_size"] // self.heads
        self.eps = c["rms_norm_eps"]
        self.rope_theta = c.get("rope_theta") or (c.get("rope_parameters") or {}).get("rope_theta", 10000.0)
        self.weights = read_tensors(folder)
        embedding = self.weights["model.embed_tokens.weight"]
        self.head = embedding if c.get("tie_word_embeddings") else self.weights["lm_head.weight"]

    def embed(self, ids):
        return F.embedding(ids, self.weights["model.embed_tokens.weight"])

    def norm(self, x, name):
        return F.rms_norm(x, x.shape[-1:], self.weights[name + ".weight"], self.eps)

    def linear(self, x, name):
        return F.linear(x, self.weights[name + ".weight"])

    def rotation(self, length):
        """Cosine and sine [length, head_dim / 2] of the rotary embedding."""
        steps = torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
        angles = torch.arange(length, dtype=torch.float64)[:, None] * self.rope_theta ** -steps
        return angles.cos().float(), angles.sin().float()

    def attend(self, x, block, rotation):
        """Input [windows, length, hidden] of q, k and v to the input of o."""
        windows, length, _ = x.shape

        def split(name):
            y = self.linear(x, f"{block}.self_attn.{name}_proj")
            return y.view(windows, length, -1, self.head_dim).transpose(1, 2)

        q, k, v = rotate(split("q"), rotation), rotate(split("k"), rotation), split("v")
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads)
        return out.transpose(1, 2).reshape(windows, length, -1)

    def gated(self, x, block):
        """Input of gate and up to the input of down."""
        gate = F.silu(self.linear(x, f"{block}.mlp.gate_proj"), inplace=True)
        return gate.mul_(self.linear(x, f"{block}.mlp.up_proj"))

    def logits(self, ids):
        """Next-token logits [windows, length, vocabulary] of I64 [windows, length]."""
        rotation, x = self.rotation(ids.shape[1]), self.embed(ids)
        for block in (f"model.layers.{i}" for i in range(self.blocks)):
            a = self.attend(self.norm(x, f"{block}.input_layernorm"), block, rotation)
            x = x + self.linear(a, f"{block}.self_attn.o_proj")
            a = self.gated(self.norm(x, f"{block}.post_attention_layernorm"), block)
            x = x + self.linear(a, f"{block}.mlp.down_proj")
        return F.linear(self.norm(x, "model.norm"), self.head)


def read_tensors(folder):
    """Every tensor of the folder in float32, from one file or from the shards its index names."""
    index = folder / "model.safetensors.index.json"
    shards = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    tensors = {}
    for shard in sorted(shards):
        with safe_open(folder / shard, "pt") as file:
            for name in file.keys():
                tensors[name] = file.get_tensor(name).float()
    return tensors


def rotate(x, rotation):
    """Rotary embedding of [.., length, head_dim]: element i pairs with element i + head_dim / 2."""
    (cos, sin), (a, b) = rotation, x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def token_windows(folder, text_file, window, count=None):
    """I64 [windows, window]: the text tokenised once as a whole and cut without overlap, the tail dropped."""
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    ids = torch.tensor(tokenizer.encode(Path(text_file).read_text(encoding="utf-8")).ids)
    there = len(ids) // window
    count = there if count is None else count
    if not 0 < count <= there:
        raise ValueError(f"{text_file}: {count} windows of {window} tokens asked for, the text has {there}")
    return ids[:count * window].view(count, window)


def perplexity(model, ids, batch):
    """exp of the mean over windows of the mean negative log-likelihood of window - 1 predictions."""
    total = 0.0
    for part in ids.split(batch):
        logits = model.logits(part)[:, :-1].flatten(0, 1).double()
        loss = F.cross_entropy(logits, part[:, 1:].flatten(), reduction="none")
        total += loss.view(len(part), -1).mean(dim=1).sum().item()
    return math.exp(total / len(ids))


# -------------------------------------------------------------------------------------------------------------- methods


def top_n(scores, n, m):
    """Boolean mask of the n largest scores of every group of m columns; ties to the lower column."""
    grouped = scores.unflatten(1, (-1, m))
    order = grouped.argsort(dim=2, descending=True, stable=True)[..., :n]
    return torch.zeros_like(grouped, dtype=torch.bool).scatter_(2, order, True).flatten(1)


def score(method, w, gram):
    """Importance [rows, columns] of one projection's weights."""
    size = w.abs()
    if method == "wanda":
        return size * gram.diagonal().sqrt()
    if method == "ria":
        tiny = torch.finfo(w.dtype).tiny
        relative = size / size.sum(dim=1, keepdim=True).clamp(tiny) + size / size.sum(dim=0).clamp(tiny)
        return relative * gram.diagonal() ** 0.25
    return size


def sparsegpt(w, gram, n, m, block=128, damp=0.01):
    """Mask and updated weights of SparseGPT.

    With U the upper Cholesky factor of the inverse of the damped Gram matrix, columns go left to right. At the first
    column of a group the m - n weights with the smallest w^2 / U_jj^2 are chosen; a column's error e = (w - kept w) / U_jj
    then moves the columns to its right by -e U_j: at once within a block of columns, by one product for the columns beyond.
    Arrays are kept transposed, [columns, rows], so that a column is contiguous.
    """
    w, h = w.t().contiguous(), gram.clone()
    columns, rows = w.shape
    dead = h.diagonal() == 0
    h.diagonal()[dead] = 1
    w[dead] = 0
    h.diagonal().add_(damp * h.diagonal().mean())
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    pivots = u.diagonal().tolist()
    keep = torch.ones(columns, rows, dtype=torch.bool)
    block -= block % m
    for begin in range(0, columns, block):
        end = min(begin + block, columns)
        errors = torch.empty(end - begin, rows)
        for j in range(begin, end):
            if j % m == 0:
                saliency = (w[j:j + m] / u.diagonal()[j:j + m, None]).square_()
                keep[j:j + m] = top_n(saliency.t(), n, m).t()
            error = errors[j - begin]
            torch.mul(w[j], ~keep[j], out=error).div_(pivots[j])
            w[j].mul_(keep[j])
            w[j + 1:end].addmm_(u[j, j + 1:end, None], error[None], alpha=-1)
        w[end:].addmm_(u[begin:end, end:].t(), errors, alpha=-1)
    return keep.t().contiguous(), w.t().contiguous()


class Descent:
    """Exact group descent: every row on its own lowers z^T H z, z its pruned weights (zero where kept).

    For a group with weights v, the rest of the row fixed, a pattern p of pruned columns costs
    q_p + 2 sum_{j in p} v_j b_j with q_p = sum_{i, j in p} v_i v_j H_ij and b = (H z)_group - H_group z_group.
    The cheapest pattern is taken when it gains more than `tolerance` of the row's error. Groups go left to right, sweep
    after sweep; a row leaves when a whole sweep changed nothing in it.

    All rows do a group together, with arrays transposed to [columns, rows] so that the rows are contiguous. H z is made
    per block of columns: one product when the block is entered, rank-m updates inside.
    """

    BLOCK = 32

    def __init__(self, gram, n, m, tolerance, max_sweeps):
        self.gram, self.m, self.tolerance, self.max_sweeps = gram, m, tolerance, max_sweeps
        pruned = itertools.combinations(range(m), m - n)
        self.patterns = torch.tensor([[float(j in p) for j in range(m)] for p in pruned])
        self.pairs = (self.patterns[:, :, None] * self.patterns[:, None]).flatten(1)
        self.width = max(m, self.BLOCK - self.BLOCK % m)

    def own_costs(self, w):
        """q [groups, patterns, rows]."""
        m, groups = self.m, len(w) // self.m
        costs = torch.empty(groups, len(self.patterns), w.shape[1])
        for g in range(groups):
            part = slice(g * m, g * m + m)
            products = w[part, None] * w[None, part] * self.gram[part, part, None]
            torch.mm(self.pairs, products.flatten(0, 1), out=costs[g])
        return costs

    def numbers_of(self, keep):
        """Pattern number [groups, rows] of a mask [columns, rows]."""
        bits = 1 << torch.arange(self.m)
        table = torch.empty(1 << self.m, dtype=torch.long)
        table[(self.patterns.long() * bits).sum(1)] = torch.arange(len(self.patterns))
        return table[((~keep).unflatten(0, (-1, self.m)).long() * bits[:, None]).sum(1)]

    def sweep(self, w, z, chosen, costs):
        """One pass over all groups, in place; which rows changed."""
        gram, m = self.gram, self.m
        twice, columns_of = 2 * self.patterns, self.patterns.t().contiguous()
        changed = torch.zeros(w.shape[1], dtype=torch.bool)
        threshold = self.tolerance * (torch.mm(gram, z) * z).sum(0)
        for begin in range(0, len(w), self.width):
            block = slice(begin, min(begin + self.width, len(w)))
            product = torch.mm(gram[block], z)
            for at in range(block.start, block.stop, m):
                part, g = slice(at, at + m), at // m
                others = torch.addmm(product[at - begin:at - begin + m], gram[part, part], z[part], alpha=-1)
                cost = torch.addmm(costs[g], twice, others.mul_(w[part]))
                lowest, best = cost.min(dim=0)
                gain = cost.gather(0, chosen[g, None])[0].sub_(lowest)
                take = gain > threshold
                if not take.any():
                    continue
                changed |= take
                chosen[g] = torch.where(take, best, chosen[g])
                after = columns_of.gather(1, chosen[g].expand(m, -1)).mul_(w[part])
                product.addmm_(gram[block, part], after - z[part])
                z[part] = after
        return changed

    def run(self, w, keep):
        """Mask [rows, columns] that descent ends with from the mask `keep`, and the number of sweeps."""
        result = keep.t().contiguous()
        w = w.t().contiguous()
        z = w * ~result
        chosen, costs = self.numbers_of(result), self.own_costs(w)
        rows, sweeps = torch.arange(w.shape[1]), 0
        final = chosen.clone()
        while len(rows) and sweeps < self.max_sweeps:
            changed = self.sweep(w, z, chosen, costs)
            sweeps += 1
            final[:, rows] = chosen
            if not changed.all():
                stay = changed.nonzero()[:, 0]
                rows, w, z, chosen = rows[stay], w[:, stay], z[:, stay], chosen[:, stay]
                costs = costs[:, :, stay]
        pruned = self.patterns.bool()[final].transpose(1, 2).flatten(0, 1)
        return (~pruned).t().contiguous(), sweeps


def least_squares(w, keep, gram, damp, elements=1 << 24):
    """Kept weights that minimise every row's damped error: the change of the kept weights of a row is
    (H_SS + damp mean(h) I)^-1 (H z)_S, S its kept columns, z its pruned weights. Damping pulls towards no change."""
    h = gram.double()
    right = (w * ~keep).double() @ h
    h.diagonal().add_(damp * h.diagonal().mean())
    out = w * keep
    kept = keep.nonzero()[:, 1].view(len(w), -1)
    at_once = max(1, elements // kept.shape[1] ** 2)
    for begin in range(0, len(w), at_once):
        s = kept[begin:begin + at_once]
        factor = torch.linalg.cholesky(h[s[:, :, None], s[:, None]])
        change = torch.cholesky_solve(right[begin:begin + at_once].gather(1, s)[..., None], factor)[..., 0]
        out[begin:begin + at_once].scatter_add_(1, s, change.float())
    return out


# ------------------------------------------------------------------------------------------------------------- pruning


class Pruner:
    """Chooses masks for the projections of one input, and keeps the figures of the report."""

    def __init__(self, options, clock):
        self.options, self.clock = options, clock
        self.random = torch.Generator().manual_seed(options.seed)
        self.masks, self.figures, self.sweeps = {}, [], []

    def score_mask(self, method, parts, gram):
        n, m = self.options.pattern
        scores = [torch.rand(w.shape, generator=self.random) if method == "random" else score(method, w, gram)
                  for w in parts]
        return top_n(torch.cat(scores), n, m)

    def choose(self, method, parts, gram):
        """Start mask (or none), mask, weights and sweeps (or none) of the stacked rows of `parts`."""
        o, (n, m) = self.options, self.options.pattern
        w = torch.cat(parts)
        if method == "sparsegpt":
            keep, updated = sparsegpt(w, gram, n, m, damp=o.sparsegpt_damp)
            return None, keep, updated if o.repair == "update" else w * keep, None
        if method == "descent":
            start = self.score_mask(o.start, parts, gram)
            keep, sweeps = Descent(gram, n, m, o.tolerance, o.max_sweeps).run(w, start)
            return start, keep, w * keep, sweeps
        keep = self.score_mask(method, parts, gram)
        return None, keep, w * keep, None

    def prune(self, model, names, gram):
        """Replaces the weights of the named projections, all of one input with Gram matrix `gram`."""
        o = self.options
        parts = [model.weights[name + ".weight"] for name in names]
        if parts[0].shape[1] % o.pattern[1]:
            raise ValueError(f"{names[0]}: {parts[0].shape[1]} columns do not divide by {o.pattern[1]}")
        with self.clock("method"):
            start, keep, after, sweeps = self.choose(o.method, parts, gram)
        if o.repair == "lstsq":
            with self.clock("repair"):
                after = least_squares(torch.cat(parts), keep, gram, o.damp)
        if sweeps is not None:
            self.sweeps.append(sweeps)
        with self.clock("report"):
            masks = {"start": start, "mask": keep}
            if o.compare:
                masks["compare"] = self.choose(o.compare, parts, gram)[1]
            self.report(names, parts, gram, masks, after)
        sizes = [len(w) for w in parts]
        for name, mask, weights in zip(names, keep.split(sizes), after.split(sizes)):
            self.masks[name + ".weight"] = mask.to(torch.uint8)
            model.weights[name + ".weight"] = weights.contiguous()

    def report(self, names, parts, gram, masks, after):
        """One figure a projection: the error of each mask on the original weights, and of the weights at the end."""
        h, w = gram.double(), torch.cat(parts).double()
        changes = {key: w * ~mask for key, mask in masks.items() if mask is not None}
        changes["after"] = w - after
        sizes = [len(part) for part in parts]

        def energy(change):
            return [rows.sum().item() for rows in ((change @ h) * change).sum(1).split(sizes)]

        whole, errors = energy(w), {key: energy(change) for key, change in changes.items()}
        for i, name in enumerate(names):
            self.figures.append({"name": name} | {key: values[i] / whole[i] for key, values in errors.items()})


def gram_of(x, rows=8192):
    """X^T X of [.., columns], summed over parts of the tokens."""
    x = x.flatten(0, -2)
    gram = torch.zeros(x.shape[1], x.shape[1])
    for part in x.split(rows):
        gram.addmm_(part.t(), part)
    return gram


def walk_block(model, block, x, rotation, batch, pruner, clock, last=False):
    """Prunes one block, its input `x` [windows, length, hidden] becoming its output in place (not of the last block)."""

    def in_batches(function, x):
        with clock("forward"):
            return torch.cat([function(part) for part in x.split(batch)])

    def prune(names, x):
        with clock("gram"):
            gram = gram_of(x)
        pruner.prune(model, names, gram)

    def add(x, a, name):
        """x + linear(a), in place."""
        with clock("forward"):
            for to, part in zip(x.split(batch), a.split(batch)):
                to.add_(model.linear(part, name))

    attention, mlp = f"{block}.self_attn", f"{block}.mlp"
    a = in_batches(lambda part: model.norm(part, f"{block}.input_layernorm"), x)
    prune([f"{attention}.{p}_proj" for p in "qkv"], a)
    a = in_batches(lambda part: model.attend(part, block, rotation), a)
    prune([f"{attention}.o_proj"], a)
    add(x, a, f"{attention}.o_proj")
    a = in_batches(lambda part: model.norm(part, f"{block}.post_attention_layernorm"), x)
    prune([f"{mlp}.gate_proj", f"{mlp}.up_proj"], a)
    a = in_batches(lambda part: model.gated(part, block), a)
    prune([f"{mlp}.down_proj"], a)
    if not last:
        add(x, a, f"{mlp}.down_proj")


def walk(model, ids, batch, pruner, clock):
    """Prunes the model block by block, every step on what the masks before it let through."""
    rotation = model.rotation(ids.shape[1])
    with clock("forward"):
        x = torch.cat([model.embed(part) for part in ids.split(batch)])
    for i in range(model.blocks):
        walk_block(model, f"model.layers.{i}", x, rotation, batch, pruner, clock, last=i == model.blocks - 1)


# --------------------------------------------------------------------------------------------------------- command line


def pattern(text):
    """`2:4` to (2, 4)."""
    n, m = (int(part) for part in text.split(":"))
    if not 0 < n < m:
        raise argparse.ArgumentTypeError(f"{text}: N of M weights are kept, 0 < N < M")
    return n, m


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", help="folder with config.json, model.safetensors (or shards) and tokenizer.json")
    p.add_argument("--calib", required=True, help="calibration text")
    p.add_argument("--windows", type=int, default=128)
    p.add_argument("--window", type=int, default=256, help="tokens a window")
    p.add_argument("--pattern", type=pattern, default=(2, 4), help="N:M, keep N of M")
    p.add_argument("--method", choices=METHODS, default="descent")
    p.add_argument("--start", choices=(*SCORES, "random"), default="wanda", help="of descent")
    p.add_argument("--tolerance", type=float, default=1e-6, help="smallest gain of descent, of the row's error")
    p.add_argument("--max-sweeps", type=int, default=50)
    p.add_argument("--sparsegpt-damp", type=float, default=0.01, help="of the mean of H's diagonal")
    p.add_argument("--repair", choices=("none", "update", "lstsq"), default="none")
    p.add_argument("--damp", type=float, default=1e-4, help="of lstsq, of the mean of H's diagonal")
    p.add_argument("--compare", choices=METHODS, help="also report the error of this method's mask on the same H")
    p.add_argument("--eval", help="text to measure perplexity on, before and after; not timed")
    p.add_argument("--eval-window", type=int, default=256)
    p.add_argument("--eval-windows", type=int, help="only the first so many")
    p.add_argument("--out", help="safetensors file for the masks, U8 by the weight's name")
    p.add_argument("--batch", type=int, default=16, help="windows run at once")
    p.add_argument("--seed", type=int, default=0, help="of --start random")
    p.add_argument("--threads", type=int, default=2)
    o = p.parse_args()
    if o.repair == "update" and o.method != "sparsegpt":
        p.error("--repair update belongs to --method sparsegpt")
    return o


@torch.inference_mode()
def main():
    o = arguments()
    torch.set_num_threads(o.threads)
    clock = Clock()
    with clock("load"):
        model = Llama(o.model)
    with clock("tokenise"):
        ids = token_windows(o.model, o.calib, o.window, o.windows)
    result = {"perplexity": {}}
    held_out = token_windows(o.model, o.eval, o.eval_window, o.eval_windows) if o.eval else None
    if o.eval:
        result["perplexity"]["dense"] = perplexity(model, held_out, o.batch)
    pruner = Pruner(o, clock)
    walk(model, ids, o.batch, pruner, clock)
    if o.eval:
        result["perplexity"]["pruned"] = perplexity(model, held_out, o.batch)
    if o.out:
        save_file(pruner.masks, o.out)

    # What is only measured for the report is no part of the total.
    report = clock.seconds.pop("report")
    seconds = {"total": sum(clock.seconds.values())} | clock.seconds
    result |= {"seconds": seconds, "report_seconds": report, "sweeps": pruner.sweeps,
               "projections": pruner.figures}
    if o.compare:
        lower = sum(f["mask"] < f["compare"] for f in pruner.figures)
        result["mask_below_compare"] = f"{lower} of {len(pruner.figures)}"
    options = {k: v for k, v in vars(o).items() if k not in ("calib", "eval", "out", "model")}
    print(json.dumps({"model": Path(o.model).name} | options | {"torch": torch.__version__} | result, indent=1))


if __name__ == "__main__":
    main()
