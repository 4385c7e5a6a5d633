"""The commands, one thin module each: parses, calls the library, reports."""
