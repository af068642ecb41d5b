"""One run of the real job with the tests' fake model: what chaos.py starts, kills and starts again.

python chaos_driver.py SOURCE OUTPUT DELAY_S [NUM_DECODERS [FILTER]]
"""

from __future__ import annotations

import functools
import sys

from tatok.pipeline.cluster import sizes
from tatok.pipeline.monitoring.events import Event, Notice, ShardFailed, ShardRetried
from tatok.pipeline.run import run_job
from tatok.schemas.job import JobConfig
from tests.support.fake_tokenizer import load_fake


def _print(event: Event) -> None:
    if isinstance(event, ShardFailed | ShardRetried):
        print(f"{type(event).__name__} {event.shard.uri}: {event.reason}", flush=True)
    elif isinstance(event, Notice):
        print(f"notice: {event.message}", flush=True)


def main(source: str, output: str, delay_s: float, num_decoders: int = 3, sample_filter: str | None = None) -> int:
    """The exit code of `tatok tokenize`: 0 complete, 3 not."""
    sizes._PIECE_BYTES = 1 << 10  # small photos are to be worth as many processes as large ones
    config = JobConfig.model_validate(
        {
            "source": source,
            "output": output,
            "device": "cpu",
            "preprocessing": {"image_size": 64},
            "filter": sample_filter,
            "resources": {
                "batch_size": 4,
                "num_tokenizers": 2,
                "num_decoders": num_decoders,
                "decode_timeout_s": 20,
                "lease_timeout_s": 80,
            },
        }
    )
    summary = run_job(config, load_tokenizer=functools.partial(load_fake, delay_s=delay_s), on_event=_print)
    print(f"{summary.status}: {summary.num_parts} parts, {summary.num_rows} rows, {dict(summary.rejects)}", flush=True)
    return 0 if summary.status == "complete" else 3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), *map(int, sys.argv[4:5]), *sys.argv[5:6]))
