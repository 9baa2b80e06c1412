"""The reward model: what it reads, how it learns, its folder; and best of n and preferred-SFT, which need no RL."""

import math

import pytest
import torch
from safetensors.torch import save_file

from dpo_core.data import audit_pairs, encode_pair
from dpo_core.errors import InputError
from dpo_core.formats.pairs import PreferencePair
from dpo_core.generate import generate
from dpo_core.lm.pretrain import LMConfig
from dpo_core.lm.sft import Example
from dpo_core.logprobs import sequence_logps
from dpo_core.rl.answers import answer_logps, answer_states, collate_answers, token_entropy
from dpo_core.rl.best_of import best_of_n, best_of_n_kl, best_of_n_kl_bound, preferred_examples, train_preferred
from dpo_core.rl.reward import (
    RewardConfig,
    RewardModel,
    evaluate_reward,
    reward_loss,
    reward_scores,
    scorer,
    train_reward,
)

SAMPLES = [([5, 6, 7], [8, 9, 256]), ([1], [2, 256]), ([9, 9, 9, 9], [3])]


# Answers as tensors


def test_an_answers_log_prob_is_that_of_sequence_logps_end_of_text_included(tiny_model):
    batch = collate_answers(SAMPLES)
    found = answer_logps(tiny_model, batch)
    assert found.shape == (3, 3) and (found[~batch.mask] == 0).all() and (found[batch.mask] < 0).all()
    for row, (prompt, answer) in enumerate(SAMPLES):
        ids = torch.tensor([[*prompt, *answer]])
        mask = torch.tensor([[0] * len(prompt) + [1] * len(answer)])
        assert found[row].sum().item() == pytest.approx(sequence_logps(tiny_model, ids, mask).item(), abs=1e-4)


def test_neither_neighbours_nor_a_wider_table_change_an_answers_numbers(tiny_model):
    together = answer_logps(tiny_model, collate_answers(SAMPLES, width=5))
    assert together.shape == (3, 5)
    for row, sample in enumerate(SAMPLES):
        alone = answer_logps(tiny_model, collate_answers([sample]))
        torch.testing.assert_close(together[row, : alone.shape[1]], alone[0], rtol=1e-4, atol=1e-5)


def test_the_entropy_is_that_of_each_next_token(tiny_model):
    batch = collate_answers(SAMPLES)
    found = token_entropy(tiny_model, answer_states(tiny_model, batch), chunk=4)
    probs = tiny_model(batch.ids)[batch.predicts].softmax(-1)
    torch.testing.assert_close(found, -(probs * probs.log()).sum(-1), rtol=1e-4, atol=1e-5)


# The model


@pytest.fixture
def model(tiny_model):
    model = RewardModel(tiny_model)
    torch.nn.init.normal_(model.head.weight)
    return model


def test_the_reward_is_read_at_the_answers_last_token(model):
    found = reward_scores(model, SAMPLES, batch_size=2)
    for row, (prompt, answer) in enumerate(SAMPLES):
        state = model.gpt.hidden(torch.tensor([[*prompt, *answer]]))[0, -1]
        assert found[row].item() == pytest.approx((state @ model.head.weight[0]).item(), abs=1e-4)


def test_prompt_answer_and_its_end_all_count(model):
    (prompt, answer), *_ = SAMPLES
    changed = [([5, 6, 8], answer), (prompt, [8, 10, 256]), (prompt, [8, 9])]
    found = reward_scores(model, [(prompt, answer), *changed])
    assert len({round(value, 4) for value in found.tolist()}) == 4


def test_the_loss_is_bradley_and_terrys():
    found = reward_loss(torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.0]))
    assert found.tolist() == pytest.approx([math.log(1 + math.exp(-1.5)), math.log(1 + math.exp(2.0))])


def test_descent_raises_the_chosen_and_lowers_the_rejected_reward():
    chosen, rejected = torch.tensor([0.3], requires_grad=True), torch.tensor([0.1], requires_grad=True)
    reward_loss(chosen, rejected).sum().backward()
    weight = 1 / (1 + math.exp(0.2))  # s(-margin)
    assert chosen.grad.item() == pytest.approx(-weight) and rejected.grad.item() == pytest.approx(weight)


def test_it_learns_to_rank(tiny_model, encoding, pairs):
    encoded = audit_pairs(pairs, encoding, 64).kept
    model = RewardModel(tiny_model)
    config = RewardConfig(epochs=8, batch_size=5, learning_rate=1e-2, log_every=1)
    history = train_reward(model, encoded[:8], config, encoded[8:])
    first, last = history.rows[0], history.rows[-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6) and first["accuracy"] == 0  # all alike at the start
    assert last["accuracy"] == 1 and last["margin"] > 1 and last["eval_accuracy"] == 1
    assert last["step"] == 16 and evaluate_reward(model, encoded[8:])["accuracy"] == 1


def test_the_same_seed_gives_the_same_reward_model(tiny_model, encoding, pairs):
    encoded = audit_pairs(pairs, encoding, 64).kept
    state = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    found = []
    for _ in range(2):
        tiny_model.load_state_dict(state)
        model = RewardModel(tiny_model)
        train_reward(model, encoded, RewardConfig(learning_rate=1e-3))
        found.append(model.head.weight.clone())
    assert torch.equal(*found)


def test_texts_are_scored_as_pairs_are_encoded(model, encoding):
    prompts, answers = ["Why?", "Who are you?"], ["Because.", "A friend."]
    encoded = [encode_pair(encoding, PreferencePair(p, a, "x")) for p, a in zip(prompts, answers)]
    expected = reward_scores(model, [(e.prompt, e.chosen) for e in encoded])
    assert encoded[0].chosen[-1] == encoding.eot_token
    torch.testing.assert_close(scorer(model, encoding)(prompts, answers), expected)


def test_no_pairs_teach_nothing(tiny_model):
    with pytest.raises(InputError, match="no preference pairs to train a reward model on"):
        train_reward(RewardModel(tiny_model), [], RewardConfig())


# Its folder


def test_a_saved_reward_model_scores_alike_and_holds_no_pickle(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".safetensors"}
    again = RewardModel.from_pretrained(tmp_path)
    torch.testing.assert_close(reward_scores(again, SAMPLES), reward_scores(model, SAMPLES))


def test_a_model_without_a_head_is_no_reward_model(model, tmp_path):
    model.gpt.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"no reward model, as there is no reward_head.safetensors"):
        RewardModel.from_pretrained(tmp_path)


def test_the_head_of_another_model_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    save_file({"weight": torch.zeros(1, 3)}, tmp_path / "reward_head.safetensors")
    with pytest.raises(InputError, match="not the head of this model"):
        RewardModel.from_pretrained(tmp_path)


# Best of n


def length(prompts, answers):
    return [float(len(answer)) for answer in answers]


def test_the_best_of_n_is_the_best_of_the_samples_of_its_own_prompt(tiny_model, encoding):
    prompts = ["Ask?", "Who?"]
    found = best_of_n(tiny_model, encoding, prompts, length, 5, max_new_tokens=8, seed=3)
    doubled = [prompt for prompt in prompts for _ in range(5)]
    answers = generate(tiny_model, encoding, doubled, max_new_tokens=8, seed=3)
    lengths = torch.tensor([len(answer.text) for answer in answers], dtype=torch.float32).view(2, 5)
    assert torch.equal(found.scores, lengths) and lengths.min() < lengths.max()
    for row, answer in enumerate(found.answers):
        assert answer.prompt == prompts[row] and len(answer.text) == lengths[row].max()


def test_the_best_of_none_is_refused(tiny_model, encoding):
    with pytest.raises(InputError, match="n is 0"):
        best_of_n(tiny_model, encoding, ["Ask?"], length, 0)


@pytest.mark.parametrize("n", [1, 2, 4, 16])
def test_the_bound_is_the_divergence_where_no_two_answers_are_alike(n):
    """Of the density n u^(n-1) of the best of n uniform numbers from the uniform one."""
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    density = n * u ** (n - 1)
    integral = (density * density.log()).mean().item()
    assert best_of_n_kl_bound(n) == pytest.approx(integral, abs=1e-3)


def test_the_measured_divergence_is_that_of_the_best_of_n_policy():
    shares = [0.5, 0.3, 0.2]  # worst to best
    scores = torch.tensor([[0.0] * 50 + [1.0] * 30 + [2.0] * 20])
    best = [0.5**3, 0.8**3 - 0.5**3, 1 - 0.8**3]  # three draws
    expected = sum(q * math.log(q / p) for q, p in zip(best, shares))
    assert best_of_n_kl(scores, 3).item() == pytest.approx(expected)
    assert expected < best_of_n_kl_bound(3)


def test_with_many_unlike_samples_the_measured_divergence_reaches_the_bound():
    scores = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0))
    assert best_of_n_kl(scores, 4).tolist() == pytest.approx([best_of_n_kl_bound(4)] * 2, abs=1e-3)
    assert best_of_n_kl(scores, 1).tolist() == pytest.approx([0.0, 0.0], abs=1e-12)


# Preferred-SFT


def test_the_examples_are_the_chosen_answers(pairs):
    found = preferred_examples([*pairs, pairs[0]])
    assert found == [Example(pair.prompt, pair.chosen) for pair in pairs]


def test_preferred_sft_makes_chosen_answers_likelier(tiny_model, encoding, pairs):
    encoded = audit_pairs(pairs, encoding, 64).kept
    batch = collate_answers([(e.prompt, e.chosen) for e in encoded])
    before = answer_logps(tiny_model, batch).sum().item()
    losses = train_preferred(tiny_model, encoding, pairs, LMConfig(epochs=4, tokens_per_batch=200, learning_rate=1e-2))
    assert losses[-1] < losses[0] and answer_logps(tiny_model, batch).sum().item() > before
