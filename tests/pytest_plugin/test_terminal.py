"""What an implementation says of itself, or raises, is shown as text."""

import re

import pytest

from xentcheck.pytest_plugin import terminal
from xentcheck.run.verdict import Fault, Verdict

HOSTILE = "\x1b[2J\x00\x9b31m\x07\r[red]<script>"
LOSS = f"""
from xentcheck.implementation import Deviation, Implementation

HOSTILE = {HOSTILE!r}


def raises(input, target, **options):
    raise RuntimeError(HOSTILE + "x" * 100_000)


known = Deviation("small/*", aspect="loss", fault="raised", observed="it raises", link="https://a.example")
hostile = Implementation(name="one", cross_entropy=raises, deviations=(known,))
away = Implementation(name="two", cross_entropy=raises, unavailable=HOSTILE)
"""
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@pytest.mark.slow
def test_a_run_shows_no_control_character_of_an_implementation(run, tmp_path, write):
    path = tmp_path / "losses.py"
    path.write_text(LOSS)
    case = write("id: one, logits: {shape: [3, 4]}")
    status, screen = run("--impl", f"{path}:hostile,{path}:away", "--cases", case, "-rsx", "--color=no")
    assert status == 1
    assert not CONTROLS.search(screen)
    escaped = r"\x1b[2J\x00\x9b31m\x07\r[red]<script>"
    assert f"(unavailable: {escaped})" in screen
    assert f"RuntimeError in the call: {escaped}" in screen
    assert "xxx..." in screen
    assert len(screen) < 300_000


@pytest.mark.slow
@pytest.mark.parametrize("field", ["name", "version", "description"])
def test_a_declaration_with_control_characters_is_refused_without_showing_them(run, tmp_path, write, field):
    path = tmp_path / "losses.py"
    values = {"name": "two", field: HOSTILE}
    path.write_text(LOSS.replace('name="two"', f"**{values!r}"))
    status, screen = run("--impl", f"{path}:away", "--cases", write("id: one, logits: {shape: [3, 4]}"), "--color=no")
    assert status == 4
    assert not CONTROLS.search(screen)
    assert f"{field}: expected one line without control characters" in screen


def test_a_failure_is_shown_as_text(case):
    fault = Fault("raised", expected="a loss", found=f"RuntimeError in the call: {HOSTILE}\nsecond line")
    one = case("logits: {shape: [3, 4]}")
    verdict = Verdict("one", "small", one.id, "loss", "error", fault=fault)
    implementation = type("", (), {"name": f"one{HOSTILE}", "version": HOSTILE, "source": HOSTILE})
    text = terminal.failure(one, verdict, implementation)
    assert not CONTROLS.search(text)
    assert "\n             second line" in text
