"""Contracts between the packages: records, errors, Arrow schemas and the job file. No torch, no Ray."""
