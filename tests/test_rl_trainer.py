"""The loop of reinforcement learning on a tiny model: what it learns, measures, refuses and can go on from."""

import math
import os
import signal

import pytest
import torch

from dpo_core.errors import InputError
from dpo_core.generate import Generation, generate
from dpo_core.methods.lora import LoRAConfig, add_lora
from dpo_core.model import GPT
from dpo_core.rl.answers import answer_states
from dpo_core.rl.config import RLConfig
from dpo_core.rl.methods import METHODS
from dpo_core.rl.trainer import RLTrainer
from dpo_core.runs.checkpoint import list_checkpoints

PROMPTS = ["Ask 1?", "Who are you?", "Why?", "And then?"]
SMALL = {"steps": 4, "prompts_per_step": 2, "max_new_tokens": 6, "log_every": 1, "learning_rate": 1e-2, "seed": 1}


def letters(prompts, answers):
    """The share of an answer that is letters."""
    return [sum(c.isascii() and c.isalpha() for c in answer) / 6 for answer in answers]


@pytest.fixture
def make(tiny_model, encoding):
    """A trainer of a fresh copy of the tiny model, with settings changed by keyword."""
    start = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}

    def make(method="rloo", output=None, score=letters, prompts=PROMPTS, **settings):
        model = GPT(tiny_model.config)
        model.load_state_dict(start)
        return RLTrainer(model.eval(), encoding, prompts, score, RLConfig(method, **SMALL | settings), output)

    return make


def same_weights(one, other):
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


# What is learned


@pytest.mark.parametrize("method", METHODS)
def test_answers_score_higher_after_training(make, method):
    rate = 5e-3 if method == "ppo" else 1e-2
    trainer = make(method, steps=24, prompts_per_step=4, log_every=6, beta=0.01, learning_rate=rate)
    rows = trainer.train(progress=False).rows
    assert rows[-1]["objective/scores"] > rows[0]["objective/scores"] + 0.1
    assert rows[-1]["objective/kl"] > rows[0]["objective/kl"]


def test_a_greater_beta_keeps_the_policy_closer(make):
    kls = [
        make(beta=beta, steps=16, prompts_per_step=4, log_every=4).train(progress=False).rows[-1]["objective/kl"]
        for beta in (0.0, 5.0)
    ]
    assert kls[1] < 0.5 * kls[0]


@pytest.mark.parametrize("method", METHODS)
def test_the_first_row_is_that_of_the_reference(make, method):
    row = make(method, steps=1, inner_epochs=1).train(progress=False).rows[0]
    assert row["objective/kl"] == 0 and row["objective/non_score_reward"] == 0
    assert row["objective/rlhf_reward"] == row["objective/scores"]
    assert row["val/ratio"] == 1 and row["policy/approxkl_avg"] == 0
    assert row["grad_norm"] > 0 and 0 < row["policy/entropy_avg"] < math.log(257)


def test_in_later_inner_epochs_the_ratio_leaves_one(make):
    row = make("rloo", steps=1, inner_epochs=3).train(progress=False).rows[0]
    assert row["val/ratio"] != 1 and row["policy/approxkl_avg"] > 0


def test_the_reference_stays_where_the_policy_began(make, tiny_model):
    trainer = make(steps=2)
    trainer.train(progress=False)
    assert same_weights(trainer.reference, tiny_model) and not same_weights(trainer.model, tiny_model)


def test_passes_add_up_to_the_whole_step(make):
    found = [make(method, steps=1, batch_size=size) for method in ("rloo", "grpo", "ppo") for size in (4, 64)]
    for trainer in found:
        trainer.train(progress=False)
    for small, large in zip(found[::2], found[1::2]):
        rows = small.history.rows[0], large.history.rows[0]
        assert rows[0]["grad_norm"] == pytest.approx(rows[1]["grad_norm"], rel=1e-3)
        assert rows[0]["loss/policy_avg"] == pytest.approx(rows[1]["loss/policy_avg"], rel=1e-3, abs=1e-5)


def test_an_adapter_alone_is_trained(tiny_model, encoding):
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    add_lora(tiny_model, LoRAConfig(rank=2), 0)
    trainer = RLTrainer(tiny_model, encoding, PROMPTS, letters, RLConfig("rloo", **SMALL))
    assert trainer.train(progress=False).rows[-1]["objective/kl"] != 0
    after = tiny_model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if name in after)


# Samples and scores


def test_each_prompt_is_answered_several_times_and_each_answer_scored_with_its_prompt(make):
    seen = []

    def score(prompts, answers):
        seen.append((prompts, answers))
        return letters(prompts, answers)

    make(steps=1, samples_per_prompt=3, score=score).train(progress=False)
    (prompts, answers), *_ = seen
    assert len(prompts) == len(answers) == 6
    assert prompts[:3] == [prompts[0]] * 3 and prompts[3:] == [prompts[3]] * 3 and prompts[0] != prompts[3]


def test_scores_may_be_a_tensor_and_are_not_differentiated(make):
    trainer = make(steps=1, score=lambda prompts, answers: torch.ones(len(answers), requires_grad=True) * 2)
    assert trainer.train(progress=False).rows[0]["objective/scores"] == 2


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda prompts, answers: [1.0], "8 answers were scored, and"),
        (lambda prompts, answers: [math.nan] * len(answers), "is not finite"),
    ],
)
def test_scores_that_are_none_are_refused(make, score, message):
    with pytest.raises(InputError, match=message):
        make(steps=1, score=score).train(progress=False)


def test_the_end_of_text_counts_and_the_prompt_does_not(make, encoding):
    trainer = make()
    ended = Generation("ab", [97, 98, encoding.eot_token], True, PROMPTS[0])
    cut = Generation("abcd", [97, 98, 99, 100], False, PROMPTS[0])
    ((rows, batch),) = trainer.passes([ended, cut] * 2)
    assert rows == slice(0, 4) and batch.mask.sum(1).tolist() == [3, 4, 3, 4]
    assert batch.targets.tolist() == [97, 98, encoding.eot_token, 97, 98, 99, 100] * 2


def test_an_answer_without_an_end_pays_for_it(make, encoding):
    trainer = make(missing_eos_penalty=2.0)
    ended = Generation("ab", [97, 98, encoding.eot_token], True, PROMPTS[0])
    cut = Generation("ab", [97, 98], False, PROMPTS[0])
    assert trainer.scores([ended, cut]).tolist() == pytest.approx([2 / 6, 2 / 6 - 2])


def test_answers_are_the_policys_own_at_temperature_one(make, encoding):
    trainer = make()
    answers = trainer.sample(PROMPTS[:1])
    rollout, ((_, batch),) = trainer.rollout(PROMPTS[:1])
    assert [answer.ids for answer in answers] == [
        row[mask].tolist() for row, mask in zip(table(batch), batch.mask)
    ]  # the same step draws the same answers
    assert len({tuple(answer.ids) for answer in answers}) > 1
    torch.testing.assert_close(rollout.old_logps, rollout.reference_logps)
    again = generate(trainer.model, encoding, PROMPTS[:1] * 4, max_new_tokens=6, seed=0)
    assert [answer.ids for answer in again] != [answer.ids for answer in answers]


def table(batch):
    return batch.table(batch.targets)


def test_each_step_draws_other_answers(make):
    trainer = make()
    first = trainer.sample(PROMPTS)
    trainer.global_step += 1
    second = trainer.sample(PROMPTS)
    assert [answer.ids for answer in first] != [answer.ids for answer in second]


# The critic


def test_the_critics_loss_moves_no_weight_of_the_policy(make):
    trainer = make("ppo")
    rollout, ((_, batch),) = trainer.rollout(PROMPTS[:2])
    trainer.optimizer.zero_grad()
    trainer.teach_critic(answer_states(trainer.model, batch), batch, rollout, len(rollout.scores))
    assert all(parameter.grad is None for parameter in trainer.parameters)
    assert all(parameter.grad.abs().sum() > 0 for parameter in trainer.critic.parameters())


def test_the_critic_comes_to_expect_the_reward(make):
    trainer = make("ppo", score=lambda p, answers: [1.0] * len(answers), steps=24, value_learning_rate=0.05, beta=0.0)
    rows = trainer.train(progress=False).rows
    assert rows[-1]["loss/value_avg"] < 0.2 * rows[0]["loss/value_avg"]


def test_only_ppo_has_a_critic(make):
    assert {name for name in METHODS if make(name).critic} == {"ppo"}


def test_reinforce_keeps_a_running_mean_of_its_rewards(make):
    trainer = make("reinforce", steps=2, baseline_decay=0.75, beta=0.0)
    rows = trainer.train(progress=False).rows
    first, second = (row["objective/scores"] for row in rows)
    assert trainer.baseline == pytest.approx(0.75 * first + 0.25 * second, abs=1e-6)


# Runs


def test_the_same_seed_gives_the_same_run_and_another_seed_another(make):
    one, same, other = make(), make(), make(seed=2)
    for trainer in (one, same, other):
        trainer.train(progress=False)
    assert same_weights(one.model, same.model) and one.history == same.history
    assert not same_weights(one.model, other.model)


@pytest.mark.parametrize("method", ["reinforce", "ppo", "rloo"])
def test_resume_equals_never_having_stopped(make, tmp_path, method):
    whole = make(method, tmp_path / "whole", log_every=3)
    whole.train(progress=False)
    make(method, tmp_path / "parts", log_every=3, steps=2).train(progress=False)
    parts = make(method, tmp_path / "parts", log_every=3)
    parts.train(progress=False, resume=True)
    assert same_weights(whole.model, parts.model) and parts.global_step == 4
    assert whole.history.rows[-1] == parts.history.rows[-1] and whole.baseline == parts.baseline
    if whole.critic:
        assert same_weights(whole.critic, parts.critic)


def test_a_run_leaves_its_model_its_rows_and_its_settings(make, tmp_path, tiny_model):
    trainer = make("grpo", tmp_path, save_every=2)
    trainer.train(progress=False)
    assert same_weights(GPT.from_pretrained(tmp_path / "final"), trainer.model)
    assert (tmp_path / "history.jsonl").read_text().count("\n") == 4
    assert '"method": "grpo"' in (tmp_path / "config.json").read_text()
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-000002", "step-000004"]


def test_ctrl_c_ends_after_the_step_with_a_checkpoint(make, tmp_path):
    trainer = make(output=tmp_path)
    step = trainer.step

    def interrupting(prompts):
        if trainer.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(prompts)

    trainer.step = interrupting
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 2; saved as .*step-000002"):
        trainer.train(progress=False)
    with pytest.raises(InputError, match="an earlier run that is not finished"):
        make(output=tmp_path).train(progress=False)
    whole = make()
    whole.train(progress=False)
    resumed = make(output=tmp_path)
    resumed.train(progress=False, resume="auto")
    assert same_weights(whole.model, resumed.model)


def test_what_was_learned_before_a_score_failed_is_saved(make, tmp_path, capsys):
    scored = []

    def failing(prompts, answers):
        scored.append(len(answers))
        return letters(prompts, answers) if len(scored) < 3 else 1 / 0

    with pytest.raises(ZeroDivisionError):
        make(output=tmp_path, score=failing).train(progress=False)
    assert "stopped after step 2; saved as" in capsys.readouterr().err
    resumed, whole = make(output=tmp_path), make()
    resumed.train(progress=False, resume=True)
    whole.train(progress=False)
    assert same_weights(resumed.model, whole.model) and resumed.history == whole.history


def test_what_is_not_the_same_run_is_not_resumed(make, tmp_path):
    with pytest.raises(InputError, match="to resume from; start without resume"):
        make(output=tmp_path).train(progress=False, resume=True)
    make(output=tmp_path, steps=1).train(progress=False)
    with pytest.raises(InputError, match=r"written with other settings .beta is 0.3, was 0.1"):
        make(output=tmp_path, beta=0.3).train(progress=False, resume=True)
    with pytest.raises(InputError, match="from other weights or on other prompts"):
        make(output=tmp_path, prompts=["Else?"]).train(progress=False, resume=True)
    make(output=tmp_path, beta=0.3, steps=1).train(progress=False)  # a finished run is replaced


def test_callbacks_see_each_row_add_to_it_and_may_stop_the_run(make):
    def callback(trainer, step, row):
        trainer.stop = step == 2
        return {"eval_wins": row["objective/scores"] * 2}

    rows = make().train(progress=False, callbacks=[callback]).rows
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["eval_wins"] == 2 * row["objective/scores"] for row in rows)


def test_rows_average_the_steps_since_the_row_before(make):
    single = make(beta=0.0).train(progress=False).rows
    double = make(beta=0.0, log_every=2).train(progress=False).rows
    for number, row in enumerate(double):
        pair = single[2 * number : 2 * number + 2]
        assert row["objective/scores"] == pytest.approx(sum(each["objective/scores"] for each in pair) / 2)


def test_the_lines_of_the_console_name_score_and_kl(make, capsys):
    make(steps=1).train()
    assert "step     1/1 | scores: " in (out := capsys.readouterr().out) and "| kl: 0.000 |" in out


@pytest.mark.parametrize(
    ("prompts", "message"), [([], "give at least one"), ("Why?", "in a list"), ([" "], "is blank")]
)
def test_prompts_that_are_none_are_refused(make, prompts, message):
    with pytest.raises(InputError, match=message):
        make(prompts=prompts)


def test_a_gradient_that_is_not_finite_moves_nothing(make, tiny_model):
    trainer = make(score=lambda prompts, answers: [3e38 * (-1) ** i for i in range(len(answers))])
    with pytest.raises(InputError, match="the gradient of step 1 is not finite; lower the learning rate"):
        trainer.train(progress=False)
    assert same_weights(trainer.model, tiny_model)
