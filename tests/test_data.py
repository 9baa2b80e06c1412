import gzip
import json
from itertools import islice

import pytest
from tiny import byte_encoding

from dpo_core.data import EncodedPair, audit_pairs, batches, by_length, collate, encode_pair, split_by_prompt
from dpo_core.errors import InputError
from dpo_core.formats.pairs import PreferencePair, load_pairs, save_pairs
from dpo_core.tokenizer import END_OF_TEXT


def pair(prompt="Why?", chosen="Because.", rejected="No.", source=""):
    return PreferencePair(prompt, chosen, rejected, source)


def write(tmp_path, *lines):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return file


def say(*turns):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]


HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
FORMATS = {
    "columns": (
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        ("The sky is", " blue.", " green."),
    ),
    "hh": ({"chosen": HH + " Because.", "rejected": HH + " Be off!"}, (HH, "Because.", "Be off!")),
    "implicit prompt, cut at a space": (
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        ("The sky is", " blue.", " black."),
    ),
    "implicit prompt, cut at a line break": (
        {"chosen": "Why?\nBecause.", "rejected": "Why?\nNo."},
        ("Why?\n", "Because.", "No."),
    ),
    "messages": (
        {
            "prompt": say("Hi", "Hello", "Why?"),
            "chosen": [{"role": "assistant", "content": "Because."}],
            "rejected": [{"role": "assistant", "content": "No."}],
        },
        (HH, "Because.", "No."),
    ),
    "messages with an implicit prompt": (
        {"chosen": say("Hi", "Hello", "Why?", "Because."), "rejected": say("Hi", "Hello", "Why?", "No.")},
        (HH, "Because.", "No."),
    ),
    "UltraFeedback: the prompt as text and again in the messages": (
        {"prompt": "Why?", "chosen": say("Why?", "Because."), "rejected": say("Why?", "No.")},
        ("\n\nHuman: Why?\n\nAssistant:", "Because.", "No."),
    ),
    "messages as prompt, text as answers": (
        {"prompt": say("Why?"), "chosen": "Because.", "rejected": "No."},
        ("\n\nHuman: Why?\n\nAssistant:", "Because.", "No."),
    ),
    "messages with a system turn": (
        {
            "chosen": [{"role": "system", "content": "Be brief."}, *say("Why?", "So.")],
            "rejected": [{"role": "system", "content": "Be brief."}, *say("Why?", "No.")],
        },
        ("\n\nSystem: Be brief.\n\nHuman: Why?\n\nAssistant:", "So.", "No."),
    ),
}


@pytest.mark.parametrize(("record", "texts"), FORMATS.values(), ids=FORMATS)
def test_load_pairs_reads_the_common_formats(tmp_path, record, texts):
    file = write(tmp_path, record)
    (loaded,) = load_pairs(file)
    assert (loaded.prompt, loaded.chosen, loaded.rejected) == texts
    assert loaded.source == f"{file}:1"


GOOD = {"prompt": "Why?", "chosen": "a", "rejected": "b"}
BAD_LINES = {
    "not JSON": ("{'prompt': 1}", "not JSON"),
    "cut off": ('{"prompt": "Why?", "cho', "not JSON"),
    "not an object": ("[1, 2]", "not an object but [1, 2]"),
    "no rejected": ({"prompt": "Why?", "chosen": "a", "label": True}, 'no "rejected" (the line has prompt, chosen'),
    "null": (GOOD | {"chosen": None}, '"chosen" is null'),
    "number": (GOOD | {"prompt": 7}, '"prompt" is 7'),
    "empty prompt": (GOOD | {"prompt": ""}, '"prompt" is empty'),
    "blank answer": (GOOD | {"rejected": " \n"}, '"rejected" is empty'),
    "unknown role": (
        {"chosen": [{"role": "robot", "content": "a"}], "rejected": say("Why?", "b")},
        '"chosen" has the role "robot"; known are system, user',
    ),
    "role of another type": (
        {"chosen": [{"role": [], "content": "a"}], "rejected": say("Why?", "b")},
        '"chosen" has the role []',
    ),
    "message without content": (
        {"prompt": say("Why?"), "chosen": [{"role": "assistant"}], "rejected": say("Why?", "b")},
        '"chosen" holds {"role": "assistant"}',
    ),
    "other dialogues": ({"chosen": say("Why?", "a"), "rejected": say("Who?", "b")}, "same dialogue"),
    "no prompt at all": ({"chosen": "Because.", "rejected": "No."}, "do not begin with the same words"),
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named_with_its_place(tmp_path, line, message):
    file = write(tmp_path, GOOD, "", line, line)
    with pytest.raises(InputError) as error:
        load_pairs(file)
    assert f"{file}:3: " in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(("line", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_one_bad_line_is_dropped_by_name(tmp_path, encoding, line, message):
    file = write(tmp_path, GOOD, line)
    with pytest.warns(UserWarning, match=r"dropped .*pairs.jsonl:2: "):
        pairs = load_pairs(file)
    assert pairs == [pair(chosen="a", rejected="b")]
    report = audit_pairs(pairs, encoding, max_length=30).report()
    assert "1 pairs kept, 1 dropped" in report and message in report and f"({file}:2)" in report


@pytest.mark.parametrize(("good", "bad", "read"), [(18, 2, True), (17, 2, False), (9, 1, True), (1, 1, True)])
def test_more_than_one_bad_line_in_ten_refuse_the_file(tmp_path, good, bad, read):
    file = write(tmp_path, *[GOOD] * good, *["nonsense"] * bad)
    if read:
        with pytest.warns(UserWarning):
            assert len(load_pairs(file)) == good
    else:
        with pytest.raises(InputError, match=f"{bad} bad lines"):
            load_pairs(file)


def test_all_bad_lines_are_reported_at_once_up_to_twenty(tmp_path):
    with pytest.raises(InputError) as error:
        load_pairs(write(tmp_path, *["nonsense"] * 25, GOOD))
    assert str(error.value).startswith("25 bad lines")
    assert str(error.value).count("not JSON") == 20
    assert "and 5 more" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file"),
        (b"", "no pairs in it"),
        (b"\n  \n", "no pairs in it"),
        (b'{"prompt": "a",\n"\xff"}', "pairs.jsonl:2: not UTF-8"),
    ],
)
def test_a_file_without_pairs_is_an_error(tmp_path, content, message):
    file = tmp_path / "pairs.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_pairs(file)
    assert message in str(error.value)


@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf"])
def test_pairs_survive_the_disk(tmp_path, prefix):
    file = tmp_path / "new" / "pairs.jsonl"
    written = [pair("Grüße?\u2028", "a\nb", "日本"), pair()]
    save_pairs(file, written)
    file.write_bytes(prefix + file.read_bytes())
    assert load_pairs(file) == written
    assert "日本" in file.read_text(encoding="utf-8-sig")
    assert [f.name for f in file.parent.iterdir()] == ["pairs.jsonl"]


def test_packed_files_are_read_and_damaged_ones_named(tmp_path):
    plain = write(tmp_path, {"prompt": "Why?", "chosen": "Because.", "rejected": "No."})
    packed = gzip.compress(plain.read_bytes())
    file = tmp_path / "pairs.jsonl.gz"
    file.write_bytes(packed)
    assert load_pairs(file) == load_pairs(plain)
    file.write_bytes(packed[:-12])
    with pytest.raises(InputError, match=r"pairs\.jsonl\.gz:.*cannot be read"):
        load_pairs(file)
    file.write_bytes(plain.read_bytes())  # its bytes count, not its name
    assert load_pairs(file) == load_pairs(plain)


def test_a_failing_save_leaves_the_old_file(tmp_path):
    file = tmp_path / "pairs.jsonl"
    save_pairs(file, [pair()])

    def failing():
        yield pair("other")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        save_pairs(file, failing())
    assert load_pairs(file) == [pair()]


def test_an_unwritable_place_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        save_pairs(tmp_path / "file" / "pairs.jsonl", [pair()])


# Tokens


@pytest.mark.parametrize(
    ("given", "prompt", "chosen"),
    [
        (pair("Why?", "Yes", "No"), "Why?\n", "Yes"),
        (pair("Assistant:", "Yes", "No"), "Assistant:", " Yes"),
        (pair("The sky is", " blue", " red"), "The sky is", " blue"),
        (pair("Why?", " Yes", " No"), "Why?", " Yes"),
        (pair("Why?", " Yes", "No"), "Why?\n", "Yes"),
        (pair("Why?", "Yes</s>", "No<|endoftext|> \n"), "Why?\n", "Yes"),
        (pair("Why?", "Yes<|endoftext|>", "No<|endoftext|>"), "Why?\n", "Yes"),
    ],
)
def test_answers_end_in_exactly_one_end_of_text(encoding, given, prompt, chosen):
    encoded = encode_pair(encoding, given)
    assert encoding.decode(encoded.prompt) == prompt
    assert encoding.decode(encoded.chosen) == chosen + "<|endoftext|>"
    for ids in (encoded.chosen, encoded.rejected):
        assert ids.count(encoding.eot_token) == 1 and ids[-1] == encoding.eot_token
    assert not encoded.merged


@pytest.mark.parametrize(("prompt", "gap"), [("Why?", "\n"), ("Assistant:", " "), ("Why? ", ""), ("Why?\n", "")])
@pytest.mark.parametrize("rejected", [" No.", "\nNo.", "No. ", "No."])
def test_both_answers_have_one_seam(encoding, prompt, gap, rejected):
    """White space that only one answer has would tell the label from its first token."""
    encoded = encode_pair(encoding, pair(prompt, "Because.", rejected))
    plain = encode_pair(encoding, pair(prompt, "Because.", "No."))
    assert (encoded.prompt, encoded.chosen, encoded.rejected) == (plain.prompt, plain.chosen, plain.rejected)
    assert encoding.decode(encoded.prompt + encoded.rejected) == f"{prompt}{gap}No.<|endoftext|>"
    other = encode_pair(encoding, pair(prompt, rejected, "Because."))
    assert (other.prompt, other.chosen, other.rejected) == (encoded.prompt, encoded.rejected, encoded.chosen)


def test_indentation_is_no_seam(encoding):
    encoded = encode_pair(encoding, pair("Code:\n", "    return 1", "return 1"))
    assert encoding.decode(encoded.chosen) == "    return 1<|endoftext|>"
    assert encoding.decode(encoded.rejected) == "return 1<|endoftext|>"


NOTES = {
    "seam": (pair("Why?", "So.", " No."), "different white space at their beginning"),
    "foreign end": (pair("Why?", "So.<|im_end|>", "No."), "another model's end token, which was taken off"),
    "own end inside": (pair("Why?<|endoftext|>Who?", "So.", "No."), "stands within a text and is read as letters"),
    "markers": (pair("<|im_start|>user\nWhy?", "So.", "No."), "another model's chat markers"),
    "prompt in one": (pair("Why is it?", "Why is it? So.", "No."), "only one answer begins with the whole prompt"),
    "prompt in both": (pair("It is", "It is so.", "It is not."), "both answers begin with the whole prompt"),
}


@pytest.mark.parametrize(("given", "note"), NOTES.values(), ids=NOTES)
def test_what_is_odd_in_a_text_is_noted(encoding, given, note):
    assert [note in found for _, found in audit_pairs([given], encoding, 80).noted] == [True]
    assert not audit_pairs([pair("Why?", "So.<|endoftext|>", "No.")], encoding, 80).noted


def test_a_token_across_the_boundary_belongs_to_the_answers():
    encoded = encode_pair(byte_encoding(b" b"), pair("x: ", "b", "c"))
    assert encoded.merged
    assert (encoded.prompt, encoded.chosen, encoded.rejected) == ([*b"x:"], [256, 257], [*b" c", 257])


def test_a_prompt_that_merges_away_keeps_its_tokens():
    encoded = encode_pair(byte_encoding(b" b", b" c"), pair(" ", "b", "c"))
    assert encoded.merged
    assert (encoded.prompt, encoded.chosen, encoded.rejected) == ([32], [98, 258], [99, 258])


LONG = "x" * 40
AUDITS = {
    "duplicate": ([pair(), pair()], ["pair 2"], "repeats an earlier pair"),
    "no prompt": ([pair(), pair("", "a", "b")], ["pair 2"], "the prompt is empty"),
    "no answer": ([pair(), pair("Who?", "a", END_OF_TEXT)], ["pair 2"], "an answer is empty"),
    "same answers": ([pair(), pair("Who?", "a", "a")], ["pair 2"], "the answers are the same"),
    "long prompt": ([pair(LONG), pair()], ["pair 1"], "the prompt leaves no room"),
    "same within": ([pair(), pair("Who?", LONG + "a", LONG + "b", "f:9")], ["f:9"], "the same within 30 tokens"),
}


@pytest.mark.parametrize(("given", "sources", "reason"), AUDITS.values(), ids=AUDITS)
def test_audit_drops_what_teaches_nothing(encoding, given, sources, reason):
    audit = audit_pairs(given, encoding, max_length=30)
    assert [dropped.source for dropped, _ in audit.dropped] == sources
    assert reason in audit.dropped[0][1]
    assert len(audit.kept) == len(given) - 1
    assert f"dropped: 1 x {audit.dropped[0][1]} ({sources[0]})" in audit.report()


def test_repeats_beside_the_opposite_verdict_are_votes(encoding):
    votes = [pair("Q", "a", "b")] * 3 + [pair("Q", "b", "a")]
    audit = audit_pairs([*votes, *[pair("P", "a", "b")] * 2], encoding, max_length=30)
    assert [encoded.pair.prompt for encoded in audit.kept] == ["Q"] * 4 + ["P"]
    assert {reason for _, reason in audit.noted} == {"the same answers are also there the other way round"}


def test_a_further_turn_in_an_answer_is_noted(encoding):
    turns = "A.\n\nHuman: Thanks"
    audit = audit_pairs([pair("Q", turns, "B.")], encoding, max_length=60)
    assert [reason for _, reason in audit.noted] == ["an answer holds a further turn of the user"]


@pytest.mark.parametrize(("prompt_tokens", "kept"), [(28, 1), (29, 0)])
def test_at_least_two_tokens_are_left_for_answers(encoding, prompt_tokens, kept):
    given = [pair("x" * (prompt_tokens - 1), "a", "b"), pair()]
    assert len(audit_pairs(given, encoding, max_length=30).kept) == kept + 1


def test_audit_cuts_long_answers_and_notes_it(encoding):
    audit = audit_pairs([pair("Why?", LONG, "No.")], encoding, max_length=30)
    (encoded,) = audit.kept
    assert len(encoded.prompt) + len(encoded.chosen) == 30
    assert encoding.eot_token not in encoded.chosen
    assert encoded.rejected[-1] == encoding.eot_token
    assert audit.noted == [(encoded.pair, "an answer was cut at 30 tokens")]


def test_audit_notes_contradictions_and_merges():
    given = [pair("x: ", "a", "b"), pair("x: ", "b", "a"), pair("y", "a", "b")]
    audit = audit_pairs(given, byte_encoding(b" b"), max_length=30)
    notes = {note: [p.source for p, other in audit.noted if other == note] for _, note in audit.noted}
    assert notes == {
        "the same answers are also there the other way round": ["pair 1", "pair 2"],
        "prompt and answer merge into one token at their boundary": ["pair 1", "pair 2"],
    }


def test_audit_report_names_three_places_and_the_lengths(encoding):
    given = [*[pair("Q", "a", "a", f"f:{i}") for i in range(4)], pair("Q", "abc", "b"), pair("P", "a", "b")]
    report = audit_pairs(given, encoding, max_length=30).report()
    assert "2 pairs kept, 4 dropped" in report
    assert "3 x repeats an earlier pair (f:1, f:2, f:3)" in report
    assert "mean length: chosen 3.0 tokens, rejected 2.0; chosen is longer in 50%" in report


@pytest.mark.parametrize("given", [[], [pair("Q", "a", "a")]])
def test_audit_refuses_to_leave_nothing(encoding, given):
    with pytest.raises(InputError, match="no preference pair is left"):
        audit_pairs(given, encoding, max_length=30)


def encoded_for(prompts):
    return [EncodedPair([1], [2], [3], pair(prompt, str(i))) for i, prompt in enumerate(prompts)]


@pytest.mark.parametrize(("share", "prompts_held"), [(0.0, 0), (0.01, 1), (0.3, 3), (0.99, None)])
def test_split_puts_no_prompt_on_both_sides(share, prompts_held):
    encoded = encoded_for(list("abcdefghij") * 3)
    if prompts_held is None:
        with pytest.raises(InputError, match="10 different prompts cannot be divided"):
            split_by_prompt(encoded, share, seed=0)
        return
    train, held_out = split_by_prompt(encoded, share, seed=0)
    assert len({e.pair.prompt for e in held_out}) == prompts_held
    assert not {e.pair.prompt for e in held_out} & {e.pair.prompt for e in train}
    assert sorted(e.pair.chosen for e in train + held_out) == sorted(e.pair.chosen for e in encoded)
    assert (train, held_out) == split_by_prompt(encoded, share, seed=0)


def test_split_keeps_spellings_of_a_prompt_together():
    encoded = encoded_for(["Why?", "why", " WHY ?!", "Who?", "who.", "Which?"])
    train, held_out = split_by_prompt(encoded, 0.4, seed=0)
    words = [{e.pair.prompt.strip(" ?!.").lower() for e in part} for part in (train, held_out)]
    assert len(train) + len(held_out) == 6 and words[0] and words[1] and not words[0] & words[1]


def test_split_depends_on_the_seed_and_checks_the_share():
    encoded = encoded_for("abcdefghij")
    assert len({split_by_prompt(encoded, 0.3, seed)[1][0].pair.prompt for seed in range(20)}) > 1
    for share in (-0.1, 1.0):
        with pytest.raises(InputError, match="at least 0 and below 1"):
            split_by_prompt(encoded, share, seed=0)


# Batches


def test_batch_by_hand():
    batch = collate([EncodedPair([5, 6], [7, 9], [8, 9], pair()), EncodedPair([5], [9], [4, 4, 9], pair())])
    assert batch.ids.tolist() == [[5, 6, 7, 9, 8, 9], [5, 9, 4, 4, 9, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 2, 3], [0, 1, 1, 2, 3, 0]]
    assert batch.segments.tolist() == [[0, 0, 1, 1, 2, 2], [0, 1, 2, 2, 2, -1]]
    assert batch.unpadded.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert batch.predicts.tolist() == [1, 2, 1, 4, 6, 6, 8, 9]
    assert batch.targets.tolist() == [7, 9, 8, 9, 9, 4, 4, 9]
    assert batch.scatter_to.tolist() == [2, 3, 12 + 4, 12 + 5, 6 + 1, 18 + 2, 18 + 3, 18 + 4]
    assert (batch.chosen_lengths.tolist(), batch.rejected_lengths.tolist()) == ([2, 1], [2, 3])
    assert len(batch) == 2
    assert batch.mask().shape == (2, 1, 6, 6)
    assert batch.mask()[1, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],  # rejected: sees the prompt and itself, not the chosen answer
        [1, 0, 1, 1, 0, 0],
        [1, 0, 1, 1, 1, 0],
        [1, 0, 0, 0, 0, 1],  # padding: itself too, so that its softmax is finite
    ]


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        ([7, 8, 9], [], [(1, 7, 2), (2, 8, 3), (3, 9, 4)]),
        ([], [7, 8, 9], [(1, 7, 5 + 2), (2, 8, 5 + 3), (3, 9, 5 + 4)]),
    ],
)
def test_an_answer_may_be_empty(chosen, rejected, expected):
    batch = collate([EncodedPair([5, 6], chosen, rejected, pair())])
    assert list(zip(*(x.tolist() for x in (batch.predicts, batch.targets, batch.scatter_to)))) == expected
    assert (batch.chosen_lengths.item(), batch.rejected_lengths.item()) == (len(chosen), len(rejected))
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4]]


def test_batch_moves_as_a_whole():
    moved = collate([EncodedPair([5], [9], [4, 9], pair())]).to("meta")
    assert {tensor.device.type for tensor in vars(moved).values()} == {"meta"}


def test_batches_shuffle_anew_each_epoch_and_repeat_with_the_seed():
    epochs = list(islice(batches(10, 4, seed=1), 6))
    first, second = ([i for batch in epoch for i in batch] for epoch in (epochs[:3], epochs[3:]))
    assert [len(batch) for batch in epochs] == [4, 4, 2] * 2
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert epochs == list(islice(batches(10, 4, seed=1), 6))
    assert epochs != list(islice(batches(10, 4, seed=2), 6))


def test_by_length_keeps_all_and_puts_the_longest_first():
    encoded = [EncodedPair([1] * n, [2], [3], pair()) for n in (3, 9, 1, 7, 5)]
    assert by_length(encoded, [0, 1, 3, 4], size=3) == [[1, 3, 4], [0]]
