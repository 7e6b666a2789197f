import torch

from sparsemm_eval.model_wrappers.answering.answerer import StopTexts, cut_text, cut_tokens


def test_tokens_end_with_the_end_token():
    assert cut_tokens([4, 5, 2, 9, 9], ends=[2, 3], pad=0) == [4, 5, 2]
    assert cut_tokens([4, 3, 2], ends=[2, 3], pad=0) == [4, 3]
    assert cut_tokens([4, 5, 0, 0], ends=[2], pad=0) == [4, 5]
    assert cut_tokens([4, 0, 0], ends=[0], pad=0) == [4, 0]
    assert cut_tokens([4, 5], ends=[2], pad=0) == [4, 5]
    assert cut_tokens([], ends=[2], pad=0) == []


def test_text_ends_before_the_first_stop_text():
    assert cut_text("one two three", ["three", "two"]) == "one "
    assert cut_text("one two", []) == "one two"
    assert cut_text("one two", ["four"]) == "one two"


class _Letters:
    """One letter per token."""

    def batch_decode(self, rows, skip_special_tokens):
        return ["".join(chr(token) for token in row) for row in rows.tolist()]


def test_rows_stop_on_their_own_and_the_prompt_does_not_count():
    def rows(*texts):
        return torch.tensor([[ord(letter) for letter in text] for text in texts])

    stop = StopTexts(_Letters(), ["end"], prompt_tokens=3)
    assert stop(rows("endab", "abcde"), None).tolist() == [False, False]
    assert stop(rows("abcxend", "abcxxxx"), None).tolist() == [True, False]
    assert stop(rows("abc" + "x" * 50 + "end"), None).tolist() == [True]
