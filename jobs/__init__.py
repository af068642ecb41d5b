"""How people run tatok: the command line and job files.

cli              the command line put together
help             how --help reads: groups, flags without a type
exit_codes       what a command's exit code means
interruption     what Ctrl-C and SIGTERM do to a command that resumes
verbosity        --quiet and -v, and what they mean
job_file         a job file, the environment and --set -> the job
init_file        a commented job file for a source
training         what train and adapt do with a recipe
evaluation       what calibrate and eval ask before they encode
pictures         rows as pictures: originals beside what the tokens rebuild
reference        the tables of docs/reference, out of the code
"""
