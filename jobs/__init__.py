"""How people run tatok: the command line and job files.

cli              the command line put together
help             how --help reads: groups, flags without a type
exit_codes       what a command's exit code means
interruption     what Ctrl-C and SIGTERM do to a command that resumes
job_file         a job file, the environment and --set -> the job
pictures         rows as pictures: originals beside what the tokens rebuild
reference        the tables of docs/reference, out of the code
"""
