"""What a run reports, and how it is shown.

events           what happened, as types
figures          counts and rates out of events
progress         the display on a terminal
run_log          events as JSON lines
machine_load     whether others use this machine, too
"""
