"""F10: `python -m diffup_jax COMMAND ...`, the same as `diffup COMMAND ...`."""

# Under the guard: data workers import this file again, and need none of it.
if __name__ == "__main__":
    import sys

    from diffup_jax.cli import main

    sys.exit(main())
