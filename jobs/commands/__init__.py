"""One file a group of commands; no command imports another.

tokenize         tokenize, demo
plan             plan
doctor           doctor, check-tokenizer
verify           verify
statistics       stats, query
pictures         report, show, decode
export           export, compact
model            train, calibrate, eval, distance
generator        generator train, generator sample
submit           submit, jobs
bench            bench
config           config init, schema, show
"""
