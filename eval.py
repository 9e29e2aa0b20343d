"""Evaluate: `python eval.py --workdir W --output results.json`.

Scores the newest checkpoint of --workdir on novel classes for every cue and number of
shots of config.eval, prints the table and writes results.json, the episode lists and
gallery.html. The checkpoint has the config; `--config.a.b=value` changes it, and
`--config FILE` names another. Another backbone needs only `--config.backbone.name=…
--config.backbone.weights=…`; `--config FILE --config.method=prior` scores the
training-free prior, without --workdir.
"""

# Imports stand under the guard: data workers import this file again, and need none.
if __name__ == "__main__":
    from absl import flags

    from diffup_jax import launch, scoring

    workdir = flags.DEFINE_string("workdir", None, "Folder of the trained run.")
    output = flags.DEFINE_string(
        "output", None, "File for the results as JSON.", required=True
    )
    launch.run(
        lambda config: scoring.score_run(
            config, workdir=workdir.value, output=output.value
        ),
        of_workdir=True,
    )
