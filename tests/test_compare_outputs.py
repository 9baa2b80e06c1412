"""The comparison of notebook outputs refuses what a reader would call another result, and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from compare_outputs import TOKEN, Tolerance, differences, main
from hypothesis import given
from hypothesis import strategies as st
from nbval.plugin import get_sanitize_patterns

ROOT = Path(__file__).resolve().parent.parent
RUN = """\
after 60 updates, means over 3 seeds
           held-out loss   margin/beta    KL   runs
beta 0.02          0.656          4.01  2.97     81
beta 0.05          0.612          3.87  2.69     81
beta 0.1           0.563         -3.51  9.99      9
KL, beta 0.02 minus beta 1: +2.106 [+0.017, +4.038], 0 is outside
gradient 1.00e-05, p = 0.50, in 87% of 1,800 pairs of gpt2
the larger beta, the lower the loss: True"""


def table(text: str) -> str:
    """The same text as an HTML table."""
    rows = ("".join(f"<td>{cell}</td>" for cell in re.split("  +", line)) for line in text.splitlines())
    return "<table>\n" + "\n".join(f"<tr>{row}</tr>" for row in rows) + "\n</table>"


@pytest.fixture(params=["text", "html"])
def compared(request):
    """Compare a run in which some words are replaced; each has to be there."""

    def compare(*changes: tuple[str, str], tags: tuple[str, ...] = (), stored: str = RUN) -> list[str]:
        found = stored
        for old, new in changes:
            assert old in found
            found = found.replace(old, new, 1)
        if request.param == "html":
            return differences(table(stored), table(found), Tolerance.of(tags), html=True)
        return differences(stored, found, Tolerance.of(tags))

    return compare


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("0.656", "0.659", "0.656 is stored, found 0.659; may differ by 0.002, 2 in the last digit"),
        ("0.656", "0.556", "found 0.556"),
        ("0.50,", "0.52,", "may differ by 0.01, 1 in the last digit"),
        ("9.99", "10.2", "found 10.2"),
        ("1.00e-05", "1.00e-04", "found 1.00e-04"),
        ("-3.51", "3.51", "found 3.51"),
        ("+2.106", "-2.106", "found -2.106"),
        ("+2.106", "2.106", "the plus sign is part of the format"),
        ("0.50,", "0.5,", "0.50 is stored, found 0.5;"),
        ("81", "82", "whole numbers have to be equal"),
        ("1,800", "1,801", "whole numbers have to be equal"),
        ("1,800", "1800", "whole numbers have to be equal"),
        ("87%", "88%", "whole numbers have to be equal"),
        ("87%", "87", "is stored, found"),
        ("2.97", "nan", "is stored, found"),
        ("gpt2", "gpt3", "is stored, found"),
        ("True", "False", "is stored, found"),
        ("seeds", "nats", "is stored, found"),
        ("beta 0.05", "beta 0.06", "is stored, found"),
        ("is outside", "\nis outside", "is stored, found"),
    ],
)
def test_another_result_is_refused(compared, old, new, said):
    (problem,) = compared((old, new))
    assert said in problem


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.656", "0.657"),
        ("0.656", "0.654"),
        ("0.50,", "0.49,"),
        ("9.99", "10.0"),
        ("1.00e-05", "1.02e-05"),
        ("1.00e-05", "9.99e-06"),
        ("-3.51", "\N{MINUS SIGN}3.52"),
        ("+4.038", "+4.040"),
    ],
)
def test_rounding_and_padding_pass(compared, old, new):
    assert compared((old, new)) == []
    assert differences(RUN, RUN.replace(old, f"  {new}")) == []


def test_the_message_names_line_label_and_both_numbers():
    (problem,) = differences(RUN, RUN.replace("2.69", "2.75"))
    assert problem.startswith('line 4, "beta 0.05 0.612 3.87 2.69 81": 2.69 is stored, found 2.75')


def test_a_row_in_another_place_is_called_by_its_label(compared):
    lines = RUN.splitlines()
    lines[2], lines[3] = lines[3], lines[2]
    (problem,) = compared((RUN, "\n".join(lines)))
    assert re.search(r"line (\d): .*beta 0.02.* stands in another place, line \d", problem)


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        ("beta 0.1  2.31\nbeta 0.2  2.30", "beta 0.2  2.31\nbeta 0.1  2.30"),
        ("0.1   5  0.50\n0.1  15  0.50\n0.2   5  0.50", "0.1   5  0.50\n0.1  15  0.50\n0.3   5  0.50"),
        ("good  0.61\ncurt  0.60", "curt  0.61\ngood  0.60"),
    ],
)
def test_labels_are_compared_to_the_letter(compared, stored, found):
    assert compared((stored, found), stored=stored)


def test_the_first_number_of_a_list_or_of_a_single_line_is_no_label(compared):
    for stored in ("[1.05, 2.30]\n[1.12, 2.40]", "KL 1.05, length 2.30", "1.05\n1.12"):
        assert compared(("1.05", "1.04"), stored=stored) == []


@pytest.mark.parametrize("number", range(len(RUN.splitlines())))
def test_a_line_that_is_missing_new_or_moved_is_named(compared, number):
    lines = RUN.splitlines()
    rest = lines[:number] + lines[number + 1 :]
    (problem,) = compared((RUN, "\n".join(rest)))
    assert "is missing" in problem
    (problem,) = differences("\n".join(rest), RUN)
    assert f'line {number + 1}: "{" ".join(lines[number].split())}" is not stored' == problem
    (problem,) = compared((RUN, "\n".join([*rest[::-1], lines[number]])))
    assert "stands in another place" in problem


@pytest.mark.parametrize(
    ("stored", "found", "agree"),
    [
        ("[-0.01, +0.52]", "[-0.00, +0.52]", True),
        ("[-0.01, +0.52]", "[+0.00, +0.52]", False),
        ("[+0.00, +0.52]", "[+0.01, +0.52]", True),
        ("[-0.52, -0.01]", "[-0.52, +0.00]", False),
        ("[0.00, 0.04]", "[0.01, 0.04]", False),
        ("[0.01, 0.04]", "[0.02, 0.04]", True),
        ("[-0.01, 0.02, 0.03]", "[0.00, 0.02, 0.03]", True),  # a list
    ],
)
def test_an_interval_says_whether_it_includes_zero(stored, found, agree):
    assert (differences(stored, found) == []) is agree
    assert (differences(found, stored) == []) is agree


@pytest.mark.parametrize(
    ("stored", "found", "agree"),
    [
        ("0.61", "0.609", True),  # round(x, 3)
        ("10", "9.99", True),  # %.3g
        ("1e+03", "999", True),
        ("0.0999", "0.1", True),
        ("9.98", "10.1", False),
        ("0.5", "0.59", False),
        ("0.0", "0.01", False),
        ("0.00", "0.01", True),
        ("0.01", "-0.00", True),
        ("0.01", "-0.01", False),
        ("3", "3.0", False),
    ],
)
def test_another_number_of_digits_is_rounding_or_another_format(stored, found, agree):
    assert (differences(stored, found) == []) is agree
    assert (differences(found, stored) == []) is agree


def test_tags_widen_decimals_and_counts(compared):
    assert compared(("0.656", "0.750"), tags=("within-0.1",)) == []
    assert compared(("0.656", "0.760"), tags=("within-0.1",))
    assert compared(("-3.51", "-3.65"), tags=("within-5%",)) == []
    assert compared(("-3.51", "-3.70"), tags=("within-5%",))
    assert compared(("0.50,", "0.51,"), tags=("within-1%",)) == []  # the last digit stays free
    assert compared(("81", "82"), tags=("within-5%",))
    assert compared(("81", "99"), tags=("sampled-counts",)) == []
    assert compared(("81", "100"), tags=("sampled-counts",))
    assert compared(("81", "86"), tags=("sampled-counts", "within-5%"))
    (problem,) = compared(("+0.017", "-0.017"), tags=("within-0.1",))
    assert problem.endswith("the interval -0.017 to +4.038 includes 0")
    with pytest.raises(ValueError, match="within-5percent"):
        Tolerance.of(["within-5percent"])


@given(st.integers(-99_999, 99_999), st.integers(-4, 4))
def test_two_steps_of_the_last_digit_pass_and_three_do_not(number, step):
    texts = [f"{thousandths / 1000:.3f}" for thousandths in (number, number + step)]
    fewest = min(len(text.lstrip("-0.").replace(".", "")) for text in texts)
    assert (differences(*texts) == []) is (abs(step) <= (1 if fewest < 3 else 2))


@given(st.floats(1e-6, 1e6), st.sampled_from(["{:.3g}", "{:#.3g}", "{:.2e}", "{:.1f}", "{:,.2f}", "{:.0%}"]))
def test_a_last_bit_never_matters_but_to_whole_numbers(number, form):
    texts = [form.format(number), form.format(number * (1 + 2**-52))]
    whole = all(not set(".e") & set(text) for text in texts)
    assert (differences(*texts) == []) is (texts[0] == texts[1] or not whole)


@given(st.text(), st.text())
def test_any_text_equals_itself_and_no_other_words(one, other):
    assert differences(one, one) == []
    shapes = [
        [token[0] for token in TOKEN.finditer(line)] for text in (one, other) for line in [" ".join(text.split())]
    ]
    if shapes[0] != shapes[1] and not any(map(str.isdigit, one + other)):
        assert differences(" ".join(one.split()), " ".join(other.split()))


def test_the_sanitizer_takes_seconds_and_no_unit_of_the_course():
    patterns = get_sanitize_patterns((ROOT / "tests" / "sanitize.cfg").read_text(encoding="utf-8"))
    for text in ("0.5 nats", "3 seeds", "120 steps", "2 tokens", "0.3 score", "1.5 n", "12 samples"):
        cleaned = text
        for pattern, word in patterns:
            cleaned = re.sub(pattern, word, cleaned)
        assert cleaned == text
    assert re.sub(*patterns[-1], "took 0.5 s") == "took TIME"


def notebook(path: Path, *cells: tuple[str, str, list[str]]) -> Path:
    """Write a notebook whose stored outputs may be untrue."""
    new = nbformat.v4
    codes = []
    for count, (source, output, tags) in enumerate(cells, 1):
        codes.append(new.new_code_cell(source, execution_count=count, metadata={"tags": tags}))
        codes[-1].outputs = [new.new_output("stream", name="stdout", text=output)]
    nbformat.write(new.new_notebook(cells=codes), path)
    return path


def test_plain_nbval_takes_it_up_also_in_a_copy(tmp_path):
    shutil.copy(ROOT / "conftest.py", tmp_path)
    shutil.copy(ROOT / "tools" / "compare_outputs.py", tmp_path)
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "sanitize.cfg", tmp_path / "tests")
    notebook(
        tmp_path / "chapter.ipynb",
        ("print('device: cpu (2 cores)')", "device: cpu (64 cores)\n", []),
        ("print('KL   0.02904 nats')", "KL 0.02905 nats\n", []),
        ("print('KL   0.02904 nats')", "KL 0.02908 nats\n", []),
        ("print('KL   0.02904 nats')", "KL 0.02908 nats\n", ["within-0.1"]),
        ("import sys; print('81 of 100'); print('late', file=sys.stderr)", "80 of 100\n", []),
    )
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-p", "no:cacheprovider", "-q"]
    done = subprocess.run([*command, "chapter.ipynb"], cwd=tmp_path, capture_output=True, text=True)
    assert "2 failed, 3 passed" in done.stdout, done.stdout + done.stderr
    assert 'Cell 2, stdout, line 1, "KL 0.02908 nats": 0.02908 is stored, found 0.02904' in done.stdout
    assert "Cell 4, 0 outputs of stderr are stored, found 1" in done.stdout


def test_two_files_can_be_compared_without_running_them(tmp_path, capsys):
    stored = notebook(tmp_path / "stored.ipynb", ("kl()", "KL 0.50", []), ("look()", "1", ["nbval-ignore-output"]))
    rounded = notebook(tmp_path / "rounded.ipynb", ("kl()", "KL 0.51", []), ("look()", "2", []))
    wrong = notebook(tmp_path / "wrong.ipynb", ("kl()", "KL 0.53", []), ("look()", "2", []))
    assert main(str(stored), str(rounded)) == 0
    assert main(str(stored), str(wrong)) == 1
    assert "Cell 0, stdout, line 1" in capsys.readouterr().out
    other = notebook(tmp_path / "other.ipynb", ("loss()", "KL 0.50", []))
    with pytest.raises(ValueError, match="has other code"):
        main(str(stored), str(other))
