"""The ``xentcheck`` command."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from xentcheck.spec import loader, speed_cases
from xentcheck.spec.mistakes import CaseFileError, UsageError
from xentcheck.spec.patterns import nearest

if TYPE_CHECKING:
    from xentcheck.implementation import Implementation
    from xentcheck.publish.page import Script
    from xentcheck.results.record import Results
    from xentcheck.spec.case import Case

# Commands import what they need beside these when they run: torch alone takes seconds, and listing cases needs none of it.


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 where a check found something, 2 where the command cannot be carried out."""
    parser = argparse.ArgumentParser(
        prog="xentcheck",
        description="Conformance of cross-entropy losses. In a checkout the suite is also run by: pytest suite/ --impl NAMES",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("run", help="run the suite: the same as pytest --pyargs xentcheck.suite --impl NAMES")
    add.add_argument(
        "implementations", help="what --impl takes: package.module:attribute, path/to/file.py:attribute, names"
    )
    add.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="further arguments for pytest, such as --cases 'ignored-*'"
    )
    add.set_defaults(run=_run)
    add = commands.add_parser("report", help="write the reports from results")
    add.add_argument("results", type=Path, nargs="+", help="folders that --results wrote; several are merged")
    add.add_argument("--to", type=Path, default=Path("reports"), help="where to write (default: reports)")
    add.add_argument("--excerpt", type=Path, help="a page that shows a short table between its excerpt marks")
    add.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit 1 if a verdict has another status or fault than in the record published in --to, or a page is not what that record gives",
    )
    add.set_defaults(run=_report)
    add = commands.add_parser("repro", help="print a script that reproduces a case without this suite")
    add.add_argument("case")
    add.add_argument("--impl", required=True)
    add.add_argument("--cases", type=Path, help="the case file, where it is one of your own")
    add.set_defaults(run=_repro)
    add = commands.add_parser("cases", help="list cases")
    add.add_argument("pattern", nargs="?", default="*")
    add.set_defaults(run=_cases)
    add = commands.add_parser("merge", help="merge results of shards and machines")
    add.add_argument("results", type=Path, nargs="+")
    add.add_argument("--to", type=Path, required=True)
    add.set_defaults(run=_merge)
    add = commands.add_parser(
        "lint", help="check case files: those named, or the shipped ones and the table of reported bugs"
    )
    add.add_argument("files", type=Path, nargs="*")
    add.add_argument(
        "--answers", action="store_true", help="also build the batches and compare what is expected with the definition"
    )
    add.set_defaults(run=_lint)
    add = commands.add_parser("schema", help="print the JSON Schema of case files")
    add.set_defaults(run=_schema)
    add = commands.add_parser("baseline", help="write what later runs are held to by --gate")
    add.add_argument(
        "results", type=Path, nargs="+", help="folders that --results wrote; ratios of several runs are taken together"
    )
    add.add_argument("--to", type=Path, default=Path("reports/baseline.json"))
    add.set_defaults(run=_baseline)
    add = commands.add_parser("gate", help="hold results to a baseline: exit 1 where something is worse")
    add.add_argument("results", type=Path, nargs="+")
    add.add_argument("baseline", type=Path)
    add.add_argument("--strict-perf", action="store_true", help="inconclusive is red, too")
    add.set_defaults(run=_gate)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except UsageError as error:
        print(f"xentcheck: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "pytest", "--pyargs", "xentcheck.suite", "--impl", options.implementations]
    return subprocess.call([*command, *options.arguments])


def _results(paths: Sequence[Path]) -> Results:
    from xentcheck.results import record

    return record.merge([record.load(path) for path in paths])


def _report(options: argparse.Namespace) -> int:
    from xentcheck.publish import check as report_check
    from xentcheck.publish import costs as report_cost
    from xentcheck.publish import page_answers, page_summary, report
    from xentcheck.publish.page import Material
    from xentcheck.results import record
    from xentcheck.spec import bug_reports, common_claims

    results = _results(options.results)
    if results.costs and not options.check:  # times are never the same again
        written = report_cost.write(results, options.to)
        print(f"wrote {', '.join(map(str, written))}")
        if not results.verdicts:
            return 0 if results.complete else 1
    where, cases, questions = options.to / report.RECORD, loader.load_all(), common_claims.load()
    problems = report_check.between(record.load(where), results) if options.check else []
    published = record.load(where) if options.check else record.publish(results, where)
    material = Material(published, cases)
    made = report.pages(material, questions, bug_reports.load(), _script(cases, published), options.to)
    excerpt = page_summary.with_excerpt(material, options.excerpt) if options.excerpt else ""
    problems += page_answers.unverified(questions, material)
    if options.check:
        problems += report_check.pages(made, options.to) + report_check.page(excerpt, options.excerpt)
    else:
        report.write(made, options.to)
        if excerpt:
            options.excerpt.write_text(excerpt, encoding="utf-8")
        print(f"wrote {', '.join(str(options.to / name) for name in (report.RECORD, *made) if '/' not in name)}")
    if not results.complete:
        problems.append("these results are of a run that did not end")
    for problem in problems:
        print(f"xentcheck: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _script(cases: Sequence[Case], results: Results) -> Script:
    from xentcheck.implementation import ImplementationError, find
    from xentcheck.repro.literals import WRITTEN_OUT
    from xentcheck.repro.script import script
    from xentcheck.spec.batch import build

    by_id = {case.id: case for case in cases}
    implementations: dict[str, Implementation] = {}

    @cache
    def short_script(name: str, case_id: str) -> str:
        """Empty where the batch is large, and where the case or the implementation is the user's own, for the results hold neither."""
        if case_id not in by_id:
            return ""
        try:
            if name not in implementations:
                version = results.run["implementations"][name]["version"]
                implementations[name] = replace(find(name)[0], version=version)
        except ImplementationError:
            return ""
        batch = build(by_id[case_id])
        return script(by_id[case_id], implementations[name], batch) if batch.input.numel() <= WRITTEN_OUT else ""

    return short_script


def _repro(options: argparse.Namespace) -> int:
    from xentcheck.implementation import ImplementationError, find
    from xentcheck.repro.script import script
    from xentcheck.spec.batch import build

    implementations = find(options.impl)
    if len(implementations) != 1:
        raise ImplementationError(f"--impl {options.impl}: expected one implementation; found {len(implementations)}")
    case = _case(options.case, options.cases)
    print(script(case, implementations[0], build(case)), end="")
    return 0


def _case(case_id: str, path: Path | None) -> Case:
    cases = {case.id: case for case in (loader.load(path) if path else loader.load_all())}
    if case_id not in cases:
        raise CaseFileError(f"there is no case {case_id}{nearest(case_id, cases)} `xentcheck cases` lists all")
    return cases[case_id]


def _cases(options: argparse.Namespace) -> int:
    chosen = loader.select([*loader.load_all(), *speed_cases.load_speed()], options.pattern)
    for case in chosen:
        print(case.id)
    print(f"{len(chosen)} cases", file=sys.stderr)
    return 0 if chosen else 1


def _merge(options: argparse.Namespace) -> int:
    from xentcheck.results import record

    results = _results(options.results)
    record.save(results, options.to)
    print(f"{len(results.verdicts)} verdicts of {len(results.sources)} files in {options.to / record.NAME}")
    return 0 if results.complete else 1


def _lint(options: argparse.Namespace) -> int:
    from xentcheck.lint import lint
    from xentcheck.spec import bug_reports

    cases = [case for path in options.files for case in loader.load(path)] if options.files else loader.load_all()
    messages = lint(cases, answers=options.answers)
    if not options.files:
        messages += bug_reports.lint(bug_reports.load(), cases)
        cases += speed_cases.load_speed()  # only read: their batches are too large to be looked at here
    for message in messages:
        print(message)
    hint = "" if options.answers else "; --answers checks what is expected, too, which takes seconds"
    print(f"{len(cases)} cases, {len(messages)} to mend{hint}", file=sys.stderr)
    return 1 if messages else 0


def _baseline(options: argparse.Namespace) -> int:
    from xentcheck.gate.baseline import GateError, as_text, make_baseline

    results = _results(options.results)
    if not results.complete or not (results.verdicts or results.costs):
        raise GateError(
            "expected results of runs that ended and held something; a baseline of less would forgive too much"
        )
    value, left_out = make_baseline(results)
    options.to.parent.mkdir(parents=True, exist_ok=True)
    options.to.write_text(as_text(value), encoding="utf-8")
    for text in left_out:
        print(f"xentcheck: left out: {text}", file=sys.stderr)
    print(f"wrote {options.to}")
    return 1 if left_out else 0


def _gate(options: argparse.Namespace) -> int:
    from xentcheck.gate import compare as gate
    from xentcheck.gate.baseline import read_baseline
    from xentcheck.gate.confirm import measure_again

    results = _results(options.results)
    report = gate.compare(results, read_baseline(options.baseline), measure_again)
    text = gate.markdown(report, options.strict_perf)
    print(text, end="")
    gate.publish(text)
    return 1 if report.is_red(options.strict_perf) else 0


def _schema(options: argparse.Namespace) -> int:
    print(json.dumps(loader.json_schema(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
