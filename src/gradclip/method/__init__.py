"""A method as data: what is measured, how large is too large, what happens then."""
