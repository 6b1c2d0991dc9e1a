"""The command line `iteris`: one file per group of commands, and their common parts."""
