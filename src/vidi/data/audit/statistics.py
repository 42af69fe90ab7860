"""Plain numbers of a data set: images, sizes, channels, classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from vidi.data.audit import classes, edges
from vidi.data.audit.looks import Seen


def of(seen: Seen) -> dict[str, Any]:
    """Ready for JSON. Channels are of values in [0, 1], each image weighing the same."""
    out: dict[str, Any] = {
        "samples": {name: int((seen.split == s).sum()) for s, name in enumerate(seen.splits)}
    }
    counted = classes.counts(seen)
    if counted is not None:
        table, what = counted
        out["classes"] = {
            "counted": what,
            "names": list(seen.dataset.classes),
            **{name: table[s].tolist() for s, name in enumerate(seen.splits)},
        }
    if seen.cheap:
        return out
    good = seen.readable
    out["unreadable"] = int((~good).sum())
    if good.any():
        sizes = seen.sizes[good]
        out["height"], out["width"] = _spread(sizes[:, 0]), _spread(sizes[:, 1])
        out["sizes"] = len(np.unique(sizes, axis=0))
        out["grey"] = int(seen.grey[good].sum())
        mean = seen.means[good].mean(0)
        square = (seen.means[good] ** 2 + seen.stds[good] ** 2).mean(0)
        out["mean"] = [round(float(v), 4) for v in mean]
        out["std"] = [round(float(v), 4) for v in np.sqrt(np.maximum(square - mean**2, 0))]
    if seen.boxes is not None and len(seen.boxes):
        per = np.bincount(seen.boxes.rows, minlength=len(seen))
        side = seen.boxes.xyxy[:, 2:] - seen.boxes.xyxy[:, :2]
        side = side[np.isfinite(side).all(1)]
        out["boxes"] = {
            "count": len(seen.boxes),
            "per_image": _spread(per),
            "width": _spread(side[:, 0]),
            "height": _spread(side[:, 1]),
        }
    if seen.masks is not None and seen.masks.pixels.any():
        total = max(1, int(seen.masks.pixels.sum()))
        ignored = float((seen.masks.ignored * seen.masks.pixels).sum()) / total
        out["mask"] = {
            "pixels_by_class": [round(float(n / total), 6) for n in seen.masks.total],
            "ignored": round(ignored, 6),
        }
    if seen.flows:
        looks = list(seen.flows.values())
        ratios = [f.ratio for f in looks if f.ratio is not None]
        out["flow"] = {
            "largest": _spread(np.array([f.largest for f in looks])),
            "valid": round(float(np.mean([f.valid for f in looks])), 4),
            # The frames' difference along the flow over that without it.
            "ratio": round(float(np.mean(ratios)), 4) if ratios else None,
        }
    if seen.edges:
        out["edges"] = {
            "share": round(edges.shares(seen), 5),
            "annotators": _spread(np.array([len(e.shares) for e in seen.edges.values()])),
        }
    return out


def _spread(values: np.ndarray[Any, Any]) -> dict[str, float]:
    if not len(values):
        return {}
    low, middle, high = np.percentile(values, (0, 50, 100))
    return {"min": float(low), "median": float(middle), "max": float(high)}
