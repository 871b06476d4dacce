"""`python -m gradclip` is the command `gradclip`."""

from .cli import app

app(prog_name="gradclip")
