"""Train in several processes: on several GPUs or machines, or on the cores of one CPU.

    torchrun --nproc-per-node 2 examples/train_distributed.py            # or: accelerate launch examples/train_distributed.py
    python examples/train_distributed.py                                 # the same in one process

Every process runs this script from top to bottom with the same rows. In `fit` they share each batch; everything else is
done by each for itself, so only the first one prints and saves.
"""

from __future__ import annotations

import argparse
import os
import time

from sklearn.model_selection import train_test_split

from skmft import MetaFineTunedClassifier
from skmft.datasets import fetch_rated_snippets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400, help="training texts of all domains")
    parser.add_argument("--device", default="auto", help="'cpu' trains on the CPU even where there is a GPU")
    parser.add_argument("--save", help="folder for the fitted classifier")
    args = parser.parse_args()

    X, y, d = fetch_rated_snippets(return_X_y_domains=True)
    X, X_test, y, y_test, d, d_test = train_test_split(
        X, y, d, train_size=args.rows, test_size=400, stratify=d, random_state=0
    )
    clf = MetaFineTunedClassifier(distributed=True, device=args.device, random_state=0, verbose=1)
    start = time.perf_counter()
    clf.fit(X, y, domains=d)
    if int(os.environ.get("RANK", "0")) == 0:  # the launcher numbers the processes
        accuracy = clf.score(X_test, y_test, domains=d_test)
        print(
            f"{os.environ.get('WORLD_SIZE', '1')} processes, device {next(clf.meta_learner_.parameters()).device}: "
            f"{time.perf_counter() - start:.0f} s"
        )
        print(f"accuracy on {len(X_test)} test texts: {accuracy:.3f}")
        if args.save:
            clf.save(args.save)


if __name__ == "__main__":
    main()
