"""The table of the studies, in Markdown.

python examples/studies/table.py                        # their questions, as in the README, without running any
python examples/studies/table.py --quick                # runs all of them in their quick form
python examples/studies/table.py --from results/        # from what `--json results/NAME.json` wrote
"""

import argparse
import ast
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from _study import HEADER, QUESTIONS, asked, row

HERE = Path(__file__).parent


def studies() -> dict[str, dict[str, str]]:
    """Script to the literals of its `STUDY`, by name, without importing it."""
    found = {}
    for path in sorted(HERE.glob("*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "STUDY":
                found[path.name] = {word.arg: ast.literal_eval(word.value) for word in node.value.keywords}
    return found


def result(script: str, folder: Path, options: list[str]) -> dict:
    """What a study found: run now, its own output on standard error."""
    out = folder / f"{Path(script).stem}.json"
    done = subprocess.run([sys.executable, str(HERE / script), *options, "--json", str(out)], stdout=sys.stderr)
    return json.loads(out.read_text("utf-8")) if done.returncode == 0 and out.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="run all in their quick form")
    parser.add_argument("--run", action="store_true", help="run all as they are, minutes each")
    parser.add_argument("--from", dest="folder", type=Path, help="read NAME.json there instead of running")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not (args.quick or args.run or args.folder):
        print("\n".join([QUESTIONS, *(asked(script, study) for script, study in studies().items())]))
        return
    print(HEADER)
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        for script, study in studies().items():
            found: dict = {}
            if args.folder is not None:
                path = args.folder / f"{Path(script).stem}.json"
                found = json.loads(path.read_text("utf-8")) if path.exists() else {}
            else:
                options = ["--seed", str(args.seed), *(["--quick"] if args.quick else [])]
                found = result(script, Path(temporary), options)
                failed |= not found
            print(row(script, study | found), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
