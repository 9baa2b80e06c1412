"""The book's page of measurements, from the files under ``benchmarks/results`` and a record of the course.

Run as ``python benchmarks/page.py`` after a benchmark. It writes ``book/benchmarks.md`` and its pictures; a test
compares the page with what this script would write.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import matplotlib.pyplot as plt

from dpo_core.course.plots import COLORS, use_style
from dpo_core.course.records import read_record

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
NAMES = {"long_prompts": "Long prompts", "short_pairs": "Short pairs"}
BEST = "TRL with its best options here"
VARIANTS = {  # as engine.py calls them
    "textbook": "Textbook loop, float32",
    "TRL default": "TRL with its defaults",
    "TRL default, float32": "TRL with its defaults, in float32",
    "TRL best": BEST,
    "dpo_core": "`dpo_core`",
}


def load(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def ratio(record: dict, key: str, other: str) -> tuple[float, float]:
    """Least and greatest ratio of ours to another variant over the rounds."""
    ours, theirs = record["variants"]["dpo_core"][key], record["variants"][other][key]
    ratios = [mine / yours for mine, yours in zip(ours, theirs)]
    return min(ratios), max(ratios)


def span(low: float, high: float) -> str:
    return f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f}"


def machine(record: dict) -> str:
    on, versions = record["machine"], record["versions"]
    known = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{on['gpu'] or str(on['torch threads']) + ' threads of an ' + on['processor']}; {known}"


def share_of_memory(record: dict) -> float:
    """Our peak memory over that of TRL's defaults."""
    ours, theirs = (max(record["variants"][name]["peak_mb"]) for name in ("dpo_core", record["base"]))
    return ours / theirs


def sentence() -> str:
    """The comparison in two sentences, for the README."""
    told = []
    for name in NAMES:
        record = load(f"engine_{name}")
        default, best = (
            span(*ratio(record, "pairs_per_second_with_reference", other)) for other in (record["base"], "TRL best")
        )
        told.append(
            f"{default} times as fast as {VARIANTS[record['base']]} and {best} times as fast as {BEST}, in"
            f" {share_of_memory(record):.0%} of the memory that TRL's defaults take"
        )
    return (
        f"At GPT-2's size (124 million parameters, random weights), on {machine(record).split(';')[0]}, an epoch of"
        f" `dpo_core` on pairs with long prompts, its reference pass included, is {told[0]}; on short pairs it is"
        f" {told[1]}. In float32 its losses are TRL's to"
        f" {same_numbers()['apart']['TRL best']['loss_relative']:.0e} of their value."
    )


def same_numbers() -> dict:
    """The comparison in float32, of the first record that has one."""
    return next(found for name in NAMES if (found := load(f"engine_{name}")["same_numbers"]))


def speed(record: dict) -> list[str]:
    """Table and sentences of one comparison."""
    lines = [
        "| | pairs/s on the steps | pairs/s with the reference pass | peak memory, MB | share of the matmul rate |",
        "|---|---|---|---|---|",
    ]
    for name, entry in record["variants"].items():
        rates, whole = (statistics.mean(entry[key]) for key in ("pairs_per_second", "pairs_per_second_with_reference"))
        share = statistics.mean(entry["share_of_matmul_rate"])
        lines.append(f"| {VARIANTS[name]} | {rates:.3g} | {whole:.3g} | {max(entry['peak_mb']):,.0f} | {share:.1%} |")
    base = record["base"]
    default, best = (ratio(record, "pairs_per_second", name) for name in (base, "TRL best"))
    epoch, epoch_best = (ratio(record, "pairs_per_second_with_reference", name) for name in (base, "TRL best"))
    return [
        *lines,
        "",
        f"Over one epoch, the reference counted on both sides, `dpo_core` is **{span(*epoch)} times as fast as"
        f" {VARIANTS[base]}** and {span(*epoch_best)} times as fast as TRL's best. On the steps alone, where ours have"
        f" their reference already and TRL's defaults compute it in each, {span(*default)} and {span(*best)} times. A"
        f" range is over the rounds. Its peak memory is {share_of_memory(record):.0%} of that of {VARIANTS[base]}.",
        *emulated(record),
        "",
        *tried(record),
        "",
        *limit(record),
    ]


def emulated(record: dict) -> list[str]:
    """Why TRL's defaults are not the measure, where they are not."""
    entry = record["variants"].get("TRL default")
    rates = record["matmul_gflops"]
    if entry is None or record["base"] == "TRL default" or rates["bfloat16"] >= rates["float32"]:
        return []
    slower = ratio(record, "pairs_per_second", "TRL default")
    steps = "one step, without a warm-up" if entry["steps"] == 1 else f"{entry['steps']} steps"
    return [
        "",
        "TRL's defaults include bf16, which this processor has no units for and emulates:"
        f" {rates['bfloat16']:.0f} instead of {rates['float32']:.0f} GFLOP/s in"
        f" large products. As it comes TRL is therefore {span(*slower)} times slower than `dpo_core` here (measured on"
        f" {steps}). That says little about either, so the comparison is with TRL's defaults in float32.",
    ]


def tried(record: dict) -> list[str]:
    """How TRL's best options were found."""
    rates = "; ".join(f"{choice}: {rate:.3g}" for choice, rate in record["trl_trials"].items())
    return [f"TRL's precision and attention, in pairs/s of one pass without recomputation and live reference: {rates}."]


def limit(record: dict) -> list[str]:
    """How far our step is from what the machine allows, and what takes the rest."""
    rate = statistics.mean(record["variants"]["dpo_core"]["pairs_per_second"])
    floor = record["least_gflop_per_pair"] / max(record["matmul_gflops"].values())
    shares = sorted(record["profile"].items(), key=lambda item: -item[1])
    listed = ", ".join(f"{kind} {share:.0%}" for kind, share in shares if share >= 0.005)
    return [
        f"At the rate of large products a pair would take {floor:.2f} s at least; `dpo_core` takes {1 / rate:.2f} s."
        f" Where its time goes, by torch's profiler: {listed}.",
    ]


def scaling_figure(record: dict, file: Path) -> None:
    use_style()
    sweeps = record["sweeps"]
    figure, axes = plt.subplots(2, len(sweeps), figsize=(14, 5.4), sharex="col")
    for column, (name, points) in enumerate(sweeps.items()):
        x = [point["x"] for point in points]
        for ax, key, color, factor in zip(
            axes[:, column], ("seconds", "peak_mb"), (COLORS["policy"], COLORS["chosen"]), (1, 1 / 1024)
        ):
            values = [point[key] * factor for point in points]
            ax.plot(x, values, "o-", color=color)
            ax.set_ylim(0, 1.1 * max(values))
        axes[1, column].set_xlabel(name)
    axes[0, 0].set_ylabel("seconds a step")
    axes[1, 0].set_ylabel("peak memory, GiB")
    figure.suptitle(
        "A step costs more with every token, pair and parameter, and less, the larger the prompt's share",
        x=0.01,
        ha="left",
    )
    figure.savefig(file, dpi=150)
    plt.close(figure)


def endurance(held: dict[str, list[float]]) -> list[str]:
    """Whether memory grows over many steps."""
    first, second, *_, last = zip(held["steps"], held["resident_mb"])
    told = ", ".join(f"{mb:,.0f} MB after {steps:,} steps" for steps, mb in (first, second, last))
    verdict = "grows with" if last[1] > 1.02 * second[1] else "does not grow with"
    return [
        f"A small model was trained on pairs of ever new lengths. The process held {told}: memory {verdict} the number"
        " of lengths seen."
    ]


def losses_table(record: dict) -> list[str]:
    lines = ["| loss | in TRL | largest difference, loss and gradient |", "|---|---|---|"]
    for entry in record["losses"]:
        apart = max(value for key, value in entry["max_difference"].items() if "rewards" not in key)
        lines.append(f"| {entry['loss']} | {entry['trl']} | {apart:.0e} |")
    return lines


def text() -> str:
    """The page."""
    engines = {name: load(f"engine_{name}") for name in NAMES}
    scaling, losses = load("scaling"), read_record("trl_losses")
    parts = [
        "# Measurements",
        "",
        "<!-- Written by benchmarks/page.py from benchmarks/results; do not edit. -->",
        "",
        "Every figure on this page comes from a file in `benchmarks/results`, and those about losses from"
        " `dpo_core/course/records/trl_losses.json`. Each file names the machine, the versions and the command that"
        " made it. The pairs that the commands name as `../shared/data/...` lie in `benchmarks/data`.",
        "",
        "## The step beside TRL and the textbook",
        "",
        "The model has the shape of GPT-2 (124 million parameters) with random weights. All variants train from the"
        " same weights on the same token ids in the same order, with the same optimiser, each in a process of its own,"
        " and they take turns. TRL's defaults are bf16, recomputation of activations and a live reference; its *best"
        " options* are no recomputation, a precomputed reference, and the fastest of two precisions and two kinds of"
        " attention, which were tried first. `dpo_core` runs with `--precision auto`. The short pairs were"
        " measured with torch's large memory pages, which importing `dpo_core` turns on for every variant, the long"
        " prompts before it did so. A batch counts with its fastest pass after a warm-up."
        " *Share of the matmul rate* is the arithmetic that these pairs need at least, per second, over what this"
        " machine does in large matrix products in its faster precision, also in the rows of float32.",
        "",
    ]
    for name, record in engines.items():
        per_pair = record["least_gflop_per_pair"]
        rates = record["matmul_gflops"]
        parts += [
            f"### {NAMES[name]}",
            "",
            f"{record['pairs']} pairs in batches of {record['batch_size']}; a pair needs at least {per_pair:.0f} GFLOP."
            f" Large products: {rates['float32']:.0f} GFLOP/s in float32, {rates['bfloat16']:.0f} in bf16."
            f" Measured on {machine(record)}.",
            "",
            *speed(record),
            "",
            f"`{record['command']}`",
            "",
        ]
    same = same_numbers()
    parts += [
        "### The same numbers",
        "",
        f"In float32, over {same['steps']} steps from the same weights and batches, our losses differ from the"
        f" textbook's by at most {same['apart']['textbook']['loss_relative']:.0e} of their value and from TRL's by"
        f" {same['apart']['TRL best']['loss_relative']:.0e}; mean reward margins differ by at most"
        f" {max(entry['margin_absolute'] for entry in same['apart'].values()):.0e}.",
        "",
        "## How a step grows",
        "",
        "```{figure} images/scaling.png",
        ":alt: Five columns of two panels each: seconds and peak memory of a step against tokens of the prompt, pairs"
        " in a batch, the prompt's share, tokens in the vocabulary, and parameters.",
        "Time and memory of one step of `dpo_core`. Unless an axis says otherwise: 124 million parameters, two pairs"
        " with a prompt of 124 tokens and answers of 42 and 52.",
        "```",
        "",
        *endurance(scaling["endurance"]),
        "",
        f"`{scaling['command']}`, on {machine(scaling)}.",
        "",
        "## The losses beside TRL's",
        "",
        f"{losses['pairs']} random pairs at beta {', '.join(map(str, losses['betas']))}, in {losses['dtype']}, TRL's"
        " own code against ours.",
        "",
        *losses_table(losses),
        "",
        "`dpop` is not in TRL.",
        "",
        f"`{losses['command']}`, on {machine(losses)}.",
        "",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    (ROOT / "book" / "benchmarks.md").write_text(text(), encoding="utf-8")
    scaling_figure(load("scaling"), ROOT / "book" / "images" / "scaling.png")
