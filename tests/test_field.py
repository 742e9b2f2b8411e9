"""Measuring other libraries in turn: what is outdated and nothing else, whatever becomes of one of them; and their records as one."""

import json
from dataclasses import replace

import pytest

from xentcheck import cli, field
from xentcheck.implementation import ImplementationError, environments, load
from xentcheck.results import record
from xentcheck.results.run_line import run_line
from xentcheck.run.verdict import Fault, Verdict
from xentcheck.spec import loader
from xentcheck.spec.mistakes import UsageError

ADAPTERS = """
from xentcheck.implementation import Adapter, Implementation
implementations = (
    Adapter("lib_one", "lib:one", requires=["lib==1.5"], no_deps=True),
    Adapter("lib_two", "lib:two", requires=["lib==1.5"], no_deps=True),
    Adapter("lib_slow", "lib:slow", requires=["lib==1.5"], no_deps=True, slow=True),
    Adapter("lib_gpu", "gpu:loss", requires=["gpu==1.0"], unavailable="needs a CUDA device"),
    Adapter("lib_own", "torch:sum", version="2.0"),
    Implementation("lib_shipped", len),
)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Adapters of a file, an ``install`` that notes its calls, and runs that write a record at once, or what ``behave`` says."""
    folder = tmp_path / "implementations"
    folder.mkdir()
    (folder / "lib.py").write_text(ADAPTERS)
    monkeypatch.setattr(field, "find", lambda named: load.find(named, folder))
    monkeypatch.setenv(environments.FOLDER, str(tmp_path / "peers"))
    (case,) = loader.select(loader.load_all(), "plain-values/one-position")[:1]
    monkeypatch.setattr(loader, "load_all", lambda: [case])

    class Fake:
        runs, installed, behaviour = [], [], {}
        file, results, published = folder / "lib.py", tmp_path / "results", tmp_path / "reports" / "field.jsonl.gz"

        def measure(self, *wanted, **options):
            self.runs.clear()
            return field.run(wanted, self.results, self.published, **options)

        def rows(self):
            return field.rows(record.load(self.published))

    one = Fake()

    def install(environment, say):
        one.installed.append(environment.name)
        if one.behaviour.get("install") == "fails":
            raise UsageError(f"{environment.name}: pip failed")
        about = environment.packages / "lib-1.5.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lib\nVersion: 1.5\n")
        (environment.folder / environments._MARKER).write_text(json.dumps({"made_from": environment._made_from()}))

    def run(library, folder, resume):
        how = one.behaviour.get(library.name, "")
        one.runs.append((library.name, *resume))
        (folder / field._LOG).write_text("first\n\nthe last line\n")
        if how == "dies" or (how == "refuses to go on" and resume):
            return 4
        named = [replace(i, version=i.version or i.environment.version()) for i in library.implementations]
        writer = record.Writer(folder, run_line(named, [case], library.selection), bool(resume))
        for i in named:
            writer.verdict(Verdict(i.name, case.clause.clause, case.id, "loss", "pass"))
        writer.close(complete=how != "is interrupted")
        return 0

    monkeypatch.setattr(environments, "install", install)
    monkeypatch.setattr(field, "_run", run)
    return one


def test_libraries_are_grouped_by_environment_and_by_what_they_are_asked(fake):
    assert [(one.name, one.names, one.selection) for one in field.libraries()] == [
        ("lib", ["lib_one", "lib_two"], "all"),
        ("lib-telling", ["lib_slow"], "telling"),
        ("gpu-telling", ["lib_gpu"], "telling"),
        ("lib_own", ["lib_own"], "all"),
    ]
    assert [one.name for one in field.libraries(["lib_two"])] == ["lib"]
    assert [one.name for one in field.libraries(["lib"])] == ["lib", "lib-telling"]
    with pytest.raises(ImplementationError, match=r"lib_tow: there is no library .* did you mean lib_two"):
        field.libraries(["lib_tow"])


def test_all_are_installed_run_and_published_once(fake, capsys):
    assert fake.measure() == 0
    assert fake.installed == ["lib"], "nothing is installed that cannot run here, and nothing twice"
    assert [name for name, *_ in fake.runs] == ["lib", "lib-telling", "gpu-telling", "lib_own"]
    assert list(fake.rows()) == ["lib_gpu", "lib_one", "lib_own", "lib_slow", "lib_two"]
    measured = fake.rows()["lib_slow"].claims["measured"]
    assert (measured["selection"], measured["edition"]) == ("telling", record.load(fake.published).run["edition"])
    shown = capsys.readouterr().out
    assert "lib: installing (lib_one: not measured yet)" in shown
    assert fake.measure() == 0
    assert fake.runs == []
    assert "up to date" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "again"),
    [
        ("", "", []),
        ('"lib:two", ', '"lib:two", layout="sequence", ', []),
        ('"lib:two", ', '"lib:two", offers={"weight"}, ', ["lib"]),
        ('version="2.0"', 'version="2.1"', ["lib_own"]),
        ("slow=True", "slow=False", ["lib"]),
    ],
)
def test_what_declares_other_things_is_measured_again(fake, old, new, again):
    """How a library is called is no claim: ``--again`` is for that."""
    fake.measure()
    fake.file.write_text(ADAPTERS.replace(old, new))
    fake.measure()
    assert [name for name, *_ in fake.runs] == again
    fake.measure("lib_own", again=True)
    assert [name for name, *_ in fake.runs] == ["lib_own"]


def test_only_rows_of_an_older_edition_or_of_other_cases_are_measured_again(fake, monkeypatch):
    fake.measure()
    monkeypatch.setattr(field, "edition", lambda: "2999.01")
    fake.measure("lib_own")
    assert fake.runs == [("lib_own",)]
    monkeypatch.undo()


def test_the_published_record_is_enough_to_know_what_is_measured(fake, monkeypatch):
    """As in a new checkout, which has no results."""
    fake.measure()
    fake.results.rename(fake.results.with_name("elsewhere"))
    fake.measure()
    assert fake.runs == []
    assert len(fake.rows()) == 5
    fake.file.write_text(ADAPTERS.replace('    Adapter("lib_own", "torch:sum", version="2.0"),\n', ""))
    fake.measure()
    assert "lib_own" not in fake.rows(), "whose adapter is gone"


def test_one_that_fails_does_not_stop_the_others(fake, capsys):
    fake.behaviour |= {"lib": "dies"}
    assert fake.measure() == 1
    assert sorted(fake.rows()) == ["lib_gpu", "lib_own", "lib_slow"]
    assert "lib: failed: exit code 4: first the last line" in capsys.readouterr().out


def test_one_that_cannot_be_installed_is_not_run(fake, capsys):
    fake.behaviour |= {"install": "fails"}
    assert fake.measure("lib_one", "lib_own") == 1
    assert fake.runs == [("lib_own",)]
    assert "lib: failed: lib: pip failed" in capsys.readouterr().out


@pytest.mark.parametrize("again", ["", "refuses to go on"])
def test_an_interrupted_run_is_continued_where_it_can_be(fake, again):
    fake.behaviour |= {"lib_own": "is interrupted"}
    assert fake.measure("lib_own") == 1
    assert not fake.published.exists()
    fake.behaviour |= {"lib_own": again}
    assert fake.measure("lib_own") == 0
    assert fake.runs == [("lib_own", "--resume")] + ([("lib_own",)] if again else [])
    assert list(fake.rows()) == ["lib_own"]


def test_what_a_dead_process_wrote_is_not_published():
    text = "the worker process died of SIGABRT; it wrote last:\n/home/me/lib.py"
    verdict = Verdict("a", "b", "b/c", "loss", "crash", reason=text)
    raised = Verdict("a", "b", "b/d", "loss", "error", fault=Fault("raised", "", "a loss", text))
    row = field.Row(
        {"measured": {"started": "1", "edition": "1", "cases": "2", "environment": {}}}, (verdict, raised), {}
    )
    found = field.combine({"a": row}).verdicts
    assert found[0].message == "the worker process died of SIGABRT"
    assert found[1].fault.found == "the worker process died of SIGABRT"


def test_the_command_says_what_it_lacks(fake, tmp_path, capsys):
    """The pages are those of ``make conform``, beside which it publishes."""
    folders = ["--results", str(fake.results), "--to", str(fake.published.parent)]
    assert cli.main(["field", "lib_own", *folders]) == 0
    assert "by `xentcheck report`" in capsys.readouterr().err
    assert cli.main(["field", "lib_none", *folders]) == 2
    assert "lib_none: there is no library" in capsys.readouterr().err
