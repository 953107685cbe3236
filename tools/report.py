"""Turn a work directory into one self-contained HTML page.

    python tools/report.py WORK_DIR [--out report.html]

Learning curves, weights over noise, accuracy over severity, subsets, classes, predictions worst first, gradients,
encoder damage, t-SNE, branches, cost, and the commands and seeds of all that. Pictures are inline; the page needs no
network. A section whose input is absent says which command makes it.
"""
from __future__ import annotations

import argparse

import mmfusion_plugin  # noqa: F401  cures the installed wheels before anything of theirs is imported

# isort: split
from mmfusion_plugin.analysis.report import write_report
from mmfusion_plugin.engine import launch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work_dir", help="folder of a training")
    parser.add_argument("--out", metavar="FILE.html", help="default: report.html in the work dir")
    args = parser.parse_args()
    try:
        print(write_report(args.work_dir, args.out))
    except (FileNotFoundError, ValueError) as error:
        raise launch.UsageError(str(error)) from None


if __name__ == "__main__":
    launch.run_tool(main)
