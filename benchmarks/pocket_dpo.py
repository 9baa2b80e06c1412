"""The quick start's three commands with several seeds, judged on held-out topics.

Run as ``python benchmarks/pocket_dpo.py``. It writes ``benchmarks/results/pocket_dpo.json`` and the picture of README
and landing page, ``book/images/pocket_dpo.png``.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
from machine import provenance

from dpo_core.cli import main
from dpo_core.course.plots import COLORS, use_style
from dpo_core.metrics import History

ROOT = Path(__file__).resolve().parent.parent
SEEDS = (0, 1, 2)
PAIRS = 1800
STEPS = 200
BETA = 1.0
LEARNING_RATE = 8.5e-5


def run(seed: int, folder: Path) -> dict[str, object]:
    """Data, training and evaluation as a user would type them."""
    pairs, output, figures = folder / "pairs.jsonl", folder / "run", folder / "figures.json"
    assert main(["data", "--pairs", str(PAIRS), "--output", str(pairs), "--seed", str(seed)]) == 0
    started = time.perf_counter()
    training = ["train", "--data", str(pairs), "--output", str(output), "--steps", str(STEPS)]
    training += ["--beta", str(BETA), "--lr", str(LEARNING_RATE), "--seed", str(seed), "--precision", "auto"]
    assert main(training) == 0
    seconds = time.perf_counter() - started
    assert main(["evaluate", "--model", str(output), "--seed", str(seed), "--json", str(figures)]) == 0
    history = History.from_jsonl(output / "history.jsonl")
    exam = json.loads(figures.read_text(encoding="utf-8"))
    return {"seed": seed, "train_seconds": round(seconds, 1), "history": history.rows, **exam}


def draw(runs: list[dict], file: Path) -> None:
    """The curves of all seeds, and what they won."""
    use_style()
    figure, (curves, bars) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(3, 2))
    for entry in runs:
        history = History(entry["history"])
        for name in ("chosen", "rejected"):
            label = f"{name} answers" if entry is runs[0] else None
            curves.plot(*history.column(f"rewards/{name}"), color=COLORS[name], label=label, alpha=0.8)
    title = "DPO moves the two kinds of answer apart"
    curves.set(xlabel="optimiser step", ylabel="implicit reward, nats", title=title)
    curves.legend()
    for i, entry in enumerate(runs):
        won = entry["reward_gained"]
        error = [[won["mean"] - won["low"]], [won["high"] - won["mean"]]]
        bars.errorbar(won["mean"], i, xerr=error, fmt="o", color=COLORS["margin"], capsize=5)
    bars.axvline(0.0, color="#999999", linestyle=":")
    bars.set(
        yticks=range(len(runs)),
        yticklabels=[f"seed {entry['seed']}" for entry in runs],
        ylim=(-0.6, len(runs) - 0.4),
        xlabel="reward gained, held-out topics",
        title="What the judge of the world says",
    )
    figure.savefig(file, dpi=160)
    plt.close(figure)


def sentence(record: dict) -> str:
    """What README and landing page say of the result; a test compares."""
    runs, machine = record["runs"], record["machine"]
    gains = ", ".join("{mean:+.2f} [{low:+.2f}, {high:+.2f}]".format(**entry["reward_gained"]) for entry in runs)
    rates = ", ".join("{rate:.2f} [{low:.2f}, {high:.2f}]".format(**entry["win_rate"]) for entry in runs)
    kl = ", ".join(f"{entry['kl']:.1f}" for entry in runs)
    before, after = (", ".join(f"{e[name]['parsed']:.2f}" for e in runs) for name in ("reference", "policy"))
    seconds = max(entry["train_seconds"] for entry in runs)
    return (
        f"Measured with three seeds: {record['steps']} steps on {record['pairs']:,} pairs, at most {seconds:.0f} s on"
        f" {machine['cores']} cores of an {machine['processor']}. On {runs[0]['questions']} questions about topics that"
        f" occur in no pair, the judge's reward of the answers rose by {gains}; win rates against the start are {rates}"
        f" (95 % intervals over these questions), at a KL of {kl} nats an answer. The share of well-formed answers went"
        f" from {before} to {after}."
    )


if __name__ == "__main__":
    found = []
    for number in SEEDS:
        with tempfile.TemporaryDirectory() as temporary:
            found.append(run(number, Path(temporary)))
    record = provenance() | {
        "pairs": PAIRS,
        "steps": STEPS,
        "beta": BETA,
        "learning_rate": LEARNING_RATE,
        "runs": found,
    }
    result = ROOT / "benchmarks" / "results" / "pocket_dpo.json"
    result.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(found, ROOT / "book" / "images" / "pocket_dpo.png")
    print(sentence(record))
