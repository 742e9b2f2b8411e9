"""The pages of costs: from records to tables and plots, whatever is missing."""

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from cost_material import broken, memory, results, speed
from xentcheck import cli
from xentcheck.cost.measurement import PHASES, Measurement
from xentcheck.publish.costs import _front, write
from xentcheck.results.merge import save
from xentcheck.results.record import RecordError


def as_measured(measured, case, shape=(64, 100), ignored=0.0, name="mine", units=(0.4, 0.9), whole=None, **more):
    size = math.prod(shape) * 4
    valid = int(size * (1 - ignored))
    moved = {"copied": 2 * valid, "filled": size - valid}
    profile = case.split("/")[0]
    values = dict(measured) | {
        "implementation": name,
        "case": case,
        "logits": {"shape": shape, "dtype": "float32", "bytes": size},
        "profile": "sweeps" if profile.startswith("over-") else profile,
        "error_units": dict(zip(("loss", "gradient"), units, strict=True)),
    }
    if measured.timing:
        lanes = {
            lane: {phase: samples["both"] for phase in whole or PHASES}
            for lane, samples in measured.timing.rounds.items()
            if name != "native" or lane != "candidate"
        }
        values["timing"] = {
            **dict(measured.timing),
            "rounds": lanes,
            "bandwidth": {"copy": 2 * size, "fill": size},
            "first": {(whole or ["both"])[-1]: 7.0},
            "must_move": {"forward": {"copied": valid, "filled": 0}, "backward": moved, "both": moved},
        }
    return Measurement(**values | more)


def lines():
    found = []
    for case, shape, ignored in (
        ("quick/one", (64, 100), 0.0),
        ("lm/vocabulary-32k", (64, 1000), 0.1),
        ("over-classes/classes[1]", (64, 128), 0.1),
        ("over-classes/classes[2]", (8, 1024), 0.1),
        ("over-positions/positions[1]", (1, 1000), 0.0),
        ("over-positions/positions[2]", (100, 1000), 0.0),
        ("over-ignored/scattered[0.5]", (10, 1000), 0.5),
        ("over-ignored/suffix[5]", (10, 1000), 0.5),
    ):
        for name, ratio in (("native", 1.0), ("mine", 0.5), ("slow", 1.5)):
            found.append(as_measured(speed(ratio, seed=len(found)), case, shape, ignored, name))
            found.append(as_measured(memory(), case, shape, ignored, name))
    return found


def made(tmp_path, some, **more):
    run = results(*some, **more)
    run.run["implementations"] |= {
        "native": {"version": "2", "capabilities": []},
        "slow": {"version": "", "capabilities": []},
    }
    run.run["environment"] = {"torch": "2.13", "cpu": "a CPU", "os": "an OS"}
    return write(run, tmp_path)


def test_what_overwrites_the_logits_is_marked(tmp_path):
    some = lines()
    made(tmp_path / "plain", some)
    made(tmp_path / "marked", [m.model_copy(update={"overwrites": m.implementation == "slow"}) for m in some])
    for page in ("speed.md", "memory.md"):
        assert "fresh ones" not in (tmp_path / "plain" / page).read_text()
        text = (tmp_path / "marked" / page).read_text()
        assert text.count("`slow` *") == 8
        assert text.count("` *") == 8
        assert "\n\\* is known to overwrite the logits" in text


def test_a_forward_pass_alone_has_no_other_figures(tmp_path):
    some = [
        as_measured(speed(ratio), "lm/one-forward", name=name, whole=["forward"])
        for name, ratio in (("native", 1.0), ("mine", 0.5))
    ]
    made(tmp_path, some)
    rows = [line.split("|")[2:-1] for line in (tmp_path / "speed.md").read_text().splitlines() if "one-forward" in line]
    first, second = ([cell.strip() for cell in row] for row in rows)
    assert first[:4] == ["`native`", "1", "", ""]
    assert re.match(r"0\.[45]\d* \(", second[1])
    assert second[2:4] == ["", ""]
    assert all(cells[4] and cells[5] for cells in (first, second))


def test_what_no_device_was_at_hand_for_says_how_to_measure_it(tmp_path):
    away = {"status": "unavailable", "message": "no cuda device here"}
    some = [
        broken(as_measured(measured, case, name=name), **away)
        for measured in (speed(1.0), memory())
        for case in ("cuda/one", "cuda/two")
        for name in ("native", "mine")
    ]
    made(tmp_path, [*lines(), *some])
    for page in ("speed.md", "memory.md"):
        (said,) = re.findall(r"## cuda\n\n(.*?)```\n\n", (tmp_path / page).read_text(), re.DOTALL)
        assert said.startswith("**Not measured**: no cuda device here. The cases: `cuda/one`, `cuda/two`.")
        assert "--impl native,mine --profile cuda --device cuda" in said
    (tmp_path / "library").mkdir()
    made(tmp_path / "library", [broken(as_measured(speed(1.0), "quick/one"), **away)])
    assert cells((tmp_path / "library/speed.md").read_text(), "quick/one", "mine")[2].startswith("unavailable")


def cells(text, case, implementation):
    row = next(r for r in text.splitlines() if r.startswith("|") and f"`{case}`" in r and f"`{implementation}`" in r)
    return [cell.strip() for cell in row.split("|")[1:-1]]


@pytest.mark.usefixtures("drawn")
def test_every_page_and_plot_is_written_and_linked(tmp_path):
    paths = made(tmp_path, lines())
    names = {p.name for p in paths}
    assert names == {
        "speed.md",
        "memory.md",
        "memory.svg",
        "speed-over-classes.svg",
        "speed-over-positions.svg",
        "speed-over-ignored.svg",
        "speed-limit.svg",
        "speed-accuracy.svg",
    }
    text = "".join((tmp_path / page).read_text() for page in ("speed.md", "memory.md"))
    assert {*re.findall(r"\]\((\S+\.svg)\)", text)} == {n for n in names if n.endswith(".svg")}
    for path in paths:
        if path.suffix == ".svg":
            assert ET.fromstring(path.read_text()).tag.endswith("svg")


def test_a_row_of_speed(tmp_path):
    made(tmp_path, lines())
    text = (tmp_path / "speed.md").read_text()
    _, _, forward, _, both, limit, first = cells(text, "quick/one", "mine")
    assert forward == both
    assert re.fullmatch(r"0\.\d+ \(0\.\d+ to 0\.\d+\)", both)
    assert limit == "0.50"  # half a second where moving the bytes takes one
    assert first == "14"
    assert cells(text, "quick/one", "native")[2:5] == ["1", "1", "1"]
    assert re.search(r"`native` over `native` within \d\.\d % in the median, \d\.\d % at worst", text)
    assert "Threads: 1; transparent huge pages: madvise" in text
    assert "`OMP_NUM_THREADS=1`" in text


def test_each_run_is_named_with_its_machine(tmp_path):
    runs = [("2026-01-02", "a CPU", None), ("2026-01-01", "a CPU", None), ("2026-01-03", "a CPU", "a GPU")]
    run = results(*lines())
    run.run["environment"] = {"torch": "2.13", "cpu": "a CPU", "os": "an OS"}
    where = [{"started": s, "environment": run.run["environment"] | {"cpu": c, "gpu": g}} for s, c, g in runs]
    write(replace(run, runs=tuple(where)), tmp_path)
    text = (tmp_path / "speed.md").read_text()
    assert "Started 2026-01-01, 2026-01-02; torch 2.13, a CPU, an OS.\n" in text
    assert "Started 2026-01-03; torch 2.13, a CPU, a GPU, an OS.\n" in text


def test_a_row_of_memory(tmp_path):
    one = as_measured(memory(forward=25600, kept=25600, backward=51200), "quick/one")
    two = as_measured(memory(uncounted=2**30), "quick/two")
    three = as_measured(memory(forward=25600, backward=51200, held=25600), "quick/three")
    made(tmp_path, [one, two, three])
    text = (tmp_path / "memory.md").read_text()
    assert cells(text, "quick/three", "mine")[3] == "1.00, 1.00 of it held"
    assert cells(text, "quick/one", "mine")[2:] == ["25 KiB", "1.00", "1.00", "2.00", "0.00"]
    assert cells(text, "quick/two", "mine")[5] == "0.01 and 1 GiB more"
    assert not (tmp_path / "speed.md").exists()


def test_what_fails_shows_its_failure_and_no_figure(tmp_path):
    wrong = {"status": "fail", "message": "expected a loss of 1.0; found 2.0 | 3"}
    of_speed = broken(speed(), case="lm/vocabulary-32k", profile="lm", **wrong)
    made(tmp_path, [*lines(), of_speed, broken(memory(), case="quick/one", **wrong)])
    for page in ("speed.md", "memory.md"):
        text = (tmp_path / page).read_text()
        assert "fail: expected a loss of 1.0; found 2.0 \\| 3" in text


def test_a_small_difference_prints_as_none(tmp_path):
    same = as_measured(speed(1.004, noise=0.002), "quick/one")
    made(tmp_path, [same])
    assert cells((tmp_path / "speed.md").read_text(), "quick/one", "mine")[4] == "~"


def test_the_front_is_what_none_beats_in_both():
    some = [
        as_measured(speed(ratio, noise=0.0001), "lm/vocabulary-32k", name=name, units=(units, 0))
        for name, ratio, units in (("fast", 0.5, 2.0), ("exact", 2.0, 0.1), ("neither", 2.1, 1.0), ("middle", 1.0, 1.0))
    ]
    assert {c.name for c in _front(some) if c.on_front} == {"fast", "exact", "middle"}


def test_profiles_stand_in_the_order_that_people_know(tmp_path):
    made(tmp_path, list(reversed(lines())))
    text = (tmp_path / "speed.md").read_text()
    assert text.index("## quick") < text.index("## lm") < text.index("## sweeps in numbers")


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")
def test_plots_are_the_same_each_time(tmp_path):
    one, two = (made(tmp_path / name, lines()) for name in ("one", "two"))
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


def test_a_run_without_costs_has_no_pages(tmp_path):
    with pytest.raises(RecordError, match="expected results that hold costs"):
        write(results(), tmp_path)


def test_a_truncated_run_says_so(tmp_path):
    made(tmp_path, lines(), complete=False)
    assert "This run did not end" in (tmp_path / "speed.md").read_text()


def test_the_command_writes_pages_of_costs_alone(tmp_path, capsys):
    run = results(*[m for m in lines() if m.implementation == "mine"], verdicts=())
    run.run["environment"] = {"torch": "2.13", "cpu": "a CPU", "os": "an OS"}
    save(run, tmp_path / "results")
    assert cli.main(["report", str(tmp_path / "results"), "--to", str(tmp_path / "pages")]) == 0
    assert "speed.md" in capsys.readouterr().out
    assert not (tmp_path / "pages" / "README.md").exists()
