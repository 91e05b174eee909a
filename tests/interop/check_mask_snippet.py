"""Runs the Python of docs/mask-file.md on a mask file and holds what it reads against the model that was written with it.

    python check_mask_snippet.py docs/mask-file.md RUN/mask.safetensors RUN/model

The first block is the snippet; the second the line that takes the place of its `ranks = ...` for patterns other than 2:4. Exits with 1
where they are wrong.
"""

import re
import sys

from safetensors.numpy import load_file


def main(document, mask, model):
    with open(document, encoding="utf-8") as file:
        blocks = re.findall(r"^```python\n(.*?)^```$", file.read(), re.M | re.S)
    if len(blocks) != 2:
        sys.exit(f"{document} has {len(blocks)} blocks of Python, not 2")
    snippet, other = blocks
    if "RUN/mask.safetensors" not in snippet:
        sys.exit(f"the snippet of {document} does not read RUN/mask.safetensors")
    snippet = snippet.replace("RUN/mask.safetensors", mask)

    def run(code):
        names = {}
        exec(compile(code, document, "exec"), names)
        return names

    lines = snippet.splitlines()
    places = [i for i, line in enumerate(lines) if line.lstrip().startswith("ranks = ")]
    if len(places) != 1:
        sys.exit("the snippet has no line `ranks = ...`")
    indent = lines[places[0]][: -len(lines[places[0]].lstrip())]
    from safetensors import safe_open

    with safe_open(mask, "numpy") as file:
        pattern = file.metadata()["pattern"]
    if pattern != "2:4":
        lines[places[0] : places[0] + 1] = [indent + line for line in other.splitlines()]
    masks = run("\n".join(lines))["masks"]

    n, m = map(int, pattern.split(":"))
    weights = load_file(model + "/model.safetensors")
    if not masks:
        sys.exit("the snippet reads no masks")
    for name, kept in masks.items():
        weight = weights[name]
        if kept.shape != weight.shape or kept.dtype != bool:
            sys.exit(f"{name}: {kept.dtype} {kept.shape} beside {weight.shape}")
        if not (kept.reshape(-1, m).sum(1) == n).all():
            sys.exit(f"{name}: not {pattern}")
        if weight[~kept].any() or not (weight[kept] != 0).mean() > 0.9:
            sys.exit(f"{name}: the model has other zeros")
    print(f"{mask}: {len(masks)} masks of {pattern} as in {model}")


if __name__ == "__main__":
    main(*sys.argv[1:])
