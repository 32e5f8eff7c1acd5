"""``python -m clease_nn`` is the command ``clease-nn``."""

from clease_nn.cli import main

if __name__ == "__main__":
    main()
