"""The page on the survey: docs/coverage.md, written whole from the results."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from common import RESULTS

from survey.judge import LIMITS
from survey.rules import RULES

__all__ = ["PAGE", "page", "reason"]

PAGE = RESULTS.parents[1] / "docs" / "coverage.md"
Networks = Mapping[str, Mapping[str, Any]]
INTRODUCTION = """# Surgery on other people's networks

<!-- written whole by benchmarks/coverage.py -->

Every operation of [surgery](surgery.md) on **{count} networks**: {torchvision} of torchvision {tv} and {timm} of
timm {tm}, from {families} families; those that are named at the end are too large for the machine, and were not
run. Each result is **exact**, or **refused** with a reason, and none may be **wrong**.

How it is measured, by `python benchmarks/coverage.py`:

- **Networks**: random weights and biases, random weights of norms (one in eight is negative), and statistics of batch
  norms that are those of some images, each wrong by up to a half, so that an error shows. Images have the
  smallest of 64, 96, 128, 160, 192 and 224 pixels, or the network's own size, at which it works and its last maps have
  more than one cell.
- **The judge** is not the operation's own proof. Original and result are run on {images} random images that no
  operation has seen, in float32 and in float64. Exact is a largest difference of at most {f32:.0e} of the largest
  output in float32 and {f64:.0e} in float64, where rounding is far below and an error is as large as ever; or ten
  times what rounding does to the original itself, where that is more (in float64: with each of its numbers moved by one
  rounding). For `convolutionalize` the map of logits must be the logits as well; for `pool_head` the mean of
  `category_maps` must be the logits, also for a larger image where the network takes one. A network whose outputs are
  the same for all images, or are rounding alone (a tenth of the largest output in float32), is no evidence:
  **undecided**, and not counted as exact.
- **What an operation must do** to count: `fold` folds at least one batch norm where one stands behind a layer; `deepen`
  adds parameters. `factorize` is not exact by nature: it is given a network whose layers have an eighth of their rank,
  and half of the multiply-adds to keep. There is an answer that loses nothing, and it must be found.
- **Where an operation makes sense** is looked up in the functions that the forward pass calls, by one rule for all:

{rules}

The operations are run everywhere, also where they make no sense, to see that nothing wrong comes out.
"""


def page(networks: Networks, about: Mapping[str, Any]) -> str:
    """The whole page."""
    run = {name: found for name, found in networks.items() if "operations" in found}
    versions = about.get("versions", {})
    text = INTRODUCTION.format(
        count=len(run),
        torchvision=sum(name.startswith("torchvision") for name in run),
        timm=sum(name.startswith("timm") for name in run),
        families=len({found["family"] for found in run.values()}),
        tv=versions.get("torchvision", "?"),
        tm=versions.get("timm", "?"),
        images="three",
        f32=LIMITS["float32"],
        f64=LIMITS["float64"],
        rules="\n".join(f"  - `{operation}`: {rule}." for operation, rule in RULES.items()),
    )
    text += "\n## In total\n\n" + totals(run)
    text += "\n## Families\n\nExact, of those where the operation makes sense.\n\n" + families(run)
    text += "\n## Reasons for refusals, and for what is undecided\n\n" + reasons(run)
    text += "\n## `profile`\n\n" + profiled(run)
    text += "\n## Every network\n\n" + details(run)
    return text + "\n" + left_out(networks, about)


def pairs(networks: Networks, operation: str | None = None) -> Iterator[tuple[str, str, bool, Mapping[str, Any]]]:
    """Network, operation, whether it makes sense, and the judgement."""
    for name, found in networks.items():
        for each, judged in found["operations"].items():
            if operation in (None, each):
                yield name, each, found["sense"][each], judged


def totals(networks: Networks) -> str:
    """A row for each operation, and their sum."""
    text = row("", "makes sense", "exact", "refused", "undecided", "wrong", "largest difference", "elsewhere") + rule(8)
    every = [
        *((f"`{operation}`", list(pairs(networks, operation))) for operation in RULES),
        ("**all**", list(pairs(networks))),
    ]
    for name, found in every:
        sense = [judged for _, _, sensible, judged in found if sensible and judged["word"] != "not run"]
        words = Counter(judged["word"] for judged in sense)
        other = Counter(judged["word"] for _, _, sensible, judged in found if not sensible)
        exact = f"{words['exact']} ({words['exact'] / len(sense):.1%})" if sense else "0"
        good = [judged for *_, judged in found if judged["word"] == "exact"]
        elsewhere = ", ".join(f"{other[word]} {word}" for word in sorted(other)) or "-"
        bad = words["wrong"] + words["crashed"]
        text += row(name, len(sense), exact, words["refused"], words["undecided"], bad, f"{worst(good)}", elsewhere)
    skipped = sum(sensible and judged["word"] == "not run" for *_, sensible, judged in pairs(networks, "factorize"))
    counts = [re.match(r"(\d+) of \d+ batch norms", judged["why"]) for *_, judged in pairs(networks, "fold")]
    folded = sum(int(found[1]) for found in counts if found)
    beside = sum(found["norms"][1] for found in networks.values())
    lossy = [name for name, _, _, judged in pairs(networks, "factorize") if judged["word"] == "wrong"]
    if lossy:
        text += (
            "\n`factorize` promises a budget and not equality: wrong means there that it did not find the answer "
            f"without loss, or that half of the work is too little for one ({', '.join(lossy)}).\n"
        )
    return text + (
        "\nDifferences are the largest of all exact results, in float32 / float64. "
        f"{folded:,} batch norms were folded; {beside:,} stand directly behind a layer. "
        f"`factorize` was left out for {skipped} networks, whose layers take long to decompose.\n"
    )


def worst(judged: Iterable[Mapping[str, Any]], dtypes: tuple[str, ...] = ("float32", "float64")) -> str:
    """The largest differences, float32 / float64; the second without networks that are judged by their own rounding."""
    said = []
    for dtype in dtypes:
        values = [each[dtype] for each in judged if each[dtype] is not None]
        values = [value for value in values if dtype == "float32" or value <= LIMITS["float64"]]
        said.append(f"{max(values, default=0.0):.0e}")
    return " / ".join(said)


def families(networks: Networks) -> str:
    """A row for each family."""
    text = row("family", "networks", *(f"`{operation}`" for operation in RULES), "largest difference") + rule(
        3 + len(RULES)
    )
    for family in sorted({found["family"] for found in networks.values()}):
        mine = {name: found for name, found in networks.items() if found["family"] == family}
        cells = []
        for operation in RULES:
            sense = [each for _, _, sensible, each in pairs(mine, operation) if sensible and each["word"] != "not run"]
            exact = sum(each["word"] == "exact" for each in sense)
            cells.append(f"{exact} of {len(sense)}" if sense else "-")
        good = [judged for *_, judged in pairs(mine) if judged["word"] == "exact"]
        text += row(family, len(mine), *cells, worst(good))
    return text


def reason(why: str) -> str:
    """A refusal without the names of one network, to be counted."""
    why = re.sub(r"^\w+: ", "", why)
    why = re.sub(r"^\w+, on images of [\dx]+, ", "", why)
    why = re.sub(r"`?\b[\w.]+`? \((\w+)\)", r"a \1", why)
    why = re.sub(r"\bin [a-z_]\w*(?:\.\w+)*(?=[ :,.])", "in a module", why)
    why = re.sub(r"\d[\d,]*x\d+(?:x\d+)?", "h×w", why)
    return re.sub(r"\d+(?:[.,]\d+)*", "n", why).replace("|", "/")


def reasons(networks: Networks) -> str:
    """How often each reason is given, where the operation makes sense and elsewhere."""
    text = ""
    for sensible, title in ((True, "Where the operation makes sense:"), (False, "Elsewhere:")):
        counted: Counter[tuple[str, str]] = Counter()
        examples: dict[tuple[str, str], str] = {}
        for name, operation, sense, judged in pairs(networks):
            if judged["word"] in ("refused", "wrong", "crashed", "undecided") and sense is sensible:
                key = (operation, reason(judged["why"]))
                counted[key] += 1
                examples.setdefault(key, f"{name}: {judged['why']}".replace("|", "/"))
        text += f"{title}\n\n" + row("pairs", "operation", "reason, as it is given for one of them") + rule(3)
        for (operation, why), count in counted.most_common():
            text += row(count, f"`{operation}`", examples[operation, why])
        text += "\n"
    return text.rstrip("\n") + "\n"


def profiled(networks: Networks) -> str:
    """What `mlpconv profile` says of them, beside torch's own counter."""
    followed = {name: found["profile"] for name, found in networks.items() if "macs" in found["profile"]}
    same = [name for name, each in followed.items() if each["macs"] == each["torch"]]
    close = [name for name, each in followed.items() if abs(each["macs"] - each["torch"]) <= 0.01 * each["torch"]]
    refused = {name: found["profile"]["why"] for name, found in networks.items() if "why" in found["profile"]}
    text = (
        f"[`profile`](profile.md) follows {len(followed)} of {len(networks)} networks. Its multiply-adds are those of "
        f"torch's own `FlopCounterMode` for {len(same)} of them, and within 1 % for {len(close)}. Its receptive fields "
        "are compared with gradients on its own page.\n"
    )
    far = {name: each for name, each in followed.items() if name not in close}
    apart = [f"{name} ({each['macs'] / max(1, each['torch']):.3f})" for name, each in far.items()]
    if apart:
        text += f"\nFurther apart, as a part of torch's: {', '.join(apart)}.\n"
    return text + "".join(f"\n- {name}: {why}\n" for name, why in refused.items())


def details(networks: Networks) -> str:
    """A row for each network."""
    text = (
        "Differences in float32 / float64. In brackets: exact where the rule sees no sense. A dash: refused there.\n\n"
        + row("network", "pixels", *(f"`{operation}`" for operation in RULES))
        + rule(2 + len(RULES))
    )
    for name, found in sorted(networks.items(), key=lambda item: (item[1]["family"], item[0])):
        cells = [cell(found["sense"][each], found["operations"].get(each)) for each in RULES]
        text += row(name, found["shape"][1], *cells)
    return text


def cell(sense: bool, judged: Mapping[str, Any] | None) -> str:
    """One pair in the table."""
    if judged is None or judged["word"] == "not run":
        return "not run"
    if judged["word"] != "exact":
        return f"**{judged['word']}**" if sense or judged["word"] != "refused" else "-"
    said = f"{judged['float32']:.0e} / {judged['float64']:.0e}".replace("0e+00", "0")
    return said if sense else f"({said})"


def left_out(networks: Networks, about: Mapping[str, Any]) -> str:
    """The networks that were not run, and the versions."""
    text = "".join(
        f"Not run: {name} ({found['not run']}).\n\n" for name, found in networks.items() if "not run" in found
    )
    packages = about.get("machine", {}).get("packages", {})
    return (
        text
        + f"Measured {about.get('date', '')} with PyTorch {packages.get('torch', '?').partition('+')[0]}, on a CPU.\n"
    )


def row(*cells: object) -> str:
    """A row of a table."""
    return "| " + " | ".join(str(each) for each in cells) + " |\n"


def rule(columns: int) -> str:
    """The line under the head of a table."""
    return "|" + "---|" * columns + "\n"
