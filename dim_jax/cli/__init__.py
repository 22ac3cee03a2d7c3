"""The command `dim`: options in, one call of the library, one line out."""
