"""The widgets without a front end: their logic, the HTML they leave, and their modules' arithmetic against dpo_core."""

import json
import math
import re
import shutil
import subprocess
from importlib import resources
from types import SimpleNamespace

import pytest
import torch

from dpo_core.course.plots import COLORS
from dpo_core.course.widgets import dashboard
from dpo_core.course.widgets.dashboard import Dashboard, live_view
from dpo_core.course.widgets.embed import embed
from dpo_core.course.widgets.explorers import BetaExplorer, LossExplorer
from dpo_core.course.widgets.family_explorer import FAMILY, SETTINGS, FamilyExplorer
from dpo_core.course.widgets.frontier_explorer import FrontierExplorer, FrontierPoint
from dpo_core.course.widgets.token_rewards import AnswerRewards, TokenRewards, token_rewards
from dpo_core.data import collate, encode_pair
from dpo_core.errors import InputError
from dpo_core.formats.pairs import PreferencePair
from dpo_core.logprobs import pair_logps
from dpo_core.losses import dpo_loss
from dpo_core.methods.family import LOSSES
from dpo_core.metrics import History
from dpo_core.model import GPT
from dpo_core.study.tabular import TabularWorld, random_world

FOLDER = resources.files("dpo_core.course.widgets")
LIVE = [
    LossExplorer(h=10),
    BetaExplorer(),
    FamilyExplorer("functions of both answers", h=-7.5, both=-10),
    FrontierExplorer([FrontierPoint(0.1, 5, 0.02, 0.1, -0.1, 0.3)], beta=0.1, step=5),
    TokenRewards("Why?", [AnswerRewards("chosen", ["Be", "cause"], [0.2, -0.1])], beta=0.1),
]


def source(name):
    return (FOLDER / name).read_text("utf-8")


def state(html):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)[1])


# The explorers


def test_the_loss_explorer_starts_where_dpo_starts():
    assert LossExplorer().values() == {"margin": 0.0, "loss": round(math.log(2), 4), "weight": 0.5}


def test_smoothing_asks_for_a_finite_margin():
    margin = math.log(0.9 / 0.1)  # where the smoothed loss is lowest
    assert LossExplorer(h=margin / 0.5, beta=0.5, smoothing=0.1).values()["weight"] == pytest.approx(0, abs=1e-4)


def test_the_beta_explorer_knows_its_ends():
    world = random_world(prompts=1, answers=4)
    high, low = BetaExplorer(world, beta=30).values(), BetaExplorer(world, beta=0.01).values()
    assert high["kl"][0] < 0.01 and low["reward"][0] == pytest.approx(world.rewards.max().item(), abs=1e-3)
    assert low["kl"][0] == pytest.approx(-world.reference[0, world.rewards[0].argmax()].item(), abs=1e-3)


def test_what_the_sliders_cannot_reach_is_refused():
    with pytest.raises(InputError, match="beta is 100; the slider goes from"):
        BetaExplorer(beta=100)
    with pytest.raises(InputError, match=r"no loss 'ipo'.*cdpo, robust, hinge"):
        LossExplorer(loss="ipo")
    with pytest.raises(InputError, match=r"no group 'all'.*means over tokens"):
        FamilyExplorer("all")


def test_a_frontier_with_holes_is_refused():
    near, far = FrontierPoint(0.1, 5, 0.02, 0.1, -0.1, 0.3), FrontierPoint(0.3, 15, 0.1, 0.2, 0.0, 0.4)
    assert FrontierExplorer([near], beta=0.1, step=0).values() == {"kl": 0.0, "gain": 0.0, "low": 0.0, "high": 0.0}
    with pytest.raises(InputError, match="every beta must be measured at every step"):
        FrontierExplorer([near, far], beta=0.1, step=5)
    with pytest.raises(InputError, match="one of each beta and step"):
        FrontierExplorer([near, near], beta=0.1, step=5)
    with pytest.raises(InputError, match=r"no point of beta 0\.2 and step 5"):
        FrontierExplorer([near], beta=0.2, step=5)


# Token rewards


@pytest.fixture
def models(tiny_model):
    moved = GPT(tiny_model.config).eval()
    moved.load_state_dict(tiny_model.state_dict())
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return moved, tiny_model


def test_the_tokens_rewards_add_up_to_the_rewards_of_the_loss(models, encoding):
    pair = PreferencePair("Why?", "Because of it.", "No.")
    batch = collate([encode_pair(encoding, pair)])
    with torch.no_grad():
        (policy, reference) = (pair_logps(model, batch) for model in models)
    out = dpo_loss(*policy, *reference, beta=0.5)
    chosen, rejected = token_rewards(*models, encoding, pair, beta=0.5).answers
    assert sum(chosen.rewards) == pytest.approx(out.chosen_rewards.item(), abs=2e-3)
    assert sum(rejected.rewards) == pytest.approx(out.rejected_rewards.item(), abs=2e-3)
    assert abs(sum(chosen.rewards)) > 0.05 and abs(sum(chosen.rewards) - sum(rejected.rewards)) > 0.05
    assert len(chosen.tokens) == len(chosen.rewards) == len("Because of it.") + 1


def test_each_token_has_its_own_reward(models, encoding):
    pair = PreferencePair("Why?", "ab", "c")
    shown = token_rewards(*models, encoding, pair, beta=2.0).answers[0]
    ids = torch.tensor([encode_pair(encoding, pair).prompt + encode_pair(encoding, pair).chosen])
    with torch.no_grad():
        logps = [model(ids).log_softmax(-1)[0] for model in models]
    at = ids.shape[1] - 2  # the logits before the end of text
    assert shown.rewards[-1] == pytest.approx(2.0 * (logps[0] - logps[1])[at, encoding.eot_token].item(), abs=1e-3)
    assert shown.tokens == ["a", "b", " ⟨end⟩"]


def test_bytes_that_are_no_character_are_shown(tiny_model, encoding):
    shown = token_rewards(tiny_model, tiny_model, encoding, PreferencePair("?", "é", "x"), beta=0.1)
    assert shown.answers[0].tokens == ["\\xc3", "\\xa9", " ⟨end⟩"]
    assert repr(shown) == "TokenRewards: chosen +0.00 in 3 tokens, rejected +0.00 in 2 tokens"


# HTML


@pytest.mark.parametrize("widget", LIVE, ids=lambda widget: type(widget).__name__)
def test_the_html_stands_alone(widget):
    html = widget._repr_html_()
    assert html.count("<script") == html.count("</script>") == 2
    assert "import " not in html and "export function render" in html
    assert re.findall(r"https?://[^\"]*", html) == ["http://www.w3.org/2000/svg"]  # a name, not an address
    assert html == widget._repr_html_()  # the same each time, so that a notebook's output can be compared


def test_text_stays_text():
    nasty = '</script><img src=x onerror="alert(1)">'
    shown = TokenRewards(nasty, [AnswerRewards(nasty, [nasty], [1.0])], beta=0.1)
    html = shown._repr_html_()
    assert nasty not in html and "<img" not in html
    assert state(html)["answers"][0] == {"name": nasty, "tokens": [nasty], "rewards": [1.0]}
    for name in (
        "kit.js",
        "loss_explorer.js",
        "beta_explorer.js",
        "family_explorer.js",
        "frontier_explorer.js",
        "token_rewards.js",
    ):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", source(name))


def test_what_json_cannot_hold_is_not_written():
    with pytest.raises(ValueError, match="JSON"):
        embed("loss_explorer", {"h": math.nan}, "")


def test_colours_are_those_of_the_figures():
    css = source("widgets.css")
    for name in ("chosen", "rejected", "margin", "policy", "reference"):
        assert f"--{name}: {COLORS[name]};" in css
    for name, color in (("up", "chosen"), ("down", "rejected")):
        r, g, b = (int(COLORS[color][i : i + 2], 16) for i in (1, 3, 5))
        assert f"--{name}: {r}, {g}, {b};" in css


def test_text_on_the_strongest_tint_can_be_read():
    css, strength = source("widgets.css"), float(re.search(r"STRENGTH = ([\d.]+)", source("token_rewards.js"))[1])
    themes = zip(re.findall(r"--card: (#\w+)", css), re.findall(r"--ink: (#\w+)", css))
    tints = [tuple(map(int, values)) for values in re.findall(r"--(?:up|down): (\d+), (\d+), (\d+);", css)]
    ratios = [
        contrast(rgb(ink), [strength * t + (1 - strength) * c for t, c in zip(tint, rgb(card))])
        for card, ink in themes
        for tint in tints
    ]
    assert len(ratios) == 4 and min(ratios) > 4.5


def rgb(color):
    digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
    return [int(digits[i : i + 2], 16) for i in (0, 2, 4)]


def contrast(*colors):
    """WCAG 2.2: of two sRGB colours, 0 to 255."""

    def luminance(color):
        parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts))

    dark, light = sorted(map(luminance, colors))
    return (light + 0.05) / (dark + 0.05)


# The modules' arithmetic


def node(script):
    """What a module script prints as JSON."""
    if not shutil.which("node"):
        pytest.skip("no node on this machine, which runs the widgets' arithmetic")
    with resources.as_file(FOLDER) as folder:
        script = script.replace("./", f"{folder.as_uri()}/")
        done = subprocess.run(
            ["node", "--no-warnings", "--input-type=module", "--eval", script],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


def test_the_loss_of_the_page_is_that_of_dpo_core():
    cases = [
        {"loss": loss, "h": h, "beta": beta, "smoothing": smoothing}
        for loss in ("cdpo", "robust", "hinge")
        for h in (-30, -2.5, 0, 7, 30)
        for beta in (0.02, 0.1, 1.0)
        for smoothing in (0.0, 0.1, 0.45)
        if not (loss == "hinge" and beta * h == 1)
    ]
    got = node(f"""
        import {{ valuesAt }} from "./loss_explorer.js";
        const cases = {json.dumps(cases)};
        console.log(JSON.stringify(cases.map((c) => valuesAt(c.loss, c.h, c.beta, c.smoothing))));
    """)
    for case, values in zip(cases, got, strict=True):
        expected = LossExplorer(**case | {"smoothing": case["smoothing"] if case["loss"] != "hinge" else 0.0}).values()
        assert values == pytest.approx(expected, abs=1e-4), case


def test_the_family_of_the_page_is_that_of_dpo_core():
    assert {LOSSES[name] for name in SETTINGS} == set(LOSSES.values())
    cases = [(name, h, both) for name in SETTINGS for h in (-60, -7.5, 0, 2.5, 59) for both in (-20.0, 0.25, 10.0)]
    got = node(f"""
        import {{ valuesAt }} from "./family_explorer.js";
        const [cases, {{ groups, pair }}] = [{json.dumps(cases)}, {json.dumps(state(FamilyExplorer()._repr_html_()))}];
        const losses = Object.assign({{}}, ...Object.values(groups).map((group) => group.losses));
        const all = cases.map(([name, h, both]) => valuesAt(name, h, both, {{ ...pair, ...losses[name] }}));
        console.log(JSON.stringify(all));
    """)
    groups = {name: group for group, losses in FAMILY.items() for name in losses}
    for (name, h, both), values in zip(cases, got, strict=True):
        assert values == pytest.approx(FamilyExplorer(groups[name], h, both).values()[name], abs=6e-5), (name, h, both)


def test_the_optimum_of_the_page_is_that_of_dpo_core():
    world = random_world(prompts=3, answers=6)
    betas = (0.01, 0.1, 1.0, 30.0)
    tables = [{"reference": p, "rewards": r} for p, r in zip(world.reference.exp().tolist(), world.rewards.tolist())]
    got = node(f"""
        import {{ optimumAt }} from "./beta_explorer.js";
        const [tables, betas] = [{json.dumps(tables)}, {json.dumps(betas)}];
        console.log(JSON.stringify(betas.map((b) => tables.map((t) => optimumAt(b, t.reference, t.rewards)))));
    """)
    for beta, rows in zip(betas, got, strict=True):
        values = BetaExplorer(world, beta).values()
        assert [row["kl"] for row in rows] == pytest.approx(values["kl"], abs=1e-3)
        assert [row["reward"] for row in rows] == pytest.approx(values["reward"], abs=1e-3)
        assert all(sum(row["policy"]) == pytest.approx(1) for row in rows)


def test_an_answer_that_the_reference_never_gives_stays_at_zero():
    certain = TabularWorld(("?",), (("a", "b"),), torch.tensor([[0.0, -torch.inf]]), torch.tensor([[0.0, 9.0]]))
    (row,) = node("""
        import { optimumAt } from "./beta_explorer.js";
        console.log(JSON.stringify([optimumAt(0.5, [1, 0], [0, 9])]));
    """)
    assert BetaExplorer(certain, 0.5).values() == {"kl": [0.0], "reward": [0.0]}
    assert row == {"policy": [1, 0], "kl": 0, "reward": 0}


def test_numbers_are_written_for_readers():
    words = node("""
        import { fixed, signed, ticks } from "./kit.js";
        const texts = [fixed(-0.001), fixed(-1.5, 1), signed(0.001), signed(2)];
        console.log(JSON.stringify([...texts, ticks([-30, 30]), ticks([0, 1])]));
    """)
    assert words == ["0.00", "−1.5", "0.00", "+2.00", [-20, 0, 20], [0, 0.5, 1]]


def test_tokens_are_tinted_by_sign_and_size():
    tints = node("""
        import { tint, total } from "./token_rewards.js";
        console.log(JSON.stringify([tint(1, 2), tint(-2, 2), tint(0, 0), total([0.5, -0.2])]));
    """)
    assert tints[:3] == ["rgba(var(--up), 0.275)", "rgba(var(--down), 0.550)", "rgba(var(--up), 0.000)"]
    assert tints[3] == pytest.approx(0.3)


# The dashboard


class Place:
    """Stands for a cell's output."""

    def __init__(self, first):
        self.shown = [first]

    def update(self, view):
        self.shown.append(view)


@pytest.fixture
def place(monkeypatch):
    """The outputs that were displayed, as in a notebook."""
    places = []

    def display(view, display_id):
        places.append(Place(view))
        return places[-1]

    monkeypatch.setattr(dashboard, "get_ipython", lambda: object())
    monkeypatch.setattr(dashboard, "display", display)
    return places


def rows(count):
    return [{"step": i, "loss": 0.7 - 0.01 * i, "rewards/margins": 0.1 * i} for i in range(count)]


def test_it_shows_at_most_two_pictures_a_second_and_ends_as_a_figure(place):
    now = 0.0
    with Dashboard(steps=40, clock=lambda: now) as live:
        for i in range(1, 41):
            live(SimpleNamespace(history=History(rows(i))), i, {})
            now += 0.125
    *views, figure = place[0].shown
    assert len(views) == 1 + 10  # the empty frame, then one each half second of the five
    assert "step 36 of 40" in views[-1].data
    line = figure.axes[0].get_lines()[-1]
    assert list(line.get_xdata()) == list(range(40)) and line.get_ydata()[-1] == pytest.approx(0.31)


def test_it_ends_as_a_figure_even_if_the_run_breaks_off(place):
    with pytest.raises(KeyboardInterrupt), Dashboard(steps=9) as live:
        live(SimpleNamespace(history=History(rows(3))), 3, {})
        raise KeyboardInterrupt
    assert len(place[0].shown[-1].axes) == 4


def test_a_run_without_a_row_leaves_no_figure(place):
    with Dashboard(steps=9):
        pass
    assert len(place[0].shown) == 1


def test_outside_a_notebook_it_is_silent(capsys):
    with Dashboard(steps=9) as live:
        live(SimpleNamespace(history=History(rows(2))), 2, {})
    assert capsys.readouterr().out == ""


def test_the_live_view_draws_what_there_is():
    history = History([*rows(3), {"step": 3, "loss": 0.5, "eval_loss": 0.6, "rewards/margins": 0.4}])
    view = live_view(history, steps=10)
    assert "step 3 of 10: loss 0.5000, margin 0.4000, held-out loss 0.6000" in view
    assert view.count("<polyline") == 3  # loss, held-out loss, margin
    assert len(re.search(r'points="([^"]*)"', view)[1].split()) == 4
    assert live_view(History(), steps=10).count("<polyline") == 0
    assert "nan" not in live_view(History(rows(1)), steps=10)  # one value has no range
