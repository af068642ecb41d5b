"""What commands print of results.

statistics       tables and bars
evaluation       scores
query            rows of a query
folding          lines that end where the terminal does
plan             a source that was looked over, a job that was looked ahead at
run              the summary of a run
"""
