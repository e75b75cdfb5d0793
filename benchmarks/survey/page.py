"""Write docs/coverage.md from the results of the survey."""

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
INTRODUCTION = """# Surgery on torchvision and timm networks

<!-- written whole by benchmarks/coverage.py -->

Every operation of [surgery](surgery.md) on **{count} networks**: {torchvision} of torchvision {tv} and {timm} of
timm {tm}, from {families} families. The networks listed at the end are too large for the machine and were not run. Each
result is **exact**, or **refused** with a reason; none may be **wrong**.

Method (`python benchmarks/coverage.py`):

- **Networks** have random weights and biases, random norm weights (one in eight negative), and batch norm statistics
  computed on images and perturbed by up to a half, so that errors are visible. Images have the smallest of 64, 96, 128,
  160, 192 and 224 pixels, or the network's own size, that the network accepts and at which its last maps have more than
  one cell.
- **The comparison** is independent of the operation's own verification. Original and result run on {images} random
  images that the operation did not use, in float32 and in float64. Exact means a largest difference of at most
  {f32:.0e} of the largest output in float32 and {f64:.0e} in float64, or ten times the effect of rounding on the
  original if that is larger (in float64: each weight moved by one unit of rounding). For `convolutionalize` the map of
  logits must equal the logits; for `pool_head` the mean of `category_maps` must equal the logits, also for a larger
  image if the network accepts one. A network whose outputs are the same for all images, or are dominated by rounding (a
  tenth of the largest output in float32), is no evidence: it is **undecided** and does not count as exact.
- **Requirements**: `fold` must fold at least one batch norm if one follows a layer; `deepen` must add parameters.
  `factorize` is lossy in general, so it runs on networks whose layers have an eighth of their rank, with a budget of
  half of the multiply-adds: a lossless result exists and must be found.
- **Where an operation applies** is decided by the functions that the forward pass calls, with the same rules for all
  networks:

{rules}

The operations also run where they do not apply, to check that no result is wrong.
"""


def page(networks: Networks, about: Mapping[str, Any]) -> str:
    """Return the text of the page."""
    run = {name: result for name, result in networks.items() if "operations" in result}
    versions = about.get("versions", {})
    text = INTRODUCTION.format(
        count=len(run),
        torchvision=sum(name.startswith("torchvision") for name in run),
        timm=sum(name.startswith("timm") for name in run),
        families=len({result["family"] for result in run.values()}),
        tv=versions.get("torchvision", "?"),
        tm=versions.get("timm", "?"),
        images="three",
        f32=LIMITS["float32"],
        f64=LIMITS["float64"],
        rules="\n".join(f"  - `{operation}`: {rule}." for operation, rule in RULES.items()),
    )
    text += "\n## Totals\n\n" + totals(run)
    text += "\n## Families\n\nExact results, of the networks where the operation applies.\n\n" + families(run)
    text += "\n## Reasons for refusals and undecided results\n\n" + reasons(run)
    text += "\n## `profile`\n\n" + profiled(run)
    text += "\n## Every network\n\n" + details(run)
    return text + "\n" + left_out(networks, about)


def pairs(networks: Networks, operation: str | None = None) -> Iterator[tuple[str, str, bool, Mapping[str, Any]]]:
    """Yield network, operation, whether it applies, and the judgement."""
    for name, result in networks.items():
        for operation_name, judged in result["operations"].items():
            if operation in (None, operation_name):
                yield name, operation_name, result["sense"][operation_name], judged


def totals(networks: Networks) -> str:
    """Return the table of all operations and their sum."""
    text = row("", "applies", "exact", "refused", "undecided", "wrong", "largest difference", "elsewhere") + rule(8)
    groups = [
        *((f"`{operation}`", list(pairs(networks, operation))) for operation in RULES),
        ("**all**", list(pairs(networks))),
    ]
    for name, group in groups:
        applicable = [judged for _, _, applies, judged in group if applies and judged["word"] != "not run"]
        words = Counter(judged["word"] for judged in applicable)
        rest = Counter(judged["word"] for _, _, applies, judged in group if not applies)
        exact = f"{words['exact']} ({words['exact'] / len(applicable):.1%})" if applicable else "0"
        differences = worst([judged for *_, judged in group if judged["word"] == "exact"])
        elsewhere = ", ".join(f"{rest[word]} {word}" for word in sorted(rest)) or "-"
        wrong = words["wrong"] + words["crashed"]
        text += row(name, len(applicable), exact, words["refused"], words["undecided"], wrong, differences, elsewhere)
    skipped = sum(applies and judged["word"] == "not run" for *_, applies, judged in pairs(networks, "factorize"))
    counts = [re.match(r"(\d+) of \d+ batch norms", judged["why"]) for *_, judged in pairs(networks, "fold")]
    folded = sum(int(count[1]) for count in counts if count)
    after_layers = sum(result["norms"][1] for result in networks.values())
    fixed = sum(
        applies and judged["word"] == "refused" and "cannot slide over larger images" in judged["why"]
        for *_, applies, judged in pairs(networks, "convolutionalize")
    )
    lossy = [name for name, _, _, judged in pairs(networks, "factorize") if judged["word"] == "wrong"]
    if lossy:
        text += (
            "\n`factorize` guarantees a budget, not equality: wrong means that it did not find the lossless result, or "
            f"that half of the multiply-adds is too little for one ({', '.join(lossy)}).\n"
        )
    return text + (
        "\nDifferences are the largest of all exact results, in float32 / float64. "
        f"{folded:,} batch norms were folded; {after_layers:,} directly follow a layer. "
        f"`factorize` was not run on {skipped} networks, whose layers take long to decompose. "
        f"`convolutionalize` refuses {fixed} networks that accept one image size only: "
        "their attention or position tables have a fixed length.\n"
    )


def worst(judged: Iterable[Mapping[str, Any]], dtypes: tuple[str, ...] = ("float32", "float64")) -> str:
    """Return the largest differences, float32 / float64; the latter without networks limited by their own rounding."""
    texts = []
    for dtype in dtypes:
        values = [result[dtype] for result in judged if result[dtype] is not None]
        values = [value for value in values if dtype == "float32" or value <= LIMITS["float64"]]
        texts.append(f"{max(values, default=0.0):.0e}")
    return " / ".join(texts)


def families(networks: Networks) -> str:
    """Return the table of families."""
    text = row("family", "networks", *(f"`{operation}`" for operation in RULES), "largest difference") + rule(
        3 + len(RULES)
    )
    for family in sorted({result["family"] for result in networks.values()}):
        members = {name: result for name, result in networks.items() if result["family"] == family}
        cells = []
        for operation in RULES:
            words = [judged["word"] for _, _, applies, judged in pairs(members, operation) if applies]
            count = len(words) - words.count("not run")
            cells.append(f"{words.count('exact')} of {count}" if count else "-")
        exact = [judged for *_, judged in pairs(members) if judged["word"] == "exact"]
        text += row(family, len(members), *cells, worst(exact))
    return text


def reason(why: str) -> str:
    """Return a reason without names and numbers of one network, for counting."""
    why = re.sub(r"^\w+: ", "", why)
    why = re.sub(r"^\w+, on images of [\dx]+, ", "", why)
    why = re.sub(r"`?\b[\w.]+`? \((\w+)\)", r"a \1", why)
    why = re.sub(r"\bin [a-z_]\w*(?:\.\w+)*(?=[ :,.])", "in a module", why)
    why = re.sub(r"\d[\d,]*x\d+(?:x\d+)?", "h×w", why)
    return re.sub(r"\d+(?:[.,]\d+)*", "n", why).replace("|", "/")


def reasons(networks: Networks) -> str:
    """Return the tables of reasons and their counts, where the operation applies and elsewhere."""
    text = ""
    for applicable, title in ((True, "Where the operation applies:"), (False, "Elsewhere:")):
        counted: Counter[tuple[str, str]] = Counter()
        examples: dict[tuple[str, str], str] = {}
        for name, operation, applies, judged in pairs(networks):
            if judged["word"] in ("refused", "wrong", "crashed", "undecided") and applies is applicable:
                key = (operation, reason(judged["why"]))
                counted[key] += 1
                examples.setdefault(key, f"{name}: {judged['why']}".replace("|", "/"))
        text += f"{title}\n\n" + row("networks", "operation", "reason, for one of the networks") + rule(3)
        for (operation, why), count in counted.most_common():
            text += row(count, f"`{operation}`", examples[operation, why])
        text += "\n"
    return text.rstrip("\n") + "\n"


def profiled(networks: Networks) -> str:
    """Compare `mlpconv profile` with torch's FlopCounterMode."""
    profiles = {name: result["profile"] for name, result in networks.items() if "macs" in result["profile"]}
    ratios = {name: counts["macs"] / max(1, counts["torch"]) for name, counts in profiles.items()}
    same = sum(counts["macs"] == counts["torch"] for counts in profiles.values())
    close = {
        name for name, counts in profiles.items() if abs(counts["macs"] - counts["torch"]) <= 0.01 * counts["torch"]
    }
    refused = {name: result["profile"]["why"] for name, result in networks.items() if "why" in result["profile"]}
    text = (
        f"[`profile`](profile.md) supports {len(profiles)} of {len(networks)} networks. Its multiply-adds equal those "
        f"of torch's `FlopCounterMode` for {same} of them, and are within 1 % for {len(close)}. The page on `profile` "
        "compares its receptive fields with gradients.\n"
    )
    others = [f"{name} ({ratio:.3f})" for name, ratio in ratios.items() if name not in close]
    if others:
        text += f"\nThe others, relative to torch's count: {', '.join(others)}.\n"
    return text + "".join(f"\n- {name}: {why}\n" for name, why in refused.items())


def details(networks: Networks) -> str:
    """Return the table of networks."""
    text = (
        "Differences in float32 / float64. In parentheses: exact although the operation does not apply; a dash: "
        "refused there.\n\n"
        + row("network", "pixels", *(f"`{operation}`" for operation in RULES))
        + rule(2 + len(RULES))
    )
    for name, result in sorted(networks.items(), key=lambda item: (item[1]["family"], item[0])):
        cells = [cell(result["sense"][operation], result["operations"].get(operation)) for operation in RULES]
        text += row(name, result["shape"][1], *cells)
    return text


def cell(applies: bool, judged: Mapping[str, Any] | None) -> str:
    """Return the table cell of one network and operation."""
    if judged is None or judged["word"] == "not run":
        return "not run"
    if judged["word"] != "exact":
        return f"**{judged['word']}**" if applies or judged["word"] != "refused" else "-"
    text = f"{judged['float32']:.0e} / {judged['float64']:.0e}".replace("0e+00", "0")
    return text if applies else f"({text})"


def left_out(networks: Networks, about: Mapping[str, Any]) -> str:
    """Return the networks that were not run, and the versions."""
    text = "".join(
        f"Not run: {name} ({result['not run']}).\n\n" for name, result in networks.items() if "not run" in result
    )
    packages = about.get("machine", {}).get("packages", {})
    return (
        text
        + f"Measured {about.get('date', '')} with PyTorch {packages.get('torch', '?').partition('+')[0]}, on a CPU.\n"
    )


def row(*cells: object) -> str:
    """Return a table row."""
    return "| " + " | ".join(map(str, cells)) + " |\n"


def rule(columns: int) -> str:
    """Return the line below the head of a table."""
    return "|" + "---|" * columns + "\n"
