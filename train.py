"""Train: `python train.py --config configs/coco_fold0.py --workdir runs/coco_f0`.

Any config value can be set: `--config.train.steps=100`. Started again with the same
command, training continues exactly where it was.
"""

# Imports stand under the guard: data workers import this file again, and need none.
if __name__ == "__main__":
    from absl import flags

    from diffup_jax import launch, training

    workdir = flags.DEFINE_string(
        "workdir", None, "Folder of checkpoints, metrics and config.", required=True
    )
    launch.run(lambda config: training.train(config, workdir.value), of_workdir=False)
