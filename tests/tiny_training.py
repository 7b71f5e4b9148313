"""What trainings are tried on: drawn pictures with captions, and a model small enough."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 220), "yellow": (9, 9, 0)}
SHAPES = ("circle", "square", "triangle", "cross")
GROUNDS = {"white": (255,) * 3, "grey": (128,) * 3, "pink": (250, 160, 190), "black": (0, 0, 0)}

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


def draw_pairs(folder: Path) -> Path:
    """Make a folder of sixty-four drawn pictures with a caption each, in `pairs.tsv`."""
    folder.mkdir()
    rows = ["path\tcaption"]
    for colour, rgb in COLOURS.items():
        for shape in SHAPES:
            for ground, behind in GROUNDS.items():
                image = Image.new("RGB", (48, 48), behind)
                draw = ImageDraw.Draw(image)
                if shape == "circle":
                    draw.ellipse((8, 8, 40, 40), fill=rgb)
                elif shape == "square":
                    draw.rectangle((8, 8, 40, 40), fill=rgb)
                elif shape == "triangle":
                    draw.polygon([(24, 4), (44, 42), (4, 42)], fill=rgb)
                else:
                    draw.rectangle((19, 4, 29, 44), fill=rgb)
                    draw.rectangle((4, 19, 44, 29), fill=rgb)
                name = f"{colour}-{shape}-{ground}.png"
                image.save(folder / name)
                rows.append(f"{name}\ta {colour} {shape} on a {ground} ground")
    (folder / "pairs.tsv").write_text("\n".join(rows) + "\n")
    return folder


def tiny_clip(folder: Path) -> Path:
    """Write a randomly initialised CLIP of 3 million weights, as open_clip stores one."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**TINY)
    transform = {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = {"model_cfg": TINY, "preprocess_cfg": transform}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder
