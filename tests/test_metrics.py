import pytest
import torch

from dpo_core.errors import InputError
from dpo_core.losses import PairLogps, dpo
from dpo_core.metrics import History, MetricSums, log_line, preference_metrics


def metrics_of(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=0.5):
    four = [torch.tensor(values) for values in (policy_chosen, policy_rejected, reference_chosen, reference_rejected)]
    logps = PairLogps(*four, torch.tensor([3, 4]), torch.tensor([5, 6]))
    return preference_metrics(logps, dpo(logps, beta=beta))


def test_metrics_by_hand():
    metrics = metrics_of([-10.0, -30.0], [-12.0, -20.0], [-11.0, -29.0], [-11.0, -21.0])
    values = {name: tensor.tolist() for name, tensor in metrics.items()}
    assert values.pop("loss") == pytest.approx([0.3132617, 1.3132617])
    assert values == {
        "rewards/chosen": [0.5, -0.5],
        "rewards/rejected": [-0.5, 0.5],
        "rewards/margins": [1.0, -1.0],
        "rewards/accuracies": [1.0, 0.0],
        "logps/chosen": [-10.0, -30.0],
        "logps/rejected": [-12.0, -20.0],
        "logps/chosen_delta": [1.0, -1.0],
        "accuracies/policy": [1.0, 0.0],
        "length/chosen": [3.0, 4.0],
        "length/rejected": [5.0, 6.0],
    }


def test_the_two_accuracies_differ():
    # The policy ranks the first pair wrongly, but less so than the reference; the second the other way round.
    metrics = metrics_of([-20.0, -10.0], [-18.0, -11.0], [-25.0, -10.0], [-18.0, -15.0])
    assert metrics["rewards/accuracies"].tolist() == [1.0, 0.0]
    assert metrics["accuracies/policy"].tolist() == [0.0, 1.0]


def test_equal_policies_have_accuracy_zero():
    metrics = metrics_of([-10.0, -30.0], [-12.0, -20.0], [-10.0, -30.0], [-12.0, -20.0])
    assert metrics["rewards/accuracies"].tolist() == [0.0, 0.0]


def test_means_are_over_pairs_not_over_batches():
    values = torch.randn(10)
    sums = MetricSums()
    for part in values.split([4, 5, 1]):
        sums.add({"loss": part, "twice": 2 * part})
    assert sums.counts == {"loss": 10, "twice": 10}
    assert sums.means() == pytest.approx({"loss": values.mean().item(), "twice": 2 * values.mean().item()}, rel=1e-5)


def test_history_merges_rows_of_a_step_and_finds_columns(tmp_path):
    history = History()
    history.log(0, loss=0.69)
    history.log(10, **{"loss": 0.5, "rewards/margins": 0.1})
    history.log(10, eval_loss=0.6)
    assert [row["step"] for row in history.rows] == [0, 10]
    assert history.column("loss") == ([0, 10], [0.69, 0.5])
    assert history.column("eval_loss") == ([10], [0.6])
    history.to_jsonl(tmp_path / "history.jsonl")
    assert History.from_jsonl(tmp_path / "history.jsonl") == history
    with pytest.raises(InputError, match=r"no metric 'lost'.*eval_loss, loss, rewards/margins, step"):
        history.column("lost")


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"loss": 1}', '{"step": null}', '{"step": 1e999}', "[" * 100_000])
def test_a_damaged_history_is_named_with_its_line(tmp_path, line):
    file = tmp_path / "history.jsonl"
    file.write_text(f'{{"step": 1, "loss": 0.5}}\n{line}\n')
    with pytest.raises(InputError, match=r"history.jsonl:2: not a row"):
        History.from_jsonl(file)


def test_a_missing_history_is_an_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        History.from_jsonl(tmp_path / "history.jsonl")


ROW = {"step": 100, "loss": 0.52, "rewards/margins": 0.35, "rewards/accuracies": 0.75}


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (ROW, "step   100 | loss: 0.5200 | reward_margin: +0.3500 | accuracy: 0.750"),
        (
            ROW | {"step": 7, "rewards/margins": -0.01},
            "step     7 | loss: 0.5200 | reward_margin: -0.0100 | accuracy: 0.750",
        ),
        (
            ROW | {"eval_loss": 0.6, "eval_rewards/accuracies": 0.5},
            "step   100 | loss: 0.5200 | reward_margin: +0.3500 | accuracy: 0.750"
            " | eval_loss: 0.6000 | eval_accuracy: 0.500",
        ),
    ],
)
def test_log_line(row, line):
    assert log_line(row) == line
