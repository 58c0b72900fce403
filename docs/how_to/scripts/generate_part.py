"""Generate one share of the cells. The processes need a common folder, and no other communication.

    python generate_part.py model cells.zarr --n-cells 100000 --rank 0 --n-ranks 4

The last process to finish puts the file together. If one is killed, start it again with the same arguments.
"""

from __future__ import annotations

import argparse
import json

import scgen_diffusion as scgd


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a saved model")
    parser.add_argument("cells", help="file to write: .zarr or .h5ad")
    parser.add_argument("--n-cells", type=int, default=1000)
    parser.add_argument(
        "--condition", type=json.loads, help='for example {"cell_type": "CD19+ B"}; default: as in training'
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-size", type=int, help="cells per part of the file")
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--n-ranks", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    asked = arguments()
    model = scgd.model.load(asked.model, adata=False, accelerator=asked.accelerator)
    model.generate_to(
        asked.cells,
        asked.n_cells,
        asked.condition,
        seed=asked.seed,
        shard_size=asked.shard_size,
        rank=asked.rank,
        n_ranks=asked.n_ranks,
    )
