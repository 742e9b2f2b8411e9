"""Results on disk: nothing acknowledged is ever lost, nothing cut off is taken for complete, nothing different is merged."""

import errno
import json
import os
import random
import re
import signal
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from xentcheck.cost.measurement import Logits, Measurement, Timing
from xentcheck.implementation import Deviation, Implementation
from xentcheck.results.merge import merge, save
from xentcheck.results.record import NAME, RecordError, Results, Writer, load
from xentcheck.results.run_line import FORMAT, run_line
from xentcheck.run.status import Status
from xentcheck.run.verdict import Fault, Verdict, to_json

NATIVE = Implementation(
    name="native",
    cross_entropy=len,
    version="2.13",
    empty_mean="nan",
    deviations=(Deviation("a/*", aspect="loss", observed="x", fault="nan", link="y", max_units=5.0),),
)

MEASURED = Measurement(
    measure="speed",
    implementation="native",
    case="speed/one",
    profile="quick",
    source="native",
    question="q",
    device="cpu",
    status="pass",
    logits=Logits(shape=(2, 3), dtype="float32", bytes=24),
    timing=Timing(
        rounds={"native": {"both": (1.0, 2.0)}, "candidate": {"both": (1.5, 2.5)}},
        repetitions=2,
        bandwidth={"copy": 1.0, "fill": 1.0},
        first={"both": 3.0},
        settings={"threads": 1, "huge_pages": "always", "environment": {}},
    ),
)


def header(implementations=(NATIVE,), digest="0123456789abcdef", **changes):
    return run_line(list(implementations), [], "all") | {"cases": digest} | changes


def verdict(number=0, status="pass", aspect="loss", implementation="native", **more):
    return Verdict(implementation, "small", f"small/case-{number}", aspect, status, **more)


def written(folder, *verdicts, complete=True, **changes):
    writer = Writer(folder, header(**changes))
    for one in verdicts:
        writer.verdict(one)
    writer.close(complete)
    return folder


def lines(folder):
    return (folder / NAME).read_bytes().splitlines(keepends=True)


def rewrite(folder, content):
    (folder / NAME).write_bytes(b"".join(content))


# --- round trip


def test_what_is_written_is_what_is_read(tmp_path):
    verdicts = [
        verdict(0, error_units=0.25, dtype="float32", conventions={"empty_mean": "nan"}),
        verdict(1, "fail", error_units=1e6, fault=Fault("value", "loss", 1.0, 2.0)),
        *(verdict(2 + n, status) for n, status in enumerate(Status)),
    ]
    results = load(written(tmp_path, *verdicts))
    assert results.verdicts == tuple(verdicts)
    assert results.complete
    assert results.sources == (str(tmp_path / NAME),)
    assert load(tmp_path / NAME) == results


def test_the_run_line_says_what_was_asked_of_whom_and_where(tmp_path):
    run = load(written(tmp_path)).run
    assert (run["kind"], run["format"], run["cases"], run["selection"]) == (
        "run",
        FORMAT,
        "0123456789abcdef",
        "all",
    )
    assert {"torch", "python", "cpu", "threads", "os", "allocator", "gpu"} <= run["environment"].keys()
    native = run["implementations"]["native"]
    assert (native["version"], native["conventions"]) == ("2.13", {"empty_mean": "nan"})
    assert native["capabilities"] == sorted(NATIVE.capabilities)
    assert native["deviations"] == [
        {
            "cases": ["a/*"],
            "aspect": "loss",
            "observed": "x",
            "fault": "nan",
            "reason": "",
            "link": "y",
            "torch": "",
            "max_units": 5.0,
            "certain": True,
        }
    ]
    assert "where" not in json.dumps(native), "a line number is no claim"


def test_allocator_settings_are_part_of_the_environment(monkeypatch):
    monkeypatch.setenv("MALLOC_CONF", "dirty_decay_ms:0")
    assert header()["environment"]["allocator"]["MALLOC_CONF"] == "dirty_decay_ms:0"


def test_the_end_line_counts(tmp_path):
    written(tmp_path, verdict(0), verdict(1), verdict(2, "fail"))
    assert json.loads(lines(tmp_path)[-1]) == {"kind": "end", "verdicts": 3, "counts": {"fail": 1, "pass": 2}}


def test_every_line_is_json_for_any_reader(tmp_path):
    written(tmp_path, verdict(0, "fail", error_units=float("inf")), verdict(1, error_units=float("nan")))

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    for line in lines(tmp_path):
        json.loads(line, parse_constant=refuse)
    infinite, nan = (v.error_units for v in load(tmp_path).verdicts)
    assert infinite == float("inf")
    assert nan != nan


def test_costs_are_kept_with_their_samples(tmp_path):
    writer = Writer(tmp_path, header())
    writer.cost(MEASURED)
    writer.close()
    assert load(tmp_path).costs == (MEASURED,)
    assert json.loads(lines(tmp_path)[1])["timing"]["rounds"]["candidate"] == {"both": [1.5, 2.5]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "great"}, "status: "),
        ({"timing": None}, "exactly where the status is pass"),
        ({"status": "fail"}, "exactly where the status is pass"),
        ({"logits": None}, "exactly where the status is pass"),
        ({"measure": "memory"}, "exactly where the status is pass"),
        ({"device": "tpu"}, "device: "),
        ({"bytes": 7}, "bytes: Extra inputs"),
        ({"timing": {"rounds": {"native": {"both": [0.0]}}}}, "timing.rounds.native.both.0: .*greater than 0"),
    ],
)
def test_a_measurement_that_cannot_be_is_named_with_its_line(tmp_path, change, message):
    writer = Writer(tmp_path, header())
    writer.cost(MEASURED)
    writer.close()
    first, second, *rest = lines(tmp_path)
    rewrite(tmp_path, [first, json.dumps(json.loads(second) | change).encode() + b"\n", *rest])
    assert re.search(f":2: not a measurement: .*{message}", complaint(lambda: load(tmp_path)))


def test_a_verdict_is_on_disk_before_the_next_one_is_made(tmp_path):
    writer = Writer(tmp_path, header())
    for number in range(3):
        writer.verdict(verdict(number))
        assert len(load(tmp_path).verdicts) == number + 1
    assert not load(tmp_path).complete
    writer.close()


def test_the_worse_of_two_verdicts_on_the_same_question_holds(tmp_path):
    """A test can report twice: its call, and its teardown or the worker that died."""
    results = load(written(tmp_path, verdict(0), verdict(0, "error"), verdict(1)))
    assert [v.status for v in results.verdicts] == ["error", "pass"]
    assert results.complete


def test_what_failed_does_not_pass_by_a_second_line(tmp_path):
    written(tmp_path, verdict(0, "fail"), verdict(0))
    assert complaint(lambda: load(tmp_path)) == (
        f"{tmp_path / NAME}:3: native small/case-0 loss is pass, but fail in an earlier line; run it again"
    )


def test_one_run_at_a_time_writes_into_a_folder(tmp_path):
    writer = Writer(tmp_path, header())
    writer.verdict(verdict(0))
    for resume in (False, True):
        said = complaint(lambda resume=resume: Writer(tmp_path, header(), resume))
        assert said == f"{tmp_path / NAME}: another run is writing here; wait for it or give another folder"
    writer.close()
    assert len(load(tmp_path).verdicts) == 1
    resumed(tmp_path, verdict(1))
    assert len(load(tmp_path).verdicts) == 2


def altered(change):
    def run_line(line):
        value = json.loads(line)
        change(value)
        return json.dumps(value).encode() + b"\n"

    return run_line


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, lambda v: v.pop("edition"), ":1: not a run line: edition: Field required"),
        (0, lambda v: v.pop("environment"), ":1: not a run line: environment: Field required"),
        (0, lambda v: v.update(environment=[]), ":1: not a run line: environment: "),
        (0, lambda v: v.update(implementations=["native"]), ":1: not a run line: implementations: "),
        (0, lambda v: v["implementations"].update(native=None), ":1: not a run line: implementations.native: "),
        (0, lambda v: v["implementations"]["native"].pop("version"), "implementations.native.version: Field required"),
        (0, lambda v: v["implementations"].clear(), ":2: the run line names no implementation 'native'"),
        (0, lambda v: v.update(questions={"small/case-9": "q"}), ":2: the run line names no case 'small/case-0'"),
        (0, lambda v: v.update(runs=7), ":1: not a run line: runs: "),
        (1, lambda v: v.update(kind="run"), ":2: expected one run line at the start"),
        (1, lambda v: v.update(kind="end"), ":2: expected one run line at the start and one end line at the end"),
        (1, lambda v: v.update(kind=["verdict"]), ":2: expected a kind of "),
        (
            2,
            lambda v: v.update(status="fail"),
            ": the end line counts {'pass': 2}, the file holds {'fail': 1, 'pass': 1}",
        ),
        (3, lambda v: v.update(counts={"pass": 1, "fail": 1}), ": the end line counts "),
        (3, lambda v: v.update(verdicts="2"), ": the end line counts "),
    ],
)
def test_a_record_that_was_altered_is_named(tmp_path, place, change, message):
    written(tmp_path, verdict(0), verdict(1))
    whole = lines(tmp_path)
    whole[place] = altered(change)(whole[place])
    rewrite(tmp_path, whole)
    said = complaint(lambda: load(tmp_path))
    assert message in said
    assert said.startswith(f"{tmp_path / NAME}:")


@pytest.mark.parametrize("what", ["torch", "gpu", "capability"])
def test_another_place_is_another_row(tmp_path, what):
    here, there = header()["environment"], {**header()["environment"], what: "9.9 X"}
    parts = [part(tmp_path / "1", verdict(0)), part(tmp_path / "2", verdict(0, "fail"), environment=there)]
    merged = merge(parts)
    assert {(v.implementation, v.status) for v in merged.verdicts} == {
        ("native", "pass"),
        (f"native@{what}-9.9-X", "fail"),
    }
    save(merged, tmp_path / "merged")
    again = load(tmp_path / "merged")
    assert [run["environment"][what] for run in again.runs] == [here[what], "9.9 X"]


def test_another_edition_does_not_merge(tmp_path):
    parts = [part(tmp_path / "1", verdict(0)), part(tmp_path / "2", verdict(1), edition="1999.01")]
    assert "edition 1999.01, but" in complaint(lambda: merge(parts))


# --- truncation


def test_without_an_end_it_is_truncated(tmp_path):
    results = load(written(tmp_path, verdict(0), complete=False))
    assert not results.complete
    assert len(results.verdicts) == 1


def test_a_cut_off_last_line_is_a_truncation_wherever_it_is_cut(tmp_path):
    written(tmp_path, verdict(0), verdict(1), verdict(2))
    whole = lines(tmp_path)
    for kept in range(len(whole[3])):
        rewrite(tmp_path, [*whole[:3], whole[3][:kept]])
        results = load(tmp_path)
        assert not results.complete
        assert [v.case for v in results.verdicts] == ["small/case-0", "small/case-1"]


def test_a_cut_off_end_line_is_a_truncation(tmp_path):
    written(tmp_path, verdict(0))
    rewrite(tmp_path, [*lines(tmp_path)[:-1], lines(tmp_path)[-1].rstrip()])
    assert not load(tmp_path).complete


# --- files that cannot be used


def complaint(action):
    with pytest.raises(RecordError) as error:
        action()
    return str(error.value)


@pytest.mark.parametrize(
    ("place", "content", "said"),
    [
        (2, b'{"kind": "verdict", "impl\n', ":3: expected one JSON object; found b'"),
        (2, b"\n", ":3: expected one JSON object; found b'\\n'"),
        (2, b"[1, 2]\n", ":3: expected one JSON object; found b'[1, 2]"),
        (2, b"\xff\xfe\x00\n", ":3: expected one JSON object"),
        (1, b'{"kind": "verdict", "implementation": "native"}\n', ":2: not a verdict: "),
        (
            1,
            b'{"kind": "verdict", "implementation": "n", "clause": "c", "case": "x", "aspect": "loss", "status": "pass", "mood": 1}\n',
            ":2: not a verdict: ",
        ),
        (
            1,
            b'{"kind": "verdict", "implementation": "n", "clause": "c", "case": "x", "aspect": "loss", "status": "fine"}\n',
            ":2: not a verdict: expected a status of crash, ",
        ),
        (1, b"{}\n", ":2: "),
        (0, b'{"kind": "verdict"}\n', ":1: expected a run line; found "),
        (0, b'{"kind": "run", "format": 99}\n', ":1: expected format 3; found 99; run the suite again"),
    ],
)
def test_a_broken_line_is_named(tmp_path, place, content, said):
    written(tmp_path, verdict(0), verdict(1), verdict(2))
    whole = lines(tmp_path)
    whole[place] = content
    rewrite(tmp_path, whole)
    assert complaint(lambda: load(tmp_path)).startswith(f"{tmp_path / NAME}{said}")


@pytest.mark.parametrize("content", [b"", b"not json\n", b"{}\n", b"[]\n", b'{"kind": "en'])
def test_what_is_no_results_file(tmp_path, content):
    rewrite(tmp_path, [content])
    assert f"{NAME}:1: expected a run line" in complaint(lambda: load(tmp_path))


def test_a_folder_without_results(tmp_path):
    assert (
        complaint(lambda: load(tmp_path))
        == f"{tmp_path / NAME}: no results can be read: No such file or directory; expected a folder that --results wrote"
    )


def test_an_end_that_counts_more_than_there_is(tmp_path):
    written(tmp_path, verdict(0), verdict(1), verdict(2))
    whole = lines(tmp_path)
    rewrite(tmp_path, whole[:2] + whole[3:])
    assert (
        complaint(lambda: load(tmp_path))
        == f"{tmp_path / NAME}: the end line counts {{'pass': 3}}, the file holds {{'pass': 2}}; lines are missing or altered"
    )


# --- an earlier file


@pytest.mark.parametrize(("complete", "suffix"), [(True, ""), (False, "-truncated")])
def test_an_earlier_file_is_set_aside_under_the_time_it_was_started(tmp_path, complete, suffix):
    written(tmp_path, verdict(0, "fail"), complete=complete, started="2026-11-20T10:11:12+00:00")
    before = (tmp_path / NAME).read_bytes()
    written(tmp_path, verdict(1))
    assert (tmp_path / f"results-2026-11-20T101112Z{suffix}.jsonl").read_bytes() == before
    assert [v.case for v in load(tmp_path).verdicts] == ["small/case-1"]


def test_no_earlier_file_is_ever_overwritten(tmp_path):
    for number in range(4):
        written(tmp_path, verdict(number), started="2026-11-20T10:11:12+00:00")
    kept = sorted(p.name for p in tmp_path.iterdir())
    assert len(kept) == 4
    found = {load(p).verdicts[0].case for p in tmp_path.iterdir()}
    assert found == {f"small/case-{n}" for n in range(4)}


def test_an_earlier_file_that_cannot_be_read_is_kept_as_well(tmp_path):
    for content in (b"precious notes\n", b"more notes\n"):
        rewrite(tmp_path, [content])
        written(tmp_path, verdict(0))
    kept = {p.read_bytes() for p in tmp_path.iterdir()}
    assert {b"precious notes\n", b"more notes\n"} <= kept


# --- resuming


def resumed(folder, *verdicts, implementations=(NATIVE,), **changes):
    writer = Writer(folder, header(implementations, **changes), resume=True)
    for one in verdicts:
        writer.verdict(one)
    writer.close()
    return writer


def test_a_truncated_run_goes_on_where_it_stopped(tmp_path):
    written(tmp_path, verdict(0), verdict(1, "fail"), complete=False)
    with (tmp_path / NAME).open("ab") as file:
        file.write(b'{"kind": "verdict", "impl')
    writer = resumed(tmp_path, verdict(2))
    assert writer.already == {v.key: v for v in (verdict(0), verdict(1, "fail"))}
    results = load(tmp_path)
    assert results.complete
    assert [v.case for v in results.verdicts] == [f"small/case-{n}" for n in range(3)]
    assert [json.loads(line)["kind"] for line in lines(tmp_path)] == ["run", "verdict", "verdict", "verdict", "end"]
    assert os.listdir(tmp_path) == [NAME]


def test_resuming_twice_and_resuming_what_is_complete(tmp_path):
    written(tmp_path, verdict(0), complete=False)
    resumed(tmp_path, verdict(1))
    resumed(tmp_path, verdict(2))
    resumed(tmp_path)
    assert len(load(tmp_path).verdicts) == 3
    assert [json.loads(line)["kind"] for line in lines(tmp_path)] == ["run", "verdict", "verdict", "verdict", "end"]


def test_resuming_what_was_never_started_starts_it(tmp_path):
    resumed(tmp_path / "new", verdict(0))
    assert load(tmp_path / "new").complete


def test_a_run_killed_before_its_first_verdict_is_resumed_with_one_run_line(tmp_path):
    written(tmp_path, complete=False)
    resumed(tmp_path, verdict(0))
    assert [json.loads(line)["kind"] for line in lines(tmp_path)] == ["run", "verdict", "end"]


@pytest.mark.parametrize("kept", [0, 1, 40])
def test_a_run_killed_while_it_wrote_its_first_line_can_be_resumed(tmp_path, kept):
    written(tmp_path, complete=False)
    rewrite(tmp_path, [lines(tmp_path)[0][:kept]])
    resumed(tmp_path, verdict(0))
    assert load(tmp_path).complete


def test_costs_survive_a_resumption(tmp_path):
    writer = Writer(tmp_path, header())
    writer.cost(MEASURED)
    writer.verdict(verdict(0))
    writer.close(complete=False)
    resumed(tmp_path, verdict(1))
    assert load(tmp_path).costs == (MEASURED,)


OTHERS = {
    "cases": {"digest": "f" * 16},
    "torch": {"environment": {**header()["environment"], "torch": "1.0"}},
    "implementation native": {"implementations": (Implementation(name="native", cross_entropy=len, version="3"),)},
    "edition": {"edition": "1999.01"},
    "threads": {"environment": {**header()["environment"], "threads": 99}},
    "cpu": {"environment": {**header()["environment"], "cpu": "another"}},
    "implementation other": {"implementations": (NATIVE, Implementation(name="other", cross_entropy=len, version="3"))},
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_changed_meanwhile_cannot_be_resumed(tmp_path, what):
    written(tmp_path, verdict(0), complete=False)
    before = (tmp_path / NAME).read_bytes()
    said = complaint(lambda: resumed(tmp_path, **OTHERS[what]))
    assert said.startswith(f"{tmp_path / NAME}: cannot be resumed: {what} was ")
    assert said.endswith("; run without --resume into another folder")
    assert (tmp_path / NAME).read_bytes() == before


def test_what_is_no_results_file_is_not_resumed_and_not_touched(tmp_path):
    rewrite(tmp_path, [b"precious notes\nmore\n"])
    assert "expected one JSON object" in complaint(lambda: resumed(tmp_path, verdict(0)))
    assert (tmp_path / NAME).read_bytes() == b"precious notes\nmore\n"


# --- a full disk and a killed writer


class FullDisk:
    """A file that takes so many bytes and no more; a write that does not fit is cut, as the kernel does."""

    def __init__(self, path, room):
        self.file, self.room = open(path, "ab", buffering=0), room  # noqa: SIM115

    def write(self, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = self.file.write(data[: self.room])
        self.room -= count
        return count

    def close(self):
        self.file.close()


def written_until_full(writer):
    """The verdicts that were taken, and what was said of the one that was not."""
    taken = []
    try:
        for number in range(3):
            writer.verdict(verdict(number))
            taken.append(verdict(number))
    except RecordError as error:
        return taken, str(error)
    raise AssertionError("there was room for everything")


def test_a_full_disk_leaves_an_intact_prefix_wherever_it_strikes(tmp_path):
    length = len(json.dumps({"kind": "verdict", **to_json(verdict(0))})) + 1
    for room in range(0, 2 * length + 2, 7):
        folder = tmp_path / str(room)
        writer = Writer(folder, header())
        writer._file.close()
        writer._file = FullDisk(folder / NAME, room)
        acknowledged, said = written_until_full(writer)
        assert (
            said
            == f"{folder / NAME}: a result could not be written: No space left on device; what stands there already is intact; make room and go on with --resume"
        )
        writer._file.close()
        results = load(folder)
        assert not results.complete
        assert list(results.verdicts) == acknowledged
        resumed(folder, *(verdict(n) for n in range(len(acknowledged), 3)))
        assert len(load(folder).verdicts) == 3


def test_a_device_that_is_full(tmp_path):
    writer = Writer(tmp_path, header())
    writer.verdict(verdict(0))
    writer._file.close()
    with open("/dev/full", "ab", buffering=0) as full:
        writer._file = full
        for action in (lambda: writer.verdict(verdict(1)), lambda: writer.cost(MEASURED), writer.close):
            assert "a result could not be written: No space left on device" in complaint(action)
    assert load(tmp_path).verdicts == (verdict(0),)
    assert not load(tmp_path).complete


def test_a_short_write_is_finished(tmp_path):
    writer = Writer(tmp_path, header())
    whole = writer._file

    class Reluctant:
        def write(self, data):
            return whole.write(data[:5])

        def close(self):
            whole.close()

    writer._file = Reluctant()
    writer.verdict(verdict(0))
    writer.close()
    assert load(tmp_path).verdicts == (verdict(0),)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    assert "results cannot be written here" in complaint(lambda: Writer(tmp_path / "file" / "folder", header()))


def write_until_killed(folder, acknowledge):
    """In a process of its own: one byte down the pipe for every verdict that ``verdict`` has returned from."""
    writer = Writer(folder, header())
    number = 0
    while True:
        writer.verdict(verdict(number, message="x" * (number % 300)))
        os.write(acknowledge, b".")
        number += 1


def killed_after(folder, seconds):
    """How many verdicts a writer had acknowledged when it was killed."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads: this child only writes
        child = os.fork()
    if child == 0:
        try:
            os.close(read)
            write_until_killed(folder, write)
        finally:
            os._exit(1)
    os.close(write)
    acknowledged = len(os.read(read, 1))
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while chunk := os.read(read, 1 << 16):
        acknowledged += len(chunk)
    os.close(read)
    return acknowledged


def test_a_killed_writer_loses_nothing_that_it_had_acknowledged(tmp_path):
    moments = random.Random(0)
    for attempt in range(12):
        folder = tmp_path / str(attempt)
        acknowledged = killed_after(folder, moments.uniform(0, 0.03))
        results = load(folder)
        assert not results.complete
        assert acknowledged <= len(results.verdicts) <= acknowledged + 1
        assert [v.case for v in results.verdicts] == [f"small/case-{n}" for n in range(len(results.verdicts))]
        resumed(folder, verdict(len(results.verdicts)))
        assert load(folder).complete


# --- merging


def part(folder, *verdicts, **changes) -> Results:
    return load(written(folder, *verdicts, **changes))


OTHER = Implementation(name="other", cross_entropy=len, version="3")


def test_shards_and_machines_merge(tmp_path):
    one = part(tmp_path / "1", verdict(0), verdict(1, "fail"))
    two = part(tmp_path / "2", verdict(1, "fail"), verdict(2))
    three = part(tmp_path / "3", verdict(0, implementation="other"), implementations=(OTHER,))
    merged = merge(iter([one, two, three]))
    assert [(v.implementation, v.case, v.status) for v in merged.verdicts] == [
        ("native", "small/case-0", "pass"),
        ("native", "small/case-1", "fail"),
        ("native", "small/case-2", "pass"),
        ("other", "small/case-0", "pass"),
    ]
    assert list(merged.run["implementations"]) == ["native", "other"]
    assert merged.complete
    assert merged.sources == (*one.sources, *two.sources, *three.sources)
    assert one.run["implementations"].keys() == {"native"}, "the parts stay as they are"


def test_a_merge_knows_when_and_where_its_parts_were_made(tmp_path):
    one, two = part(tmp_path / "1", verdict(0)), part(tmp_path / "2", verdict(1))
    two = replace(two, runs=({"started": "2026-01-01", "environment": {"torch": "2.13", "cpu": "another"}},))
    save(merge([one, two]), tmp_path / "merged")
    again = load(tmp_path / "merged")
    assert again.runs == (*one.runs, *two.runs)
    assert one.runs == ({"started": one.run["started"], "environment": one.run["environment"]},)
    assert merge([again, two]).runs == (*one.runs, *two.runs, *two.runs)


def test_a_merge_with_a_truncated_part_is_truncated(tmp_path):
    merged = merge([part(tmp_path / "1", verdict(0)), part(tmp_path / "2", verdict(1), complete=False)])
    assert not merged.complete
    save(merged, tmp_path / "merged")
    assert not load(tmp_path / "merged").complete


def test_a_merge_can_be_saved_and_read_back(tmp_path):
    writer = Writer(tmp_path / "1", header())
    writer.cost(MEASURED)
    writer.close()
    merged = merge([load(tmp_path / "1"), part(tmp_path / "2", verdict(0), verdict(1, "fail", error_units=7.0))])
    save(merged, tmp_path / "merged")
    again = load(tmp_path / "merged")
    assert (again.run, again.verdicts, again.costs, again.complete) == (merged.run, merged.verdicts, merged.costs, True)


def test_answers_to_different_cases_do_not_merge(tmp_path):
    parts = [part(tmp_path / "1", verdict(0)), part(tmp_path / "2", verdict(1), digest="f" * 16)]
    said = complaint(lambda: merge(parts))
    assert said.startswith(
        f"{tmp_path / '2' / NAME}: cases {'f' * 16}, but {tmp_path / '1' / NAME}: cases 0123456789abcdef; "
    )


def test_verdicts_that_contradict_one_another_do_not_merge(tmp_path):
    parts = [part(tmp_path / "1", verdict(0)), part(tmp_path / "2", verdict(0, "fail"))]
    assert (
        complaint(lambda: merge(parts))
        == f"{tmp_path / '2' / NAME}: native small/case-0 loss is fail, but pass in an earlier part"
    )


def test_another_version_does_not_merge(tmp_path):
    newer = Implementation(name="native", cross_entropy=len, version="2.14")
    parts = [part(tmp_path / "1", verdict(0)), part(tmp_path / "2", verdict(1), implementations=(newer,))]
    assert (
        complaint(lambda: merge(parts))
        == f"{tmp_path / '2' / NAME}: native is another version or claims other things than in an earlier part"
    )


def test_nothing_to_merge():
    assert complaint(lambda: merge([])) == "expected results to merge; found none"


def test_a_folder_may_have_any_name(tmp_path):
    folder = tmp_path / "a folder" / "with ümlauts"
    assert load(written(folder, verdict(0))).sources == (str(Path(folder) / NAME),)
