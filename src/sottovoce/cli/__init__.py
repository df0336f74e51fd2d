"""The command `sotto`: each command parses, makes one library call, prints.

Results go to standard output, progress and messages to standard error. Libraries are imported inside the commands, so
that `sotto --help` starts at once and only the commands that need torch or onnx ask for them.
"""

from __future__ import annotations

import click

from sottovoce import __version__
from sottovoce.cli import analyze, calibrate, cascade, imports, make, measure, report, study, use
from sottovoce.cli.frame import TRACEBACK, Commands

COMMANDS = (
    use.verify_command,
    use.embed_command,
    calibrate.calibrate_command,
    measure.evaluate_command,
    measure.inspect_command,
    measure.bench_command,
    measure.demo_command,
    imports.import_command,
    make.train_command,
    make.allocate_command,
    make.compress_command,
    make.export_command,
    study.sweep_command,
    study.reproduce_command,
    analyze.drift_command,
    analyze.analyze_command,
    analyze.probe_command,
    cascade.cascade_group,
    report.report_command,
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="sotto")
@TRACEBACK
def main() -> None:
    """Quantize speaker-verification networks, measure them, and verify speakers with the result.

    Results go to standard output (--json for programs), progress and messages to standard error. Exit code 2 is an
    error in every command.
    """


for entry in COMMANDS:
    main.add_command(entry)
