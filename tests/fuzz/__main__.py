"""Give many mutated files to every reader, and print what breaks the rules.

    python tests/fuzz --cases 20000                  all readers but ComfyUI's own code
    python tests/fuzz --cases 20000 COMFYUI_FOLDER   with it in the merge node's reader
    python tests/fuzz --first 1537 --cases 1         one case again

Run it with the repository in PYTHONPATH, or installed. It takes some 50 ms a case.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

parser = argparse.ArgumentParser()
parser.add_argument("comfyui", nargs="?", help="ComfyUI's folder")
parser.add_argument("--cases", type=int, default=1000)
parser.add_argument("--first", type=int, default=0)
options = parser.parse_args()
if options.comfyui:
    sys.argv = [sys.argv[0], options.comfyui]
    import in_comfy  # noqa: F401

import torch  # noqa: E402
from fuzz_files import mutated  # noqa: E402
from fuzz_readers import OUTCOMES, findings  # noqa: E402

if options.comfyui:
    import fuzz_host  # noqa: F401


def main() -> int:
    torch.set_num_threads(1)
    found = 0
    begun = time.monotonic()
    for number in range(options.first, options.first + options.cases):
        case = mutated(number)
        with tempfile.TemporaryDirectory() as folder:
            for finding in findings(number, case, Path(folder)):
                found += 1
                print(f"case {number} ({case.name}), {finding.reader}: {finding.what}", flush=True)
        if number % 500 == 499:
            print(f"{number + 1} cases, {time.monotonic() - begun:.0f} s", file=sys.stderr)
    for (reader, outcome), count in sorted(OUTCOMES.items()):
        print(f"{reader}: {outcome} {count}")
    print(f"{options.cases} cases, {sum(OUTCOMES.values())} answers, {found} broken rules")
    return 1 if found else 0


sys.exit(main())
