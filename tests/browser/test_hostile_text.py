"""Text that wants to run, through everything that shows text: in a real browser none of it does."""

from __future__ import annotations

import pytest

from dpo_core.course.verdicts import Comparison
from dpo_core.course.widgets.dashboard import live_view
from dpo_core.course.widgets.explorers import BetaExplorer
from dpo_core.course.widgets.pair_labeler import PairLabeler
from dpo_core.course.widgets.token_rewards import AnswerRewards, TokenRewards
from dpo_core.metrics import History
from dpo_core.study.tabular import TabularWorld, example_world

pytestmark = pytest.mark.browser

RUN = "window.hacked=1"
HOSTILE = [
    f"<script>{RUN}</script>",
    f"</script><script>{RUN}</script>",
    f"</SCRIPT ><script>{RUN}//",
    f"<!--<script>{RUN}</script>",
    f"--><img src=x onerror={RUN}>",
    f'"><img src=x onerror="{RUN}">',
    f"'><svg onload='{RUN}'>",
    f"<svg><animate onbegin={RUN} attributeName=x dur=1s>",
    f'<iframe srcdoc="<script>parent.{RUN}</script>"></iframe>',
    f"<a href=javascript:{RUN} autofocus onfocus={RUN}>a</a>",
    f"[a](javascript:{RUN})",
    "<style>@import 'https://example.invalid/x.css';</style><p style=background:url(https://example.invalid/y)>",
    f"</style><img src=https://example.invalid/z onerror={RUN}>",
    f"<math><mtext><style><img src=x onerror={RUN}></style></mtext></math>",
    f"<details open ontoggle={RUN}>",
    f"<object data=javascript:{RUN}></object><embed src=javascript:{RUN}>",
    f"<base href=https://example.invalid/><form action=javascript:{RUN}><button>b",
    f"`${{{RUN}}}` ${{{RUN}}} {{{{constructor.constructor('{RUN}')()}}}}",
    f"\\u003cscript>{RUN}\\u003c/script>",
    f"&lt;script&gt;{RUN}&lt;/script&gt;",
    f'{{"__proto__": {{"hacked": 1}}, "a": "</script><img src=x onerror={RUN}>"}}',
    f"\\');{RUN}//",
    f'\\");{RUN}//',
    f"\u2028{RUN}\u2029{RUN}\n{RUN}\r\n{RUN}",
    f"\\(\\href{{javascript:{RUN}}}{{x}}\\) $$\\require{{html}}\\class{{x}}{{y}}$$",
    "\u202e\u2066right to left\u2069 \ud83d half \x00\x1b[2J",
    "%3Cscript%3E" + RUN + "%3C/script%3E",
]


def widgets(text, path):
    """HTML of everything that shows text from data, with the text in every place."""
    world = example_world()
    answers = tuple(tuple(f"{text} {i}" for i in range(len(row))) for row in world.answers)
    yield BetaExplorer(
        TabularWorld((text,) * len(world.prompts), answers, world.reference, world.rewards)
    )._repr_html_()
    tokens = [text, *text[:10]]
    yield TokenRewards(text, [AnswerRewards(text, tokens, [0.1] * len(tokens))], beta=0.1)._repr_html_()
    labeler = PairLabeler(path, [Comparison(text, f"{text} one", f"{text} two", text)], rubric=text, labeller=text)
    yield labeler._repr_mimebundle_()[0]["text/html"]
    labeler.session.close()
    yield live_view(History([{"step": 0, "loss": 0.5, text: 1.0}]), steps=10)


@pytest.fixture
def shown(chromium, tmp_path):
    """A page, what it did beyond showing itself, and whether any text in it ran."""
    context = chromium.new_context()
    page, troubles = context.new_page(), []
    page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: message.type == "error" and troubles.append(message.text))
    page.on("request", lambda request: request.url.startswith("file:") or troubles.append(request.url))

    def shown(html: str):
        file = tmp_path / "page.html"
        file.write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>t</title>{html}', "utf-8")
        page.goto(file.as_uri())
        return page, troubles

    yield shown
    context.close()


def test_the_page_notices_what_runs(shown):
    """If this failed, the other test could not fail."""
    page, troubles = shown(f"<script>{RUN}</script><img src=https://example.invalid/z>")
    assert page.evaluate("window.hacked") == 1 and "https://example.invalid/z" in troubles


def test_no_text_runs_in_any_widget(shown, tmp_path):
    html = [part for i, text in enumerate(HOSTILE) for part in widgets(text, tmp_path / f"labels-{i}.jsonl")]
    "".join(html).encode()  # an output with half a character would be lost
    page, troubles = shown("\n".join(html))
    page.wait_for_function(f"document.querySelectorAll('[data-live]').length === {3 * len(HOSTILE)}")
    page.evaluate("""() => {  // what a reader does
        for (const select of document.querySelectorAll("select")) {
            select.value = 1;
            select.dispatchEvent(new Event("change"));
        }
        for (const token of document.querySelectorAll("[role=option]")) token.click();
        for (const card of document.querySelectorAll(".dpo-labeler")) {
            for (const key of ["ArrowLeft", "u", "t"]) card.dispatchEvent(new KeyboardEvent("keydown", { key }));
        }
    }""")
    page.wait_for_timeout(1000)
    assert page.evaluate("window.hacked") is None and page.evaluate("({}).hacked") is None
    assert troubles == []
    strange = (
        "script:not([type]), iframe, object, embed, form, base, img, a, [onerror], [onload], [onfocus], [ontoggle]"
    )
    assert page.locator(strange).count() == 0
    prompts = page.locator("[data-dpo=token_rewards]").evaluate_all(
        "nodes => nodes.map((node) => node.querySelector('.dpo-tokens').textContent)"
    )
    assert prompts == HOSTILE
