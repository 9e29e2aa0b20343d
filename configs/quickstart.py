"""The embedded scenes with the embedded backbone, without text. Minutes on 2 cores."""

from configs import common


def get_config(fold=None):
    config = common.get_config()
    config.backbone.name = "tiny"
    config.data.root = "runs/scenes"
    config.data.train_split = "train"
    config.data.test_split = "val"
    config.data.image_size = 192
    config.data.val_fraction = 0.1
    # A colour is part of a scene's category, so colours stay nearly as they are.
    config.augment.scale = (0.7, 1.1)
    config.augment.brightness = 0.1
    config.augment.contrast = 0.1
    config.augment.saturation = 0.1
    config.augment.hue = 0.0
    config.augment.grey = 0.0
    config.diffup.decoder.size = "S"
    config.diffup.decoder.mask_stride = 6
    config.train.steps = 700
    config.train.batch_size = 12
    config.train.max_shots = 1
    config.train.learning_rate = 2e-3
    config.train.warmup_steps = 50
    config.train.ema_decay = 0.99
    config.train.log_every = 10
    config.train.val_every = 350
    config.train.val_episodes = 100
    config.train.checkpoint_every = 100
    config.eval.episodes = 200
    config.eval.protocol = "clean"
    return common.with_fold(config, fold)
