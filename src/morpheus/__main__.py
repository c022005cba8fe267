"""`python -m morpheus`: the command, where the folder of scripts is not on the PATH."""

from morpheus.cli.main import main

if __name__ == "__main__":  # processes that are spawned import this module again
    main()
