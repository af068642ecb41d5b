"""What a command's exit code means, in one place: scripts and schedulers act on them.

0      all that was asked for is done
1      EXIT_ERROR: the command cannot be done; one message on standard error says why
2      wrong usage: an unknown command or option (typer's own)
3      EXIT_INCOMPLETE: shards failed, or there were too many rejects (tokenize, demo);
       EXIT_FINDINGS: something is wrong with what was examined (verify, doctor)
4      EXIT_REJECTS: there were rejects, and --fail-on-reject was given (tokenize)
130    EXIT_INTERRUPTED: Ctrl-C; the same command resumes
143    EXIT_TERMINATED: SIGTERM, as Kubernetes and Slurm send it; the same command resumes

`tatok submit` exits as the command that it runs on the cluster does, or with the number of the signal that killed it.
"""

from __future__ import annotations

import signal

from tatok.stopping import Interrupted

__all__ = [
    "EXIT_ERROR",
    "EXIT_FINDINGS",
    "EXIT_INCOMPLETE",
    "EXIT_INTERRUPTED",
    "EXIT_REJECTS",
    "EXIT_TERMINATED",
    "TOKENIZE_EPILOG",
    "TRAIN_EPILOG",
    "exit_code_of",
]

EXIT_ERROR = 1
EXIT_INCOMPLETE = 3
EXIT_FINDINGS = 3
EXIT_REJECTS = 4
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

TOKENIZE_EPILOG = (
    "Exit codes: 0 every shard is committed (rejects within limits.max_reject_fraction are listed, not fatal); "
    "1 the command cannot be done; 2 wrong usage; 3 shards failed or there were too many rejects; "
    "4 there were rejects and --fail-on-reject was given; 130 interrupted; "
    "143 ended by SIGTERM."
)
TRAIN_EPILOG = (
    "Exit codes: 0 trained to the end; 1 the command cannot be done; 2 wrong usage; 130 interrupted, 143 ended by "
    "SIGTERM: the state is saved, and the same command resumes."
)


def exit_code_of(interrupt: KeyboardInterrupt) -> int:
    """The exit code of a command that Ctrl-C or SIGTERM has ended."""
    is_sigterm = isinstance(interrupt, Interrupted) and interrupt.signal_number == signal.SIGTERM
    return EXIT_TERMINATED if is_sigterm else EXIT_INTERRUPTED
