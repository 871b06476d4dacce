"""What checks the package before a release; `make help` lists the commands."""
