"""`python -m antibackdoor`."""

from antibackdoor.cli import main

if __name__ == "__main__":
    main()
