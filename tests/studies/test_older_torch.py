"""The page on an older torch shows what differs, and nothing else."""

from dataclasses import replace

from older_torch import page
from xentcheck.results.record import Results
from xentcheck.run.verdict import Fault, Verdict

RIGHT = Verdict("mine", "plain-values", "plain-values/one", "loss", "pass")


def results(torch, *verdicts, complete=True):
    environment = {"torch": torch, "python": "3.11.7", "capability": "AVX2"}
    return Results({"environment": environment, "implementations": {"mine": {}}}, verdicts, complete=complete)


def test_a_verdict_that_differs_is_shown_with_its_message():
    wrong = replace(RIGHT, status="fail", fault=Fault("value", expected="1", found="2"))
    text = page(results("2.13.0", RIGHT), results("2.6.0", wrong))
    assert "| plain-values | loss | pass | fail | `mine` | 1 | `plain-values/one`: expected 1; found 2 |" in text
    assert "| `mine` | 1 | 0 | 1 | 1 |" in text
    assert "did not end" not in text


def test_equal_verdicts_are_counted_only():
    text = page(results("2.13.0", RIGHT), results("2.6.0", RIGHT, complete=False))
    assert text.count("plain-values/one") == 0
    assert "| `mine` | 1 | 0 | 0 | 0 |" in text
    assert "did not end" in text


def test_what_the_older_torch_does_not_have_is_one_word():
    away = replace(RIGHT, status="unavailable", reason="torch 2.6.0 has no such function")
    text = page(results("2.13.0", RIGHT), results("2.6.0", away))
    assert "| `mine` | 1 | 0 | 0 | not there |" in text
    assert text.count("plain-values/one") == 0
