"""How people run tatok: the command line and job files."""
