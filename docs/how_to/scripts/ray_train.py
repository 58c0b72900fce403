"""Train a model with Ray Train: by default two CPU workers on this machine, or more on a Ray cluster.

pip install "ray[train]"
python ray_train.py
python ray_train.py --cells /shared/cells.h5ad --output /shared/model --n-workers 8 --gpu
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def train(asked: dict[str, Any]) -> None:
    """Train on one worker."""
    import anndata
    import ray.train.lightning
    import scvi

    import scgen_diffusion as scgd

    scvi.settings.seed = 0
    adata = anndata.read_h5ad(asked["cells"]) if asked["cells"] else scgd.datasets.pbmc68k_reduced()
    layer = None if asked["layer"] == "X" else asked["layer"]
    scgd.model.SCLDM.setup_anndata(adata, layer=layer, condition_keys=asked["condition_keys"])
    model = scgd.model.SCLDM(adata)
    model.train(
        asked["max_epochs"],
        accelerator="gpu" if asked["gpu"] else "cpu",
        devices=1 if asked["gpu"] else "auto",  # a worker sees its own GPU
        strategy=ray.train.lightning.RayDDPStrategy(),
        plugins=[ray.train.lightning.RayLightningEnvironment()],
        checkpoint_dir=f"{asked['output']}.checkpoints",  # a worker that is started again resumes from there
        enable_progress_bar=False,
    )
    losses = {name: float(frame.iloc[-1, 0]) for name, frame in model.history.items()}
    context = ray.train.get_context()
    if context.get_world_rank() == 0:
        model.save(asked["output"], overwrite=True)
    ray.train.report(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", help="an .h5ad file that all workers see; without one: 700 blood cells")
    parser.add_argument("--layer", default="counts", help="where the counts are; 'X' for adata.X")
    parser.add_argument("--condition-keys", nargs="*", default=["cell_type"])
    parser.add_argument("--output", default="model", help="folder that all workers see")
    parser.add_argument("--max-epochs", type=int)
    parser.add_argument("--n-workers", type=int, default=2)
    parser.add_argument("--gpu", action="store_true")
    asked = vars(parser.parse_args())
    asked["output"] = str(Path(asked["output"]).absolute())
    ray.init()
    trainer = TorchTrainer(
        train,
        train_loop_config=asked,
        scaling_config=ScalingConfig(num_workers=asked["n_workers"], use_gpu=asked["gpu"]),
        run_config=RunConfig(
            name="scgen-diffusion", storage_path=f"{asked['output']}.ray", failure_config=FailureConfig(max_failures=3)
        ),
    )
    trainer.fit()
    print(f"The model is in {asked['output']}.")


if __name__ == "__main__":
    main()
