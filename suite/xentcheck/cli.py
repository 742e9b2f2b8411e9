"""The ``xentcheck`` command."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from xentcheck.results.markdown import visible
from xentcheck.spec import loader, speed_cases, telling
from xentcheck.spec.mistakes import CaseFileError, UsageError
from xentcheck.spec.patterns import nearest

if TYPE_CHECKING:
    from xentcheck.results.record import Results
    from xentcheck.spec.case import Case

# Commands import what else they need when they run: torch alone takes seconds, and listing cases does not need it.


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 where a check found something, 2 where the command cannot be carried out."""
    parser = argparse.ArgumentParser(
        prog="xentcheck",
        description="Conformance and cost of cross-entropy losses. In a checkout, `pytest suite/ --impl NAMES` runs the suite as well.",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(run: Callable[[argparse.Namespace], int], help: str) -> Callable[..., argparse.Action]:
        """Adds the command that a function carries out, named after it; returns what adds its arguments."""
        parsed = commands.add_parser(run.__name__.strip("_"), help=help)
        parsed.set_defaults(run=run)
        return parsed.add_argument

    add = command(_run, "run the suite in another process, with --isolate, and decide by its record; exit 0 or 1")
    add("implementations", help="what --impl takes: package.module:attribute, path/to/file.py:attribute, names")
    further = "further arguments for pytest, such as --cases 'ignored-*'; --in-process does without --isolate"
    add("arguments", nargs=argparse.REMAINDER, help=further)
    add = command(_report, "write the reports from results")
    several = (
        "folders that --results wrote; several are merged; without any, the pages of the published record are made anew"
    )
    add("results", type=Path, nargs="*", help=several)
    add("--to", type=Path, default=Path("reports"), help="where to write (default: reports)")
    add("--excerpt", type=Path, help="a page that shows a short table between its excerpt marks")
    add(
        "--check",
        action="store_true",
        help="write nothing; exit 1 where the reports published in --to differ: a verdict's status or kind of fault, or a page",
    )
    add = command(_repro, "print a script that reproduces a case without this suite")
    add("case")
    add("--impl", required=True)
    add("--cases", type=Path, help="the case file, if it is your own")
    add = command(_cases, "list cases")
    add("pattern", nargs="?", default="*")
    add = command(_merge, "merge results of shards and machines")
    add("results", type=Path, nargs="+")
    add("--to", type=Path, required=True)
    add = command(_lint, "check the named case files, or the shipped ones and the table of reported bugs")
    add("files", type=Path, nargs="*")
    add(
        "--answers", action="store_true", help="also build the batches and compare what is expected with the definition"
    )
    add = command(_peers, "list the libraries that run in environments of their own, or install them")
    add("action", nargs="?", choices=["install"], help="make the environments of the names that follow anew")
    add("names", nargs="*", help="libraries or implementations, as the list shows them")
    add("--implementations", metavar="DIR", type=Path, help="a folder of your own implementations")
    add = command(
        _field, "install and run the losses of other libraries, one after another, and publish what was found"
    )
    add("names", nargs="*", help="libraries or implementations, as `xentcheck peers` lists them; all, if left out")
    folder = Path("reports/results/field")
    add("--results", type=Path, default=folder, help=f"where the record of each library is kept (default: {folder})")
    add("--to", type=Path, default=Path("reports"), help="where to publish (default: reports)")
    add("--jobs", type=int, default=1, metavar="N", help="how many libraries run at the same time (default: 1)")
    add("--again", action="store_true", help="measure also what is measured with this edition and these cases")
    command(_schema, "print the JSON Schema of case files")
    add = command(_baseline, "write the baseline that --gate compares later runs with")
    add("results", type=Path, nargs="+", help="folders that --results wrote; ratios of several runs are combined")
    add(
        "--to",
        type=Path,
        default=Path("reports/baseline.json"),
        help="where to write (default: reports/baseline.json); the anchors of a baseline that is there already are kept",
    )
    add("--anchor-anew", metavar="PATTERNS", help="accept that these are slower now, such as 'maskedce:lm/*'")
    add("--forget", action="store_true", help="keep nothing of the baseline that is there")
    add = command(_gate, "compare results with a baseline; exit 1 where something is worse or missing")
    add("results", type=Path, nargs="+")
    add("baseline", type=Path)
    add("--gate-only", metavar="PATTERNS", help="compare only this part of the baseline, such as 'ignored-*'")
    add("--impl", help="what to measure again where a ratio is worse; without it, it stays inconclusive")
    add("--strict-perf", action="store_true", help="fail on inconclusive comparisons as well")
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except UsageError as error:
        print(f"xentcheck: {visible(error)}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    """Green only by the record, read in this process, which loads no implementation. An implementation can end its own process with any
    exit code."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--in-process", action="store_true")
    parser.add_argument("--results", type=Path)
    own, arguments = parser.parse_known_args(options.arguments)
    command = [sys.executable, "-m", "pytest", "--pyargs", "xentcheck.suite", "--impl", options.implementations]
    command += [] if own.in_process else ["--isolate"]
    with tempfile.TemporaryDirectory(prefix="xentcheck-") as temporary:
        folder = own.results or Path(temporary)
        before = _identity(folder)
        code = _wait_for([*command, "--results", str(folder), *arguments])
        problem = _why_red(folder, before, code)
    if problem:
        print(f"xentcheck: {visible(problem)}", file=sys.stderr)
    return 1 if problem else 0


def _wait_for(command: Sequence[str]) -> int:
    """The exit code of a command. Ctrl-C reaches it as well, and it ends by itself; SIGTERM is passed on."""
    child = subprocess.Popen(command)
    before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    try:
        while True:
            with suppress(KeyboardInterrupt):
                return child.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def _identity(folder: Path) -> tuple[int, ...] | None:
    """Tells the record of one run from that of an earlier one in the same folder."""
    try:
        found = (folder / "results.jsonl").stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _why_red(folder: Path, before: tuple[int, ...] | None, code: int) -> str:
    """Why a run is not green; empty where it is. before: the ``_identity`` of the folder when the run began."""
    from xentcheck.results import record
    from xentcheck.results.outcome import why_red

    if _identity(folder) == before:
        disbelieved = "of the child is not believed" if code == 0 else "of the child"
        return f"the run wrote no record: exit code {code} {disbelieved}"
    try:
        return why_red(record.load(folder), code)
    except UsageError as error:
        return f"the record of the run cannot be read: {error}"


def _results(paths: Sequence[Path]) -> Results:
    from xentcheck.results import record
    from xentcheck.results.merge import merge

    return merge([record.load(path) for path in paths])


def _report(options: argparse.Namespace) -> int:
    from xentcheck.publish.command import write_or_check

    results = _results(options.results) if options.results else None
    return write_or_check(results, options.to, options.excerpt, options.check)


def _field(options: argparse.Namespace) -> int:
    from xentcheck import field
    from xentcheck.publish import report
    from xentcheck.publish.command import write_or_check

    done = field.run(options.names, options.results, options.to / field.RECORD, options.jobs, options.again)
    if (options.to / report.RECORD).is_file():
        return max(done, write_or_check(None, options.to))
    print("xentcheck: the pages are made beside those of `make conform`, by `xentcheck report`", file=sys.stderr)
    return done


def _repro(options: argparse.Namespace) -> int:
    from xentcheck.implementation import ImplementationError, find
    from xentcheck.repro.script import script
    from xentcheck.spec.batch import build

    implementations = find(options.impl)
    if len(implementations) != 1:
        raise ImplementationError(f"--impl {options.impl}: expected one implementation; found {len(implementations)}")
    if environment := implementations[0].environment:
        raise ImplementationError(
            f"--impl {options.impl}: no script can be made yet for a library in an environment of its own, {environment.folder}; "
            f"run the case: pytest suite/ --impl {options.impl} --cases '{options.case}'"
        )
    case = _case(options.case, options.cases)
    print(script(case, implementations[0], build(case)), end="")
    return 0


def _case(case_id: str, path: Path | None) -> Case:
    cases = {case.id: case for case in (loader.load(path) if path else loader.load_all())}
    if case_id not in cases:
        raise CaseFileError(f"there is no case {case_id}{nearest(case_id, cases)} `xentcheck cases` lists all")
    return cases[case_id]


def _cases(options: argparse.Namespace) -> int:
    if options.pattern == telling.NAME:
        chosen = telling.telling(loader.telling_first(loader.load_all()))
    else:
        chosen = loader.select([*loader.load_all(), *speed_cases.load_speed()], options.pattern)
    for case in chosen:
        print(case.id)
    print(f"cases: {len(chosen)}", file=sys.stderr)
    return 0 if chosen else 1


def _merge(options: argparse.Namespace) -> int:
    from xentcheck.results import record
    from xentcheck.results.merge import save

    results = _results(options.results)
    save(results, options.to)
    print(f"{len(results.verdicts)} verdicts of {len(results.sources)} files in {options.to / record.NAME}")
    return 0 if results.complete else 1


def _lint(options: argparse.Namespace) -> int:
    from xentcheck.lint import lint
    from xentcheck.spec import bug_reports

    cases = [case for path in options.files for case in loader.load(path)] if options.files else loader.load_all()
    messages = lint(cases, answers=options.answers)
    if not options.files:
        messages += bug_reports.lint(bug_reports.load(), cases)
        cases += speed_cases.load_speed()  # only read, since their batches are too large to be built here
    for message in messages:
        print(message)
    hint = "" if options.answers else "; --answers checks what is expected, too, which takes seconds"
    print(f"cases: {len(cases)}, problems: {len(messages)}{hint}", file=sys.stderr)
    return 1 if messages else 0


def _peers(options: argparse.Namespace) -> int:
    from xentcheck.implementation import peers
    from xentcheck.spec.settings import folder, read_settings

    given = options.implementations
    own = folder(given, "--implementations") if given else read_settings(Path.cwd()).implementations
    if options.action is None:
        print(peers.table(peers.find_all(own)), end="")
        return 0
    return 1 if peers.install(options.names, own) else 0


def _baseline(options: argparse.Namespace) -> int:
    from xentcheck.gate.baseline import GateError, as_text, make_baseline, read_baseline
    from xentcheck.gate.selection import Selection

    results = _results(options.results)
    if not results.complete or not (results.verdicts or results.costs):
        raise GateError("expected results of runs that finished and are not empty; found less; run the suite again")
    before = None if options.forget else read_baseline(options.to) if options.to.exists() else None
    anew = Selection(options.anchor_anew) if options.anchor_anew else None
    made, left_out = make_baseline(results, before, anew)
    options.to.parent.mkdir(parents=True, exist_ok=True)
    options.to.write_text(as_text(made), encoding="utf-8")
    for text in left_out:
        print(f"xentcheck: left out: {text}", file=sys.stderr)
    print(f"wrote {options.to}")
    return 1 if left_out else 0


def _gate(options: argparse.Namespace) -> int:
    from xentcheck.gate.baseline import read_baseline
    from xentcheck.gate.compare import compare
    from xentcheck.gate.confirm import measurer
    from xentcheck.gate.selection import Selection
    from xentcheck.gate.summary import markdown, publish
    from xentcheck.implementation import find

    selection = Selection(options.gate_only or "")
    results, baseline = _results(options.results), read_baseline(options.baseline)
    sources = {i.name: i.source or i.name for i in find(options.impl)} if options.impl else {}
    report = compare(results, baseline, measurer(sources), selection=selection)
    text = markdown(report, options.strict_perf)
    print(text, end="")
    publish(text)
    return 1 if report.is_red(options.strict_perf) else 0


def _schema(options: argparse.Namespace) -> int:
    print(json.dumps(loader.json_schema(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
