//! What stands below the options in `--help`: explanations, and examples that run as they are from the repository's folder.
//!
//! A paragraph is one line, which clap wraps; lines of examples are short enough not to be wrapped. `tests/docs.rs` runs the examples.

/// Of `maskwright` itself, with the exit codes of all commands.
pub(super) const MASKWRIGHT: &str = "\
Examples:
  maskwright devices
  maskwright prune models/village --calib models/village/calib.txt --recipe fast \\
      --eval models/village/heldout.txt --out runs/first
  maskwright verify runs/first/model --against models/village

`maskwright COMMAND --help` explains a command and has more examples; `-h` is the short form.

Exit codes:
  0    done
  1    an error, told in one line on standard error; of `verify` also: the folder is not right
  2    the command line cannot be understood
  130  interrupted with Ctrl-C; what was kept is said";

/// Of `devices`.
pub(super) const DEVICES: &str = "\
The adapter that is used is marked with *: a graphics card before an integrated GPU before a software driver on the CPU, or the one that \
--device or WGPU_ADAPTER_NAME names. WGPU_BACKEND (vulkan, metal, dx12) limits where adapters are looked for.

Examples:
  maskwright devices
  maskwright devices --device 0
  maskwright devices --json";

/// Of `eval`.
pub(super) const EVAL: &str = "\
A text is tokenised once, cut into windows that do not overlap, and the tail is dropped; the result is exp of the mean of the windows' \
means (the convention of GPTQ, SparseGPT and Wanda). In brackets stand 95 % confidence intervals, by a bootstrap over windows. Several \
texts, such as domains or languages, are measured each and all together.

With --against both models pass one block at a time; also printed are the ratio of the perplexities, the divergence KL(DENSE || MODEL), a \
mean over the predicted tokens in nats, and for how many of them both models have the same most likely token.

With --choices every choice of every question is scored by its log-likelihood behind the context and a space: acc and acc_norm of \
lm-evaluation-harness (the latter over the characters of the choice), and the same over its bytes and over its tokens. Special tokens that the \
tokenizer puts behind a text do not count.

Examples:
  maskwright eval models/village --text models/village/heldout.txt --window 128
  maskwright eval runs/first/model --text models/village/heldout.txt --window 128 --json
  maskwright eval models/village --mask runs/first/mask.safetensors --against models/village \\
      --text models/village/heldout.txt --text models/village/calib.txt --window 128";

/// Of `generate`.
pub(super) const GENERATE: &str = "\
A text ends at an end token of the model (generation_config.json, config.json) or after --tokens. With --mask the same model writes \
twice, dense and under the mask. End tokens at the end of the prompt, also those that the tokenizer puts there, are left out unless --past-end.

With --out the model writes --count texts of its own, JSON lines for `prune --calib`: calibration text where there is none that fits the \
model, or more of it. They also end at the opening token. Ctrl-C keeps the texts that are finished.

Examples:
  maskwright generate models/village --prompt \"One windy morning\" --tokens 40
  maskwright generate models/village --prompt \"One windy morning\" \\
      --mask runs/first/mask.safetensors
  maskwright generate models/village --out own.jsonl --count 200 --tokens 256 --temperature 1";

/// Of `prune`.
pub(super) const PRUNE: &str = "\
Which method: --recipe fast takes seconds to minutes and needs no settings; --recipe best learns the mask and takes minutes to hours; \
docs/methods.md compares all. --dry-run tells memory and time beforehand.

Written into --out: mask.safetensors, model/ (the masked model in Hugging Face layout), config.toml (the options), metrics.jsonl, \
run.json, and report.html, a page about the run.

Ctrl-C or a crash: every method but maskpro on the model's loss keeps what it has finished, and the state of training; the same command \
with --resume DIR in place of --out DIR goes on. Ctrl-C ends maskpro's learning and writes the mask learned so far. Both end with exit \
code 130.

Examples:
  maskwright prune models/village --calib models/village/calib.txt --recipe fast \\
      --eval models/village/heldout.txt --out runs/first
  maskwright prune models/village --calib models/village/calib.txt --recipe best --steps 60 \\
      --window 256 --eval models/village/heldout.txt --out runs/best
  maskwright prune models/village --recipe best --dry-run
  maskwright prune --config runs/best/config.toml --seed 1 --out runs/best-1";

/// Of `export`.
pub(super) const EXPORT: &str = "\
Formats:
  hf           the model with zeros in Hugging Face layout, which everything reads;
               stored as large as the dense one
  mask         the mask alone, as a mask file for this model
  maskllm-npz  the mask alone, as MaskLLM's tools write and read it
  torch24      packed for PyTorch's semi-structured tensors, with load_torch24.py;
               patterns that keep at most 2 of every 4
  ct24         sparse-24-bitmask of compressed-tensors, a legacy format: needs --legacy-ct24

No format is a promise of speed: see docs/export.md.

Examples:
  maskwright export models/village --mask runs/first/mask.safetensors --out village-hf
  maskwright export models/village --mask runs/first/mask.safetensors \\
      --format torch24 --out village-24";

/// Of `apply-mask`.
pub(super) const APPLY_MASK: &str = "\
For a model that was fine-tuned, or that a LoRA was merged into, after pruning: its pruned weights are then no longer zero.

Examples:
  maskwright apply-mask models/village --mask runs/first/mask.safetensors --out village-tuned
  maskwright apply-mask runs/first/model --mask runs/first/mask.safetensors --out again --json";

/// Of `variance`.
pub(super) const VARIANCE: &str = "\
For work on MaskPro. The three estimators have the same mean; the table shows how much they scatter around it. MaskPro's theorem 2: \
variance tracked <= residual < loss.

Examples:
  maskwright variance models/village --calib models/village/calib.txt --samples 200 --logits 4
  maskwright variance models/village --calib models/village/calib.txt --samples 50 --json";

/// Of `verify`.
pub(super) const VERIFY: &str = "\
A weight counts as pruned when all its bits are zero, so a -0.0 at a pruned place is a fault. Exit code 0: all is right; 1: something is \
wrong, and the error names the first tensor, row and group; also where the folder cannot be read, and then nothing is printed but the \
error. With --against files that were added, removed or changed are listed; an added one is wrong unless exports write it.

Examples:
  maskwright verify runs/first/model
  maskwright verify runs/first/model --against models/village --mask runs/first/mask.safetensors
  maskwright verify runs/first/model --against models/village --json";

/// Of `inspect`.
pub(super) const INSPECT: &str = "\
A folder's pattern is the strictest of the usual ones that every group obeys; weights count as kept when they are not +0.0. Groups are \
the same when they keep the same weights; shared are those of the weights kept by the first that the second keeps, too.

Examples:
  maskwright inspect runs/first
  maskwright inspect runs/first/mask.safetensors runs/best
  maskwright inspect runs/first/model --json";

/// Of `report`.
pub(super) const REPORT: &str = "\
The page is one file that needs no network: options and adapter, perplexities, the curves of learning, the errors of the projections, how \
far the mask moved, time, memory, and the windows and tokens that lost most. Several runs come side by side, quality against time and \
memory, with the runs marked that no other beats in both.

Examples:
  maskwright report runs/first --out first.html
  maskwright report runs/first runs/best --out both.html";
