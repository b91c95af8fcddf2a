"""The paper's recipe on windows of real nodules, for the studies of SE, auxiliary head, losses and networks.

    python -m experiments.studies.ablations --config=experiments/nodules/window_config.py --data=npz \\
        --data_dir=FOLDER/judged --config.data.extra_dir=FOLDER/added --seeds=1,2,3,4,5 --folds=0,1,2,3,4 --paired

`experiments.nodules.windows` writes FOLDER. With `--data=crops` the folder is that of the crops themselves, which have
neighbouring slices, and no window without a nodule. Loss, optimiser and auxiliary weight are the paper's; the width is what two
cores allow, and slices are turned, moved and scaled at random.
"""

from configs import base


def get_config():
    """Returns base with two classes, windows of 64x64 and a network of width 8."""
    config = base.get_config()
    config.data.name = "npz"
    config.data.classes = ("background", "nodule")
    config.data.size = (64, 64)
    config.model.base_width = 8
    config.augment.enabled = True
    config.optim.cosine_epochs = 14
    config.optim.stop_patience_epochs = 14
    config.train.batch_size = 16
    config.train.num_epochs = 14
    config.train.bn_refresh_batches = 20
    return config
