"""What commands print of results.

statistics       tables and bars
evaluation       scores
query            rows of a query
run              the summary of a run
"""
