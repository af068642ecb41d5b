"""The job's processes on Ray, seen from inside.

decoder      decoder actors
tokenizer    tokenizer actors
start        how they start quickly
borrowed     what a process makes of others that are lent to it
flow         how much goes between them at a time
reports      what they report
deaths       what Ray says of those that are gone
"""
