"""`vitrail train` as a module, which is what launchers of several processes want.

accelerate launch --num_processes 2 -m vitrail.training --dataset digits
torchrun --nproc_per_node 2 -m vitrail.training --dataset digits
"""

import io
import os
import sys
from contextlib import nullcontext, redirect_stdout

from vitrail.cli.main import main


if __name__ == "__main__":
    # One process speaks for all, but each for its own errors.
    with redirect_stdout(io.StringIO()) if int(os.environ.get("RANK", "0")) else nullcontext():
        sys.exit(main(["train", *sys.argv[1:]]))
