"""Code that comes in between: exceptions and calls at every line of ours, random signals, forks, and the end of Python."""
