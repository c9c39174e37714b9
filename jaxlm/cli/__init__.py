"""The command line: `main` and one thin file a verb."""
