"""Random splits of a small folder of images, the same for every benchmark of transfer learning."""

from __future__ import annotations

from pathlib import Path

import numpy as np

HELD_OUT = 20  # images of each class


def split_folder(folder: Path, out: Path, per_class: int, seed: int) -> Path:
    """Link `per_class` images of each class as train/, and 20 others as val/; return the folder `out`."""
    rng = np.random.default_rng(seed)
    for name in sorted(path.name for path in folder.iterdir()):
        files = sorted((folder / name).iterdir())
        order = rng.permutation(len(files))
        parts = {"val": order[:HELD_OUT], "train": order[HELD_OUT : HELD_OUT + min(per_class, len(files) - HELD_OUT)]}
        for part, chosen in parts.items():
            (out / part / name).mkdir(parents=True)
            for index in sorted(chosen):
                (out / part / name / files[index].name).symlink_to(files[index])
    return out
