"""On Colab the labeller's file has a copy on Drive, if that is mounted, and comes back from it; nothing elsewhere."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from dpo_core.course import drive
from dpo_core.course.labeling import LabelSession
from dpo_core.course.verdicts import Comparison
from dpo_core.course.widgets.pair_labeler import PairLabeler

ASKED = [Comparison(f"Ask {i}?", "Yes.", "No.") for i in range(3)]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Starts a fresh Colab machine, with a Drive that outlives it once it is mounted."""
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    monkeypatch.setattr(drive, "DRIVE", tmp_path / "drive" / "MyDrive")
    machines = iter(range(9))

    def start():
        folder = tmp_path / f"machine {next(machines)}"
        folder.mkdir()
        return folder / "my_labels.jsonl"

    return start


@pytest.fixture
def mounted(machine):
    drive.DRIVE.mkdir(parents=True)
    return drive.DRIVE / "dpo_from_scratch"


def label(path, *verdicts) -> PairLabeler:
    labeler = PairLabeler(path, ASKED)
    for verdict in verdicts:
        labeler.session.decide(verdict)
    return labeler


def test_each_choice_is_on_drive_before_the_next_question(machine, mounted):
    path = machine()
    labeler = PairLabeler(path, ASKED)
    for count in range(3):
        assert (mounted / "my_labels.jsonl").read_bytes() == path.read_bytes()
        assert "A copy is on your Drive: MyDrive/dpo_from_scratch/my_labels.jsonl." in labeler.shown["message"]
        assert (mounted / "my_labels.jsonl").read_text().count("verdict") == 2 * count
        labeler.session.decide("left")
    labeler._actions()["export"]()
    assert (mounted / "my_labels.pairs.jsonl").read_bytes() == path.with_suffix(".pairs.jsonl").read_bytes()
    labeler.session.close()


def test_a_new_machine_goes_on_where_the_last_one_vanished(machine, mounted):
    label(machine(), "left", "tie").session.close()
    labeler = label(machine())
    assert labeler.session.progress() == (2, 3)
    assert "back from Drive" in labeler.shown["message"]
    labeler.session.close()


def test_drive_may_be_mounted_after_the_labeller_was_shown(machine):
    drive.DRIVE.mkdir(parents=True)
    label(machine(), "left").session.close()
    drive.DRIVE.rename(drive.DRIVE.with_name("unmounted"))
    path = machine()
    forgetful = label(path)
    assert forgetful.session.progress() == (0, 3)
    said = forgetful.shown["message"]
    assert str(path) in said and "vanishes with the runtime" in said and "mount Drive" in said
    assert not drive.DRIVE.exists()  # nobody mounts it but the reader
    drive.DRIVE.with_name("unmounted").rename(drive.DRIVE)
    again = label(path)  # the cell is run again
    assert again.session.progress() == (1, 3)
    again.session.close()


def test_labels_on_drive_are_never_overwritten_by_others(machine, mounted):
    label(machine(), "left", "tie").session.close()
    first = (mounted / "my_labels.jsonl").read_bytes()
    path = machine()
    with LabelSession(path, ASKED, labeller="somebody else") as session:
        session.decide("right")
    labeler = label(path, "right")
    assert (mounted / "my_labels.jsonl").read_bytes() == first
    assert (mounted / "my_labels-2.jsonl").read_bytes() == path.read_bytes()
    assert "MyDrive/dpo_from_scratch/my_labels-2.jsonl" in labeler.shown["message"]
    labeler.session.close()


def test_a_full_drive_is_said_and_costs_no_label(machine, mounted):
    labeler = label(machine(), "left")
    (mounted / "my_labels.jsonl").unlink()
    (mounted / "my_labels.jsonl").mkdir()  # cannot be written to
    labeler.session.decide("tie")
    said = labeler.shown["message"]
    assert said.startswith("2 saved in my_labels.jsonl. Not copied to Drive (") and "download it" in said
    assert labeler.session.progress() == (2, 3)
    labeler.session.close()


def test_a_log_on_drive_itself_is_not_copied(machine, mounted):
    labeler = label(drive.DRIVE / "mine.jsonl", "left")
    assert labeler.shown["message"] == "1 saved in mine.jsonl."
    assert not mounted.exists()
    labeler.session.close()


def test_anywhere_else_nothing_is_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(drive, "DRIVE", tmp_path)
    labeler = label(tmp_path / "elsewhere" / "labels.jsonl", "left")
    assert labeler.shown["message"] == "1 saved in labels.jsonl."
    assert not (tmp_path / "dpo_from_scratch").exists()
    labeler.session.close()
