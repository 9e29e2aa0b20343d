"""Real street photographs with pixel labels; `--config configs/garments.py:FOLD`.

Base classes of train.txt train, novel classes of test.txt test. SqueezeNet 1.1.
"""

from configs import common


def get_config(fold=None):
    config = common.get_config()
    config.backbone.name = "squeezenet1_1"
    config.backbone.weights = "$DIFFUP_REALDATA/weights/squeezenet_v1_1_notop_hwio.npz"
    config.data.source = "label_map"
    config.data.root = "$DIFFUP_REALDATA/garments"
    config.data.train_split = "train"
    config.data.test_split = "test"
    config.data.min_area = 0.01
    config.data.val_fraction = 0.1
    # Three sizes, chosen on base classes of training images: docs/log/results.md.
    config.prior.scales = (0.33, 0.5, 0.67)
    config.diffup.decoder.size = "S"
    config.diffup.decoder.mask_stride = 8
    # Chosen on base classes of held-out training images: docs/log/results.md.
    config.diffup.sampler.threshold = "iou"
    # For process.diffusion, where 2 steps and 4 samples are enough:
    # x_t holds what the chain will hold, the decoder's own answers and the prior.
    config.diffup.losses.from_own = 0.6
    config.diffup.losses.from_prior = 0.4
    config.train.steps = 1500
    config.train.batch_size = 12
    # Named three times: half of the cues are masks.
    config.train.cues = ("mask", "mask", "mask", "box", "scribble", "point")
    config.train.max_shots = 1
    # A third of the episodes that the steps take, for time on two cores.
    config.train.prior_cache = 6000
    config.train.learning_rate = 1e-3
    config.train.warmup_steps = 100
    config.train.ema_decay = 0.998
    config.train.log_every = 10
    config.train.val_every = 500
    config.train.val_episodes = 120
    config.train.checkpoint_every = 250
    config.eval.episodes = 400
    config.eval.protocol = "clean"
    return common.with_fold(config, fold)
