"""The one home of every default. The other configs change what they must.

Any value can be set on the command line: `--config.train.steps=100`. Unknown keys are
refused. Paths may hold environment variables.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """COCO-20i fold 0, ResNet-50: the full benchmark."""
    return ConfigDict(
        {
            "seed": 0,
            # "diffup", or "prior": the training-free method (eval.py only).
            "method": "diffup",
            "backbone": {
                "name": "resnet50",
                # A file, a folder, a Hugging Face id, "random" by name, or "": the
                # weights packaged with it or its default id (diffup backbones list).
                "weights": "",
            },
            "data": {
                # A row of diffup_jax/data/benchmarks.py: "coco", "voc", "fss1000",
                # "lvis92i", "paco_part", "pascal_part", "coco_to_pascal", "folder",
                # "label_map" or "array_record".
                "source": "coco",
                "root": "data/coco",
                # Where test episodes come from; "" = root.
                "test_root": "",
                "train_split": "train2014",
                "test_split": "val2014",
                "fold": 0,
                # Images are resized to squares of this many pixels.
                "image_size": 384,
                # Share of an image a class must cover to count in it; 0 = any pixel.
                # The protocols denet and pfenet test by rules of their own instead.
                "min_area": 0.0,
                # True leaves out classes with too few images for the shots asked, and
                # names them; False refuses to run.
                "skip_small_classes": False,
                # Crowd regions: "hsnet" or "ignore" (see diffup_jax/data/coco.py).
                "crowd": "hsnet",
                # A pixel of two COCO classes: "union", both have it, or "painted".
                "overlap": "union",
                # What a box cue is: "tight", "component" or "instance"; a scribble:
                # "stroke" or "skeleton" (see diffup_jax/data/cues.py).
                "box": "tight",
                "scribble": "stroke",
                # Pixels of a point cue; 1 is one click. Published: 20.
                "points": 20,
                # A damaged file or annotation: "stop", or "skip" it, aloud.
                "on_error": "stop",
                # Share of training images kept aside for validation on base classes.
                "val_fraction": 0.05,
                # Processes that decode images; 0 = in the training process.
                "workers": 2,
            },
            "augment": {
                # Probability of a horizontal flip.
                "flip": 0.5,
                # Side of the crop relative to the image; above 1 zooms out.
                "scale": (0.5, 1.2),
                # The crop's two sides differ by a factor of up to this, at least 1.
                "aspect": 1.25,
                # Largest relative changes of colour, and the chance of a grey image.
                "brightness": 0.3,
                "contrast": 0.3,
                "saturation": 0.3,
                "hue": 0.03,
                "grey": 0.05,
            },
            "prior": {
                # Backbone levels; () = the backbone's own choice.
                "levels": (),
                # Sizes at which the backbone sees an image, relative to image_size;
                # levels of all sizes count alike. Larger ones cost more.
                "scales": (1.0,),
                "temperature": 0.1,
                "fusion_temperature": 0.1,
                "grid_stride": 8,
                "affinity_stride": 16,
            },
            # What a text cue says, where the backbone has a text tower.
            "text": {
                # Sentences for a class name, each with {name} once; their embeddings
                # are averaged.
                "templates": ("a photo of a {name}",),
                # What is no class: a list of diffup_jax/backbones/prompts.py,
                # "default", "coco" or "pascal", or a tuple of names.
                "backgrounds": ("default",),
                # Of the softmax between class and backgrounds; 0 = the model's own.
                "temperature": 0.0,
            },
            "decoder": {
                "size": "B",
                "mask_stride": 4,
                # What it is shown and made of, for ablations: see diffup_jax/uqdd.py.
                "query_rgb": True,
                "layout": True,
                "affinity": True,
                "scm": True,
                "dqm": True,
            },
            "process": {
                # True: the paper's diffusion, with sampler.steps and samples of your
                # choice. False: the same decoder answers in one forward, which was as
                # good in what was measured, and is cheaper: docs/results.md.
                "diffusion": False,
                "signal_scale": 1.0,
                "condition_strength": 0.0,
            },
            "sampler": {
                "steps": 1,
                "eta": 1.0,
                "samples": 1,
                "warm_start": False,
                "prior_dropout": 0.0,
                # Where the probability is cut: "half", at 1/2, or "iou", so that the
                # expected IoU of the mask is greatest (diffup_jax/methods/decision.py).
                "threshold": "half",
            },
            "losses": {
                # The first five are of the chain, and error and quality of its DQM.
                "first_step": 0.5,
                "time_bias": 2.0,
                "from_own": 0.4,
                "from_prior": 0.35,
                "self_conditioning": 0.5,
                "prior_dropout": 0.2,
                "prior_gamma": 0.3,
                "dice": 1.0,
                "error": 0.2,
                "quality": 0.2,
            },
            "train": {
                "steps": 60_000,
                "batch_size": 32,
                "max_shots": 5,
                # Classes of a training episode, 1 to 5.
                "ways": 1,
                # With "text" among them an episode has the class name alone as often
                # as any other cue, and beside its shots in half of the others.
                "cues": ("mask", "box", "scribble", "point"),
                # A point cue has this many to data.points pixels, few as often as many
                # (log-uniform); from data.points on always so many.
                "fewest_points": 1,
                "learning_rate": 5e-4,
                "warmup_steps": 500,
                "weight_decay": 1e-2,
                "clip_norm": 1.0,
                "ema_decay": 0.9995,
                "log_every": 50,
                "val_every": 2000,
                "val_episodes": 200,
                # So many base classes are left out of the training, and validation is
                # on them: a decoder that only gets better on classes it knows shows
                # there. 0 = validation on the classes that train, none is lost.
                "val_classes": 0,
                "checkpoint_every": 1000,
                # Checkpoints kept; the newest ones.
                "keep": 3,
                # Episodes whose priors are made once, kept on disk and walked again
                # and again, see docs/method.md; 0 = every episode is new.
                "prior_cache": 0,
                # Where they are kept, for several runs; "" = WORKDIR/prior_cache.
                "prior_cache_dir": "",
                # Further frozen backbones, which the steps take in turn with
                # config.backbone so that a swap costs less, see `over` below.
                "also_over": {},
                # True on clusters of several hosts: jax.distributed.initialize().
                "multi_host": False,
            },
            "eval": {
                # Several kinds in one episode: "mask+scribble", shot i takes kind
                # i mod 2. "text" alone is zero-shot, "mask+text" has it beside the
                # shots.
                "cues": ("mask", "box", "scribble", "point"),
                # 0 is for text alone, which is scored with it whether listed or not.
                "shots": (1, 5),
                # Classes of a test episode; protocols denet and clean know several.
                "ways": 1,
                # 0 = the published number of the benchmark and protocol.
                "episodes": 0,
                # A list written by data_prep.freeze_episodes; "" = drawn now.
                "episodes_file": "",
                # "hsnet", "original", "pfenet", "denet" or "clean", see
                # diffup_jax/data/protocols.py.
                "protocol": "hsnet",
                "batch_size": 8,
                "seed": 0,
                # Episodes shown in gallery.html; 0 = no gallery.
                "gallery": 24,
            },
        }
    )


def over(
    weights: str = "",
    *,
    levels: tuple[str, ...] = (),
    scales: tuple[float, ...] = (1.0,),
) -> ConfigDict:
    """A further backbone: `config.train.also_over.NAME = over(...)`.

    weights as config.backbone.weights; levels and scales as those of config.prior.
    """
    return ConfigDict({"weights": weights, "levels": levels, "scales": scales})


def with_fold(config: ConfigDict, fold: str | None) -> ConfigDict:
    """`--config FILE:FOLD` sets the fold."""
    if fold is not None:
        config.data.fold = int(fold)
    return config
