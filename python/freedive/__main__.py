"""`python -m freedive VERB` is `freedive VERB`."""

from freedive.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
