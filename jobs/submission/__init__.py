"""Jobs for a cluster that runs elsewhere.

package          what travels with a job
ray_jobs         Ray's job API; the only file here that imports Ray
following        a job as people watch it: its state, its log, its exit code
kuberay          a RayJob for Kubernetes
"""
