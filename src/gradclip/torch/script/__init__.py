"""Used by `gradclip run` alone: a script, its optimizers, its losses."""
