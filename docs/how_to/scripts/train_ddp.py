"""Train a model with one process per device, on one machine or several. Run the same command again to resume.

Without arguments, two CPU processes train on a small data set of the package.

    python train_ddp.py
    python train_ddp.py cells.h5ad --layer counts --condition-keys cell_type donor --accelerator gpu --devices 4
    torchrun --nproc-per-node 4 train_ddp.py cells.h5ad --accelerator gpu --devices 4
    bash slurm_train.sh
"""

from __future__ import annotations

import argparse
import os

import anndata
import scvi

import scgen_diffusion as scgd


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="?", help="an .h5ad file with counts; without one: 700 blood cells")
    parser.add_argument("--layer", default="counts", help="where the counts are; 'X' for adata.X")
    parser.add_argument("--condition-keys", nargs="*", default=["cell_type"])
    parser.add_argument("--output", default="model", help="folder of the model; checkpoints go beside it")
    parser.add_argument("--max-epochs", type=int, help="default: from the number of cells")
    parser.add_argument("--batch-size", type=int, help="cells per step, of all processes together")
    parser.add_argument("--accelerator", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--devices", type=int, default=2, help="processes per machine")
    parser.add_argument("--num-nodes", type=int, default=1, help="machines")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    scvi.settings.seed = 0  # the same in all processes
    adata = anndata.read_h5ad(asked.cells) if asked.cells else scgd.datasets.pbmc68k_reduced()
    layer = None if asked.layer == "X" else asked.layer
    scgd.model.SCLDM.setup_anndata(adata, layer=layer, condition_keys=asked.condition_keys)
    model = scgd.model.SCLDM(adata)
    model.train(
        asked.max_epochs,
        batch_size=asked.batch_size,
        accelerator=asked.accelerator,
        devices=asked.devices,
        num_nodes=asked.num_nodes,
        strategy="ddp",
        checkpoint_dir=f"{asked.output}.checkpoints",  # a folder that all machines see
        enable_progress_bar=False,
    )
    if is_first_process():  # all have the same weights; one saves
        model.save(asked.output, overwrite=True)


def is_first_process() -> bool:
    """Read the rank that torchrun, Slurm or Lightning set in the environment."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    if "SLURM_PROCID" in os.environ and "SLURM_NTASKS" in os.environ:
        return os.environ["SLURM_PROCID"] == "0"
    return os.environ.get("NODE_RANK", "0") == "0" and os.environ.get("LOCAL_RANK", "0") == "0"


if __name__ == "__main__":
    main()
