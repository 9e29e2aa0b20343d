"""The embedded scenes with the embedded image-text backbone: quickstart with text.

Trained with `tiny_clip_s`; scored with it and, without more training, with
`tiny_clip_m` (`--config.backbone.name=tiny_clip_m`). What text adds to a visual cue:
`--config.eval.cues=mask,mask+text,point,point+text,text`.
"""

from configs import common, quickstart


def get_config(fold=None):
    config = quickstart.get_config()
    config.backbone.name = "tiny_clip_s"
    # The backbone's patches are 8 pixels: 24 x 24 cells of a picture, one per cell of
    # the prior grid. The mask has 32 x 32 pixels, of 6 each, as in quickstart.
    config.train.cues = ("mask", "box", "scribble", "point", "text")
    # Walked four to five times, so that the backbone runs on 1800 episodes, not 8400.
    config.train.prior_cache = 1800
    config.eval.cues = ("mask", "box", "scribble", "point", "text")
    config.eval.shots = (0, 1, 5)
    config.eval.episodes = 120
    return common.with_fold(config, fold)
