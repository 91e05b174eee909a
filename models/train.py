#!/usr/bin/env python3
"""Trains the village model: tokenizer, weights, texts and configuration in Hugging Face layout.

The network is a plain Llama written out below so that it can be compiled and trained quickly on two CPU cores; its
parameter names are those of transformers' LlamaForCausalLM. `measure.py` loads the result with transformers.

    python3 train.py --out village            # about 11 minutes on one idle core
    python3 train.py --out /tmp/quick --steps 300
"""

import argparse
import json
import math
import os
import time

import numpy
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn

import generate

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 768,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": True,
    "torch_dtype": "float16",
}
SPECIAL = ["<pad>", "<s>", "</s>"]
# Three texts that share the grammar and the village and nothing else.
SEEDS = {"train": 1, "calib.txt": 2, "heldout.txt": 3}


class Norm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + CONFIG["rms_norm_eps"]))


def linear(rows, cols):
    return nn.Linear(cols, rows, bias=False)


def rotate(x, cos, sin):
    """Half-split rotary embedding of x[batch, heads, tokens, head_dim]."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        hidden, dim = CONFIG["hidden_size"], CONFIG["head_dim"]
        self.heads, self.groups, self.dim = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"], dim
        self.q_proj = linear(self.heads * dim, hidden)
        self.k_proj = linear(self.groups * dim, hidden)
        self.v_proj = linear(self.groups * dim, hidden)
        self.o_proj = linear(hidden, self.heads * dim)

    def forward(self, x, cos, sin):
        batch, tokens, _ = x.shape
        split = lambda y, heads: y.view(batch, tokens, heads, self.dim).transpose(1, 2)
        q = rotate(split(self.q_proj(x), self.heads), cos, sin)
        k = rotate(split(self.k_proj(x), self.groups), cos, sin)
        v = split(self.v_proj(x), self.groups)
        k, v = (y.repeat_interleave(self.heads // self.groups, dim=1) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, tokens, self.heads * self.dim))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
        self.gate_proj, self.up_proj, self.down_proj = linear(inner, hidden), linear(inner, hidden), linear(hidden, inner)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm, self.self_attn = Norm(CONFIG["hidden_size"]), Attention()
        self.post_attention_layernorm, self.mlp = Norm(CONFIG["hidden_size"]), Mlp()

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(CONFIG["vocab_size"], CONFIG["hidden_size"])
        self.layers = nn.ModuleList(Layer() for _ in range(CONFIG["num_hidden_layers"]))
        self.norm = Norm(CONFIG["hidden_size"])


class Llama(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Body()
        half = torch.arange(0, CONFIG["head_dim"], 2, dtype=torch.float32) / CONFIG["head_dim"]
        angle = torch.outer(torch.arange(CONFIG["max_position_embeddings"]).float(), CONFIG["rope_theta"] ** -half)
        angle = torch.cat((angle, angle), dim=-1)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        depth = 2 * CONFIG["num_hidden_layers"]
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                std = 0.02 if "embed" in name else parameter.shape[1] ** -0.5
                # Both ends of a residual branch start small, so that the sum over the depth does not grow.
                std *= depth ** -0.5 if "o_proj" in name or "down_proj" in name else 1.0
                nn.init.normal_(parameter, std=std)

    def forward(self, ids, targets):
        body = self.model
        x = body.embed_tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in body.layers:
            x = layer(x, cos, sin)
        logits = F.linear(body.norm(x), body.embed_tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def make_tokenizer(texts, folder):
    """A byte-level BPE; any text can be encoded, and <s> is put in front by default."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"], special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    assert tokenizer.get_vocab_size() == CONFIG["vocab_size"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    tokenizer.save(os.path.join(folder, "tokenizer.json"))
    write_json(os.path.join(folder, "tokenizer_config.json"), {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
        "model_max_length": CONFIG["max_position_embeddings"], "clean_up_tokenization_spaces": False})
    return tokenizer


def write_json(path, value):
    with open(path, "w", encoding="ascii", newline="\n") as file:
        file.write(json.dumps(value, indent=2) + "\n")


def corpus(tokenizer, size):
    """Token streams of the training text: stories joined as in the text files, and each between <s> and </s>."""
    texts, nats = generate.text_of(SEEDS["train"], size)
    plain, marked = [], []
    for start in range(0, len(texts), 1000):
        for encoding in tokenizer.encode_batch_fast([text + "\n" for text in texts[start:start + 1000]],
                                                    add_special_tokens=False):
            plain.append(numpy.array(encoding.ids, dtype=numpy.int32))
            marked.extend((numpy.array([1], dtype=numpy.int32), plain[-1][:-1], numpy.array([2], dtype=numpy.int32)))
    plain = numpy.concatenate(plain)
    print(f"training text: {len(texts)} stories, {len(plain)} tokens, entropy {nats / len(plain):.4f} nats per token")
    return torch.from_numpy(plain), torch.from_numpy(numpy.concatenate(marked))


def save(model, folder):
    """f16 weights under transformers' names; the head is tied, so it is not stored."""
    tensors = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in model.named_parameters()}
    part = os.path.join(folder, "model.safetensors.part")
    save_file(tensors, part, metadata={"format": "pt"})
    os.replace(part, os.path.join(folder, "model.safetensors"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="village")
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--decay", type=float, default=0.02)
    parser.add_argument("--bytes", type=int, default=40_000_000, help="size of the training text")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    os.makedirs(args.out, exist_ok=True)

    for file in ("calib.txt", "heldout.txt"):
        texts, _ = generate.text_of(SEEDS[file], 330_000)
        with open(os.path.join(args.out, file), "w", encoding="ascii", newline="\n") as out:
            out.write("".join(text + "\n" for text in texts))
    texts, _ = generate.text_of(SEEDS["train"], 4_000_000)
    tokenizer = make_tokenizer((text + "\n" for text in texts), args.out)
    write_json(os.path.join(args.out, "config.json"), CONFIG)
    plain, marked = corpus(tokenizer, args.bytes)

    model = Llama()
    print(f"{sum(parameter.numel() for parameter in model.parameters())} parameters")
    # Muon for the projections, AdamW for the embedding and the norms.
    projections = [parameter for name, parameter in model.named_parameters() if "_proj" in name]
    rest = [parameter for name, parameter in model.named_parameters() if "_proj" not in name]
    optimizers = [
        torch.optim.Muon(projections, lr=args.rate, weight_decay=args.decay, momentum=0.95,
                         adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=args.rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]
    warmup = min(200, args.steps // 10 + 1)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(
        (step + 1) / warmup, 0.005 + 0.4975 * (1 + math.cos(math.pi * step / args.steps)))) for optimizer in optimizers]
    compiled = torch.compile(model)
    window, offsets = CONFIG["max_position_embeddings"], torch.arange(CONFIG["max_position_embeddings"] + 1)
    started, recent = time.time(), []
    for step in range(args.steps):
        # One row in eight comes from the stream with <s> and </s>, so that both mean something.
        rows = []
        for stream, count in ((plain, args.batch - args.batch // 8), (marked, args.batch // 8)):
            start = torch.randint(len(stream) - window - 1, (count, 1))
            rows.append(stream[start + offsets])
        rows = torch.cat(rows).long()
        loss = compiled(rows[:, :-1], rows[:, 1:])
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules):
            optimizer.step()
            schedule.step()
        recent.append(loss.detach())
        if len(recent) == 50 or step + 1 == args.steps:
            mean, recent = torch.stack(recent).mean().item(), []
            print(f"step {step + 1} loss {mean:.4f} seconds {time.time() - started:.0f}", flush=True)
            save(model, args.out)


if __name__ == "__main__":
    main()
