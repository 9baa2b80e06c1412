"""The live figures in a real browser, from a file on disk: mouse, touch, keyboard, themes, a narrow screen."""

import pytest

from dpo_core.course.widgets.explorers import BetaExplorer, LossExplorer
from dpo_core.course.widgets.family_explorer import FAMILY, FamilyExplorer
from dpo_core.course.widgets.frontier_explorer import FrontierExplorer, FrontierPoint
from dpo_core.course.widgets.token_rewards import AnswerRewards, TokenRewards

pytestmark = pytest.mark.browser

NASTY = "<img src=x onerror=\"document.title='broken in'\">"
TOKENS = TokenRewards(
    NASTY,
    [
        AnswerRewards("chosen", ["Air", " scatters", " light.", " ⟨end⟩"], [0.5, 0.1, -0.2, 0.05]),
        AnswerRewards("rejected", [NASTY, " ⟨end⟩"], [-0.9, 0.0]),
    ],
    beta=0.1,
)
FRONTIER = [  # each number another one
    FrontierPoint(beta, step, 0.01 * step / beta, gain, gain - 0.1 * k, gain + 0.2)
    for k, (beta, step, gain) in enumerate(((0.1, 5, 0.1), (0.1, 30, 0.5), (1.0, 5, -0.05), (1.0, 30, 0.3)), 1)
]
CARDS = {"light": "rgb(250, 250, 247)", "dark": "rgb(27, 31, 36)"}


@pytest.fixture
def visit(chromium, tmp_path):
    """Opens widgets as a page of their own; in the end nothing may have gone wrong or been asked for from outside."""
    contexts, troubles = [], []

    def visit(*widgets, width=760, theme="light", touch=False):
        head = '<meta charset="utf-8"><title>t</title><meta name="viewport" content="width=device-width">'
        body = "".join(widget._repr_html_() for widget in widgets)
        file = tmp_path / "page.html"
        file.write_text(f'<!doctype html><html lang="en" data-theme="{theme}">{head}{body}', "utf-8")
        contexts.append(chromium.new_context(viewport={"width": width, "height": 900}, has_touch=touch))
        page = contexts[-1].new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: request.url == file.as_uri() or troubles.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_selector("[data-live]")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert troubles == []


def readings(page):
    """The numbers below the pictures."""
    return [float(text.split()[0].replace("−", "-")) for text in page.locator(".dpo-readings dd").all_text_contents()]


def expected(explorer):
    values = explorer.values()
    return pytest.approx([*values.values(), explorer.beta * values["weight"]], abs=6e-4)


def drag(page, picture, start, end):
    box = page.locator(picture).bounding_box()
    page.mouse.move(box["x"] + start * box["width"], box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + end * box["width"], box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()


# The loss


def test_the_loss_follows_the_keys(visit):
    page = visit(LossExplorer())
    assert readings(page) == expected(LossExplorer())
    page.get_by_label("Log-ratio difference").press("ArrowRight")
    page.get_by_label("β", exact=True).focus()
    page.keyboard.press("End")
    assert readings(page) == expected(LossExplorer(h=0.5, beta=1.0))
    page.get_by_label("Label smoothing").press("PageUp")
    smoothing = float(page.get_by_label("Label smoothing").input_value())
    assert smoothing > 0 and readings(page) == expected(LossExplorer(0.5, 1.0, smoothing))
    page.get_by_role("combobox", name="Loss", exact=True).select_option("robust")
    assert readings(page) == expected(LossExplorer(0.5, 1.0, smoothing, "robust"))
    page.get_by_role("combobox", name="Loss", exact=True).select_option("hinge")
    assert page.get_by_label("Label smoothing").is_disabled()
    assert readings(page) == expected(LossExplorer(0.5, 1.0, loss="hinge"))


def test_the_loss_follows_the_mouse_and_is_spoken(visit):
    page = visit(LossExplorer(beta=0.2))
    drag(page, "svg >> nth=0", 0.5, 0.9)
    h = float(page.get_by_label("Log-ratio difference").input_value())
    assert h > 15 and readings(page) == expected(LossExplorer(h, 0.2))
    loss = f"{LossExplorer(h, 0.2).values()['loss']:.4f}"
    page.wait_for_function(f"document.querySelector('[aria-live]').textContent.includes('loss {loss}')")
    assert page.get_by_label("Log-ratio difference").get_attribute("aria-valuetext") == f"+{h:.1f} nats"
    dot = page.locator("svg >> nth=0").locator("circle").bounding_box()
    box = page.locator("svg >> nth=0").bounding_box()
    assert (dot["x"] + dot["width"] / 2 - box["x"]) / box["width"] == pytest.approx(0.9, abs=0.02)


def test_the_loss_follows_a_finger(visit):
    page = visit(LossExplorer(), width=390, touch=True)
    box = page.locator("svg >> nth=1").bounding_box()
    page.touchscreen.tap(box["x"] + 0.3 * box["width"], box["y"] + 50)
    h = float(page.get_by_label("Log-ratio difference").input_value())
    assert h < -5 and readings(page) == expected(LossExplorer(h))


# Beta


def test_the_optimum_follows_beta_and_prompt(visit):
    page, explorer = visit(BetaExplorer()), BetaExplorer()
    slider = page.get_by_label("weight of the KL term")
    for prompt, text in enumerate(explorer.world.prompts):
        page.get_by_label("Prompt").select_option(text)
        for exponent in (-1.0, 0.5):
            slider.fill(str(exponent))
            at = BetaExplorer(beta=10**exponent).values()
            kl, reward = at["kl"][prompt], at["reward"][prompt]
            assert readings(page) == pytest.approx([kl, reward, reward - 10**exponent * kl], abs=2e-3)
    assert page.locator(".dpo-answer").count() == 5
    widths = page.locator(".dpo-answer").evaluate_all(
        "rows => rows.map(row => parseFloat(row.querySelectorAll('.dpo-bar')[1].style.width))"
    )
    assert sum(widths) == pytest.approx(100, abs=0.3)


def test_dragging_along_the_frontier_chooses_beta(visit):
    page = visit(BetaExplorer())
    drag(page, "svg", 0.3, 0.8)
    beta = 10 ** float(page.get_by_label("weight of the KL term").input_value())
    values = BetaExplorer(beta=beta).values()
    assert beta < 0.5 and readings(page)[0] == pytest.approx(values["kl"][0], abs=2e-3)
    dot, box = page.locator("circle").bounding_box(), page.locator("svg").bounding_box()
    assert (dot["x"] + dot["width"] / 2 - box["x"]) / box["width"] == pytest.approx(0.8, abs=0.05)


# The family


def table(page):
    """Loss and both pulls by name."""
    rows = page.locator(".dpo-table tr").evaluate_all("rows => rows.map(row => [...row.cells].map(c => c.textContent))")
    numbers = {name: [float(text.replace("−", "-")) for text in cells] for name, *cells in rows[1:]}
    return {name: dict(zip(("loss", "chosen", "rejected"), values)) for name, values in numbers.items()}


def same_family(page, explorer):
    shown, computed = table(page), explorer.values()
    assert list(shown) == list(computed)
    for name, values in computed.items():
        assert shown[name] == pytest.approx(values, abs=6e-4), name


def test_the_family_follows_menu_keys_and_mouse(visit):
    page = visit(FamilyExplorer())
    for group in FAMILY:
        page.get_by_label("Losses").select_option(group)
        page.get_by_label("Margin, chosen minus rejected").fill("-12.5")
        page.get_by_label("Both answers together").fill("-20")
        same_family(page, FamilyExplorer(group, -12.5, -20))
        page.get_by_label("Both answers together").press("End")
        same_family(page, FamilyExplorer(group, -12.5, 10))
    drag(page, "svg[role=img] >> nth=1", 0.4, 0.8)
    h = float(page.get_by_label("Margin, chosen minus rejected").input_value())
    assert h > 15
    same_family(page, FamilyExplorer("fine-tuning", h, 10))


def test_what_both_answers_do_together_is_invisible_to_a_function_of_the_margin(visit):
    page = visit(FamilyExplorer("functions of the margin", h=5), FamilyExplorer("functions of both answers", h=5))
    lines = ".dpo-widget >> nth={} >> svg[role=img] >> nth=0 >> path"
    before = [page.locator(lines.format(i)).evaluate_all("all => all.map(x => x.getAttribute('d'))") for i in (0, 1)]
    for i in (0, 1):
        page.get_by_label("Both answers together").nth(i).press("Home")
    after = [page.locator(lines.format(i)).evaluate_all("all => all.map(x => x.getAttribute('d'))") for i in (0, 1)]
    assert before[0] == after[0] and all(a != b for a, b in zip(before[1], after[1]))


# The frontier


def test_the_frontier_follows_keys_and_mouse(visit):
    page = visit(FrontierExplorer(FRONTIER, beta=0.1, step=30))

    def shown():
        kl, gain, interval = page.locator(".dpo-readings dd").all_text_contents()
        texts = (kl.split()[0], gain, *interval.split(" to "))
        return pytest.approx([float(text.replace("−", "-")) for text in texts], abs=6e-3)

    def expected(beta, step):
        return list(FrontierExplorer(FRONTIER, beta, step).values().values())

    assert expected(0.1, 30) == shown()
    page.get_by_label("β of the training").press("ArrowRight")
    assert expected(1.0, 30) == shown()
    page.get_by_label("Optimiser step").press("ArrowLeft")
    assert expected(1.0, 5) == shown()
    page.get_by_label("β of the training").press("Home")
    drag(page, "svg", 0.3, 0.95)
    assert expected(0.1, 30) == shown()
    drag(page, "svg", 0.9, 0.14)
    assert expected(0.1, 0) == shown()


# Tokens


def test_tokens_are_read_by_pointing_and_by_keys(visit):
    page = visit(TOKENS)
    note = page.locator("p.dpo-readings")
    page.get_by_role("option", name="scatters").hover()
    assert "“ scatters” adds +0.100; up to here +0.60 of +0.45 nats" in note.text_content()
    page.get_by_role("option", name="Air").focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert "“ light.” adds −0.200" in note.text_content()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "light., −0.20"
    assert page.locator("[role=option][tabindex='0']").count() == 2  # one stop of the tab key an answer
    assert page.locator("[role=listbox]").first.get_attribute("aria-label") == "chosen: +0.45 nats in 4 tokens"


def test_text_from_data_stays_text(visit):
    page = visit(TOKENS)
    assert page.locator("img").count() == 0 and page.title() == "t"
    assert page.get_by_text(NASTY).count() == 2  # the prompt and a token


# All of them


@pytest.mark.parametrize("theme", CARDS)
@pytest.mark.parametrize("width", [390, 1200])
def test_they_fit_the_screen_and_the_theme(visit, theme, width):
    page = visit(
        LossExplorer(),
        BetaExplorer(),
        FamilyExplorer(),
        FrontierExplorer(FRONTIER, 0.1, 5),
        TOKENS,
        width=width,
        theme=theme,
    )
    assert page.evaluate("document.documentElement.scrollWidth") == width
    colors = page.locator(".dpo-widget").evaluate_all("all => all.map(host => getComputedStyle(host).backgroundColor)")
    assert colors == [CARDS[theme]] * 5


def test_two_of_a_kind_live_side_by_side(visit):
    page = visit(LossExplorer(h=10), LossExplorer(h=-10))
    page.get_by_label("Log-ratio difference").first.press("End")
    sliders = page.get_by_label("Log-ratio difference")
    assert [sliders.nth(i).input_value() for i in range(2)] == ["30", "-10"]
    assert page.locator("svg").count() == 4


def test_without_scripts_there_is_a_sentence(chromium):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_content(LossExplorer(h=10)._repr_html_())
    assert "margin of 1.0 the loss is 0.3133" in page.locator(".dpo-widget p").text_content()
    context.close()
