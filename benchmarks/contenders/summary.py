"""Statistics over rounds: medians and quartiles of speed, share of the peak and ratio to the plain port."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean, median, quantiles
from typing import Any

from contenders import CONTENDERS, PAPERS, PLAIN, Settings

__all__ = ["FORMATS", "Round", "flop", "spread", "summarise", "table", "work_of"]

Round = dict[str, dict[str, Any]]  # contender -> its answer, with the peaks before and after it
FORMATS = ("fp32", "bf16")
EPOCH = 50_000  # images; each bears its share of the work at the end of an epoch
CONVS = ((5, (3, 192, 160, 96)), (5, (96, 192, 192, 192)), (3, (192, 192, 192, 10)))


def flop(work: str, side: int = 32) -> float:
    """Return the operations per image, two per multiply-add; training takes three times as many, less the first layer's
    input gradient."""
    forward, first = 0, 0
    for kernel, widths in CONVS:
        for index, (before, after) in enumerate(pairwise(widths)):
            area = kernel**2 if index == 0 else 1
            forward += side**2 * area * before * after
            first = first or forward
        side = -((3 - side) // 2) + 1
    return 2.0 * (3 * forward - first if work == "training" else forward)


def spread(samples: list[float]) -> dict[str, Any]:
    """Return the median and the quartiles of the samples, and the samples."""
    low, _, high = quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else samples * 3
    return {"median": median(samples), "q1": low, "q3": high, "samples": samples}


def work_of(work: str, settings: Settings) -> float:
    """Return the operations per image of the network of the settings."""
    if settings.network == PAPERS:
        return flop(work, settings.side)
    import mlpconv

    shape = (3, settings.side, settings.side)
    return 2.0 * mlpconv.analysis.profile(mlpconv.load(settings.network).model, shape).totals.macs


def summarise(rounds: list[Round], work: str, settings: Settings) -> dict[str, Any]:
    """Return the peak of each dtype and the statistics of each contender, or {"unavailable": reason}."""
    peaks = [peak for found in rounds for answer in found.values() for peak in answer["peaks"]]
    result: dict[str, Any] = {"peak": {name: spread([peak[name] for peak in peaks]) for name in FORMATS}}
    result["contenders"] = {name: _contender(name, rounds, work_of(work, settings)) for name in rounds[0]}
    return result


def _contender(name: str, rounds: list[Round], work: float) -> dict[str, Any]:
    contender, answers = CONTENDERS[name], [found[name] for found in rounds]
    if missing := next((answer["unavailable"] for answer in answers if answer.get("unavailable")), None):
        return {"label": contender.label, "unavailable": missing}
    speeds = [_speed(answer) for answer in answers]
    found: dict[str, Any] = {"label": contender.label, "images_per_second": spread(speeds)}
    found["share_of_peak"] = spread(
        [speed * work / max(fmean(peak[kind] for peak in answer["peaks"]) for kind in FORMATS)
         for speed, answer in zip(speeds, answers, strict=True)]
    )  # fmt: skip
    plain = [each.get(PLAIN[contender.work], {}) for each in rounds]
    if all("images" in each for each in plain):
        found["times_plain"] = spread([speed / _speed(each) for speed, each in zip(speeds, plain, strict=True)])
    last = answers[-1]
    found["input_share"] = median(answer["input_share"] for answer in answers)
    found["faults_per_image"] = median(answer["faults"] / answer["images"] for answer in answers)
    found |= {key: last[key] for key in ("epoch_end", "peak_bytes", "threads", "difference", "notes") if key in last}
    return found


def _speed(answer: dict[str, Any]) -> float:
    """Return images per second; each image bears its share of the time that the end of an epoch takes."""
    return float(answer["images"] / (answer["seconds"] + answer["epoch_end"] * answer["images"] / EPOCH))


def table(result: dict[str, Any]) -> str:
    """Return a summary as a table for the terminal."""
    peak = ", ".join(f"{name} {rate['median'] / 1e9:.0f}" for name, rate in result["peak"].items())
    lines = [_line(name, row) for name, row in result["contenders"].items()]
    return "\n".join([f"matrix product, GFLOP/s: {peak}", *lines])


def _line(name: str, found: dict[str, Any]) -> str:
    if "unavailable" in found:
        return f"{name:16}{found['unavailable']}"
    speed, share = found["images_per_second"], found["share_of_peak"]
    parts = [
        f"{name:16}{speed['median']:7.1f} images/s ({speed['q1']:.1f}-{speed['q3']:.1f})",
        f"{share['median']:6.1%} of the peak ({share['q1']:.1%}-{share['q3']:.1%})",
    ]
    if "times_plain" in found:
        parts.append(f"{found['times_plain']['median']:5.2f} x plain")
    if found["input_share"]:
        parts.append(f"input {found['input_share']:.1%}")
    return "  ".join([*parts, f"{found['faults_per_image']:.0f} faults/image", f"{found['peak_bytes'] / 1e9:.1f} GB"])
