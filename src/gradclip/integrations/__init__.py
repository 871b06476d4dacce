"""gradclip in the frameworks: one thin module each; importing this package imports none of them."""
