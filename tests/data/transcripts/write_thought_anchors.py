"""Write thought_anchors/math_rollouts with a checkout of interp-reasoning/thought-anchors.

    python -m venv ENV; ENV/bin/pip install torch==2.13.0
    ENV/bin/pip install numpy transformers==5.23.0 httpx python-dotenv tqdm
    ENV/bin/python tests/data/transcripts/write_thought_anchors.py CHECKOUT

Runs its generate_rollouts.py (and utils.py) as it is, with its local provider, on the bundled
reasoner; only the module `datasets` is a stand-in, with one problem for MATH. Then twice more for a
third rollout: with a repetition penalty that transformers refuses, which leaves an error in
chunk_0; and with 40 tokens, too few for an answer, in chunk_1.

The sums below are of the code that wrote what is kept. That was no checkout of the repository but a
retyped copy of a stored fork's files (vibhor-5's: generate_rollouts.py at commit 1c39d570, 37,878
characters; utils.py at ff60857b, 17,301), so a real checkout may differ: it runs too, with a
warning. Same bytes every time with the same versions.

thought_anchors/published was not written here: it is a published trace (MIT, LICENSE.md there),
less its step_importance_supp.json.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

OUT = Path(__file__).parent / "thought_anchors" / "math_rollouts"
WEIGHTS = Path(__file__).resolve().parents[3] / "stepflow_tl" / "reasoner" / "weights"
SUMS = {
    "generate_rollouts.py": "6d3fcdce2a47a2ce5d113173135ef348a7a705b2bb0e9eaaa89e832f8ce502a5",
    "utils.py": "b822e3ff6f6dfe0f674ab7ab9c56b3d02cb56457879847ee98fa286bf0eac2eb",
}
DATASETS = '''
def load_dataset(name):
    """Give two problems; the first is filtered out by its level."""
    easy = {"problem": "Add 2 and 5.", "level": "Level 1", "type": "Algebra", "solution": "7"}
    hard = {
        "problem": "How many coins does Una have? In coins unlike Ivy, Una has two more. "
        "In coins after Dan, Ivy has three more. In coins unlike Sue, Dan has twice as many. "
        "In coins, Sue has 12.",
        "level": "Level 5",
        "type": "Algebra",
        "solution": r"Dan has $12*2=24$, Ivy $24+3=27$, Una $27+2=29$: $\\boxed{29}$.",
    }
    return {"train": [easy, hard]}
'''


def main(checkout):
    """Run the checkout in a scratch folder and keep what it wrote."""
    for name, expected in SUMS.items():
        if hashlib.sha256((checkout / name).read_bytes()).hexdigest() != expected:
            warnings.warn(f"{name} is another version", stacklevel=1)
    with tempfile.TemporaryDirectory() as scratch:
        stand_in = Path(scratch, "stand_in")
        stand_in.mkdir()
        (stand_in / "datasets.py").write_text(DATASETS)
        Path(scratch, "reasoner").symlink_to(WEIGHTS)
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(stand_in),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

        def run(*options):
            command = [sys.executable, str(checkout / "generate_rollouts.py"), "-p", "Local"]
            command += ["-m", "reasoner", *options]
            subprocess.run(command, cwd=scratch, env=environment, check=True, timeout=300)

        run("-nr", "2", "-mt", "200")
        run("-nr", "3", "-mt", "200", "-ic", "0", "-rp", "0")
        run("-nr", "3", "-mt", "40", "-ic", "1")
        shutil.rmtree(OUT, ignore_errors=True)
        shutil.copytree(Path(scratch, "math_rollouts"), OUT)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
