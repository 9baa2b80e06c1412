import itertools
import json
import math
import random
import statistics
from collections import Counter
from importlib import resources

import pytest

from dpo_core.formats.pairs import load_pairs
from dpo_core.pocket.corpus import STYLES, _answer, dialogues, preference_pairs
from dpo_core.pocket.judge import FEW_FACTS, FEW_ITEMS, PocketJudge, RewardWeights, _asked, _index, _words
from dpo_core.pocket.world import load_world, phrases, problems, questions

HERE = resources.files("dpo_core.pocket")
GUIDE = {  # the quick-start's prompts and the topics they are about
    "Explain machine learning.": "machine-learning",
    "What is the capital of France?": "capital-of-france",
    "How do I make a peanut butter sandwich?": "peanut-butter-sandwich",
    "Why is the sky blue?": "blue-sky",
    "What is Python?": "python",
    "What is photosynthesis?": "photosynthesis",
    "What is the difference between AI and machine learning?": "ai-and-machine-learning",
    "How does a computer work?": "how-a-computer-works",
    "What causes the seasons?": "seasons",
    "What is blockchain?": "blockchain",
    "List three planets.": "planets",
}
JUDGE = PocketJudge()
TOPIC = next(t for t in load_world().topics if t.id == "blue-sky")
ASK = TOPIC.ask[0]
FACTS = [wordings[0] for wordings in TOPIC.facts]
PLANETS = next(t for t in load_world().topics if t.id == "planets")
STEPS = next(t for t in load_world().topics if t.listing and t.listing.ordered and len(t.listing.items) == 6)
UNSAFE = load_world().unsafe[0]


def score(*sentences, prompt=ASK):
    return JUDGE.score(prompt, " ".join(sentences))


def numbered(*items):
    return "\n".join(f"{i}. {item}" for i, item in enumerate(items, 1))


# Knowledge


@pytest.mark.parametrize("file", sorted(HERE.joinpath("knowledge").iterdir(), key=str), ids=lambda file: file.name)
def test_knowledge_keeps_its_rules(file):
    assert problems(json.loads(file.read_text(encoding="utf-8"))) == []


def test_the_rules_see_what_is_wrong():
    raw = json.loads(HERE.joinpath("knowledge", "astronomy.json").read_text(encoding="utf-8"))
    topic = next(t for t in raw["topics"] if "list" in t)
    topic["facts"][0][0] = "no capital, two sentences. And no end"
    topic["facts"][1] = topic["facts"][1][:1]
    topic["list"]["intro"] = "No colon."
    found = problems(raw)
    for part in ("facts[0]: not one plain", "facts[0]: more than one", "facts[1]: needs at least 2", "end in a colon"):
        assert any(part in problem for problem in found), part


def test_size_of_the_world():
    world = load_world()
    assert len(world.topics) >= 150
    assert len({topic.subject for topic in world.topics}) >= 8
    assert len(world.unsafe) >= 30
    assert all(len(topic.facts) >= 6 and min(map(len, topic.facts)) >= 2 for topic in world.topics)
    ids = [matter.id for matter in (*world.topics, *world.unsafe)]
    assert len(ids) == len(set(ids))


def test_no_sentence_means_two_things():
    """Else the judge could take a wrong fact for a right one."""
    said = Counter()
    for topic in load_world().topics:
        for text in {text.lower() for wordings in topic.facts for text in wordings}:
            said[text] += 1
    assert [text for text, count in said.items() if count > 1] == []


@pytest.mark.parametrize(("prompt", "topic"), GUIDE.items())
def test_the_guides_prompts_are_questions_about_the_right_topic(prompt, topic):
    found = [q for q in questions() if q.text == prompt]
    assert [q.about.id for q in found] == [topic]
    assert not found[0].about.held_out


def test_a_question_is_about_one_matter():
    for question in questions():
        fact = question.about.facts[0][0] if question.kind != "unsafe" else question.about.refusals[0]
        assert JUDGE.knows(question.text)
        assert JUDGE.features(question.text, fact).wrong == 0, question.text


def test_held_out_matters_are_apart():
    held, other = questions(held_out=True), questions(held_out=False)
    assert {q.about.id for q in held} & {q.about.id for q in other} == set()
    assert {q.text for q in held} & {q.text for q in other} == set()
    assert len(held) + len(other) == len(questions())
    assert {q.kind for q in held} == {"topic", "list", "unsafe"}


# Corpus


def test_the_judge_knows_every_sentence_of_the_corpus():
    for dialogue in itertools.islice(dialogues(seed=11), 3000):
        seen = JUDGE.features(dialogue.prompt, dialogue.answer)
        assert seen.unknown == 0 and seen.parsed, dialogue


def test_the_same_seed_gives_the_same_dialogues():
    first, again, other = (list(itertools.islice(dialogues(seed), 200)) for seed in (3, 3, 4))
    assert first == again != other


def test_dialogues_keep_to_the_matters_asked_for():
    for held_out in (True, False):
        assert all(d.question.about.held_out is held_out for d in itertools.islice(dialogues(5, held_out), 300))


@pytest.mark.parametrize("habits", [False, True])
def test_every_style_occurs_about_as_often_as_it_should(habits):
    drawn = [d for d in itertools.islice(dialogues(seed=2, habits=habits), 3000)]
    for kind, styles in STYLES.items():
        shares = {name: style.habit if habits else style.school for name, style in styles.items()}
        assert sum(shares.values()) == pytest.approx(1)
        of_kind = [d.style for d in drawn if d.question.kind == kind]
        for style, share in shares.items():
            error = math.sqrt(share * (1 - share) / len(of_kind))
            assert of_kind.count(style) / len(of_kind) == pytest.approx(share, abs=4 * error), style


# Judge


ORDER = {  # best first; styles in one group are not ranked
    "topic": [["detailed"], ["polite"], ["careless"], ["rude", "rambling", "repetitive", "curt"], ["wrong"]],
    "list": [["listed"], ["prose"], ["detailed"], ["one item"], ["squashed"], ["wrong list"]],
    "unsafe": [["refuse"], ["refuse only"], ["scold"], ["comply"]],
}


@pytest.mark.parametrize("kind", ORDER)
def test_order_of_the_styles(kind):
    rng = random.Random(0)
    asked = [q for q in questions() if q.kind == kind]

    def mean(style):
        drawn = [rng.choice(asked) for _ in range(250)]
        return statistics.mean(JUDGE.score(q.text, _answer(rng, q, style)) for q in drawn)

    means = [[mean(style) for style in group] for group in ORDER[kind]]
    for better, worse in itertools.pairwise(means):
        assert min(better) > max(worse) + 0.2, means
    if kind == "topic":
        assert mean("unwilling") < mean("curt") - 1


def test_any_text_gets_a_finite_score():
    rng = random.Random(0)
    scraps = [
        *FACTS,
        "\x00",
        "\x1b[31m",
        "\u202e",
        "1. ",
        "\n",
        "''''",
        "İ",
        "ß",
        "٣. ",
        "🙂",
        "e\u0301",
        "\ud800",
        " ",
    ]
    texts = ["", " ", "\n\n", ".", "1. ", "a" * 1_000_000, "word " * 200_000, "1. \n" * 100_000]
    texts += ["".join(rng.choices(scraps, k=rng.randint(0, 40))) for _ in range(300)]
    texts += ["".join(chr(rng.randrange(0x110000)) for _ in range(60)) for _ in range(300)]
    for text in texts:
        for prompt in (ASK, text):
            assert math.isfinite(JUDGE.score(prompt, text))


def test_facts_earn_and_nothing_is_earned_twice():
    assert score(FACTS[0]) == 1
    assert score(FACTS[0], FACTS[1]) == 2
    assert score(FACTS[0], FACTS[0]) < score(FACTS[0])
    assert score(FACTS[0], TOPIC.facts[0][1]) < score(FACTS[0])  # the same fact in other words
    assert score(*FACTS[:FEW_FACTS]) == FEW_FACTS
    assert score(*FACTS) == FEW_FACTS < len(FACTS)


def test_case_and_punctuation_do_not_matter_to_facts():
    spoiled = " ".join(FACTS[:3]).upper().replace(".", " !? ").replace(" ", "\n\t")
    assert JUDGE.features(ASK, spoiled).facts == 3
    assert JUDGE.features(ASK.upper().rstrip("?"), FACTS[0]).facts == 1


PADDING = {
    "facts of other topics": PLANETS.facts[0],
    "filler": phrases()["filler"],
    "rudeness": phrases()["rude"],
    "needless refusals": phrases()["needless_refusal"],
    "unknown words": ("Xyzzy plugh.", "Frobnicate the quux."),
    "more openers": phrases()["opener"][1:],
    "more closers": phrases()["closer"][1:],
}


@pytest.mark.parametrize("kind", PADDING)
def test_padding_costs_and_more_of_it_costs_more(kind):
    good = [phrases()["opener"][0], *FACTS[:3], phrases()["closer"][0]]
    scores = [score(*good, *PADDING[kind][:count]) for count in range(len(PADDING[kind]) + 1)]
    assert all(before > after for before, after in itertools.pairwise(scores)), scores


def test_all_openers_at_once_earn_no_more_than_one():
    one = score(phrases()["opener"][0], FACTS[0])
    assert one > score(FACTS[0])
    assert score(*phrases()["opener"], *phrases()["closer"], FACTS[0]) < one


def test_a_list_must_be_numbered_and_its_items_different():
    ask, items = PLANETS.listing.ask[0], PLANETS.listing.items
    good = JUDGE.score(ask, f"{PLANETS.listing.intro}\n{numbered(*items[:FEW_ITEMS])}")
    assert good == FEW_ITEMS + 1
    assert good > JUDGE.score(ask, " ".join(items[:FEW_ITEMS]))
    assert good >= JUDGE.score(ask, numbered(*items))  # more than asked for is no better
    thrice = JUDGE.features(ask, numbered(*[items[0]] * 3))
    assert (thrice.items, thrice.numbered, thrice.repeats) == (1, False, 2)
    assert JUDGE.score(ask, "1. \n2. \n3. \n4.") < JUDGE.score(ask, PLANETS.curt[0])  # a list of nothing
    assert JUDGE.score(ASK, numbered(*TOPIC.facts[0])) <= score(FACTS[0])  # no list was asked for


def test_steps_count_in_their_order():
    ask, items = STEPS.listing.ask[0], STEPS.listing.items
    scores = [JUDGE.score(ask, numbered(*order)) for order in (items, [*items[1:], items[0]], items[:3], items[::-1])]
    assert scores == [7, 6, 4, 2]


def test_items_are_worth_little_where_no_list_was_asked_for():
    assert JUDGE.score(PLANETS.ask[0], numbered(*PLANETS.listing.items)) < 1


def test_refusals_are_judged_by_the_question():
    ask, refusal, offer, hollow = UNSAFE.ask[0], UNSAFE.refusals[0], UNSAFE.offers[0], UNSAFE.hollow[0]
    best = score(refusal, offer, prompt=ask)
    assert best > score(refusal, prompt=ask) > score("", prompt=ask) > score(hollow, prompt=ask)
    assert score(refusal, offer, hollow, prompt=ask) < score(refusal, prompt=ask)
    assert score(*UNSAFE.refusals, *UNSAFE.offers, prompt=ask) < best
    for refusing in (refusal, phrases()["needless_refusal"][0]):
        assert score(refusing) < 0
        assert score(refusing, FACTS[0]) < score(FACTS[0])


def test_an_empty_answer_is_no_better_than_a_curt_one():
    for topic in load_world().topics:
        for curt in topic.curt:
            assert JUDGE.score(topic.ask[0], "") < JUDGE.score(topic.ask[0], curt)


def test_a_flawed_judge_may_love_length():
    judge = PocketJudge(RewardWeights(words=0.1))
    rambling = " ".join([FACTS[0], *phrases()["filler"]])
    assert judge.prefers(ASK, rambling, FACTS[0]) == 1 == JUDGE.prefers(ASK, FACTS[0], rambling)


def test_an_unknown_question_has_no_right_answer():
    prompt = "What is the airspeed of an unladen swallow?"
    assert not JUDGE.knows(prompt)
    assert JUDGE.score(prompt, " ".join(FACTS)) == JUDGE.score(prompt, " ".join(w[0] for w in PLANETS.facts))
    assert JUDGE.score(prompt, "\n".join(PLANETS.listing.items)) < 1


def test_noise_is_bradley_terry():
    """800 draws each: within four standard errors of the sigmoid."""
    rng, draws = random.Random(0), 800
    for noise in (0.5, 1.0, 3.0):
        for worse in (FACTS[:1], FACTS[:3], FACTS[:2]):
            gap = score(*FACTS[:3]) - score(*worse)
            won = sum(JUDGE.prefers(ASK, " ".join(FACTS[:3]), " ".join(worse), noise, rng) > 0 for _ in range(draws))
            expected = 1 / (1 + math.exp(-gap / noise))
            assert won / draws == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / draws))
    assert JUDGE.prefers(ASK, FACTS[0], FACTS[1]) == 0
    assert JUDGE.prefers(ASK, FACTS[0], "", 1e-300, rng) == 1


# Pairs


@pytest.mark.parametrize("contrast", [False, True])
def test_pairs_follow_the_judge_and_their_seed(contrast):
    drawn = preference_pairs(300, seed=1, judge=JUDGE, contrast=contrast)
    assert all(JUDGE.score(p.prompt, p.chosen) > JUDGE.score(p.prompt, p.rejected) for p in drawn)
    again, other = (preference_pairs(300, seed, JUDGE, contrast=contrast) for seed in (1, 2))
    assert drawn == again != other


def test_contrasting_answers_tell_the_same_few_facts():
    def told(pair):
        about = _asked()[_words(pair.prompt)].about.id
        meanings = itertools.chain.from_iterable(_index().parse(f"{pair.chosen} {pair.rejected}"))
        return len({unit.index for unit in meanings if (unit.kind, unit.about) == ("fact", about)})

    same, other = (preference_pairs(400, seed=0, judge=JUDGE, contrast=contrast) for contrast in (True, False))
    assert max(map(told, same)) == 5 < max(map(told, other))


def test_contrast_rejects_a_style_as_often_as_the_model_answers_in_it():
    """Rude remarks make out a third of the bad answers about topics, needless refusals a twentieth."""
    drawn = preference_pairs(1500, seed=3, judge=JUDGE, contrast=True)
    topics = [p for p in drawn if (q := _asked()[_words(p.prompt)]).kind == "topic" and not q.about.held_out]
    seen = [JUDGE.features(pair.prompt, pair.rejected) for pair in topics]
    for style, share in (("rude", sum(f.rude > 0 for f in seen)), ("unwilling", sum(f.needless > 0 for f in seen))):
        habit = STYLES["topic"][style].habit / (1 - STYLES["topic"]["detailed"].habit)
        assert share / len(seen) == pytest.approx(habit, abs=4 * math.sqrt(habit / len(seen))), style


def test_noise_turns_some_pairs_round():
    drawn = preference_pairs(400, seed=1, judge=JUDGE, noise=2.0)
    turned = sum(JUDGE.score(p.prompt, p.chosen) < JUDGE.score(p.prompt, p.rejected) for p in drawn)
    assert 0.05 < turned / len(drawn) < 0.5


@pytest.mark.parametrize("held_out", [False, True])
def test_pairs_keep_to_the_matters_asked_for(held_out):
    about = {" ".join(q.text.lower().rstrip(".?").split()): q.about.held_out for q in questions()}
    for pair in preference_pairs(400, seed=0, judge=JUDGE, held_out=held_out):
        assert about[pair.prompt.lower().rstrip(".?")] is held_out


@pytest.mark.parametrize("contrast", [False, True])
def test_no_answer_of_a_training_pair_states_a_held_out_fact(contrast):
    held_out = {topic.id for topic in load_world().topics if topic.held_out}
    for pair in preference_pairs(400, seed=0, judge=JUDGE, contrast=contrast):
        for meanings in _index().parse(f"{pair.chosen} {pair.rejected}"):
            assert meanings and not all(unit.about in held_out for unit in meanings), pair


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_share_of_pairs_whose_chosen_answer_is_longer(share):
    drawn = preference_pairs(400, seed=0, judge=JUDGE, longer_chosen=share)
    longer = sum(len(p.chosen) > len(p.rejected) for p in drawn) / len(drawn)
    assert longer == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / len(drawn)) + 1e-9)


def test_the_guides_pairs():
    drawn = load_pairs(str(HERE / "guide_pairs.jsonl"))
    assert len(drawn) == 10 and {pair.prompt for pair in drawn} < set(GUIDE)
    for pair in drawn:
        assert len(pair.chosen) > len(pair.rejected)
        assert JUDGE.prefers(pair.prompt, pair.chosen, pair.rejected) == 1
        assert JUDGE.features(pair.prompt, pair.chosen).unknown == 0
