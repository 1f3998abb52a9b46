"""`python -m taskline`."""

from taskline.cli import main

if __name__ == "__main__":
    main()
