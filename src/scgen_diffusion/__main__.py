"""``python -m scgen_diffusion``: the command line."""

from scgen_diffusion.cli import run

if __name__ == "__main__":
    run()
