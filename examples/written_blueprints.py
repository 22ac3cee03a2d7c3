"""Pairs with the blueprints that a checkpoint's own encoder writes, in place of those by rule: what it tells the painter in use.

python examples/written_blueprints.py data/emoji data/written

The first is a folder of `dim build-data emoji`. Training pairs get other blueprints, each written from the source and one wording of the
instruction, drawn at random; a pair that the encoder writes none for gets that wording. All else stays as it is.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from dim_jax.batching import batches
from dim_jax.datasets.layouts.pairs import DATASET, PAIR_SPLITS, decode_webp, read_pairs, read_pictures, write_pairs
from dim_jax.designer.local import LocalDesigner
from dim_jax.evals.designs import write_batch
from dim_jax.storage.folders import new_folder
from dim_jax.weights.bundled import bundled_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("emoji", type=Path, help="folder of dim build-data emoji")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--checkpoint", type=Path, default=bundled_checkpoint())
    parser.add_argument("--batch-size", type=int, default=1024)
    args = parser.parse_args()
    designer = LocalDesigner.from_pretrained(args.checkpoint)
    pictures, pairs = read_pictures(args.emoji), {split: read_pairs(args.emoji, split) for split in PAIR_SPLITS}
    rng, training, failures = np.random.default_rng(0), pairs["train"], 0
    wordings = [str(rng.choice(pair.instructions)) for pair in training]
    for number, batch in enumerate(batches([None] * len(training), args.batch_size)):
        sources = [decode_webp(pictures[pair.source].webp) for pair in batch.fill(training)]
        for i, (_, text, reason) in zip(batch.indices, write_batch(designer, sources, batch.fill(wordings)), strict=False):
            training[i] = replace(training[i], blueprint=text or wordings[i])
            failures += reason is not None
        print(f"{min((number + 1) * args.batch_size, len(training))} of {len(training)}, {failures} without a blueprint", flush=True)
    with new_folder(args.out, kind=DATASET) as scratch:
        write_pairs(scratch, pictures, [pair for of_split in pairs.values() for pair in of_split])
        shutil.copy(args.emoji / "README.md", scratch)  # the licences
    print(f"wrote {args.out}: {len(training)} training pairs, {failures} of them without a blueprint")


if __name__ == "__main__":
    main()
