# vft: see README.md. `make demo` and `make test` do all set-up themselves.

SHELL := /bin/bash
GO ?= go
BIN := bin
COMMANDS := mpirun-vft vft vft-guest vft-bench
LINT_VERSION := v2.15.0
GOFUMPT_VERSION := v0.12.0
VERSITYGW_VERSION := v1.8.0
TOOLS := $(CURDIR)/.cache/tools

# The program of the demo: bt-mz, sp-mz, lu-mz (class W), heat, or hpcc, which
# exists for Open MPI only; and the MPI, openmpi or mpich.
APP ?= bt-mz
MPI ?= openmpi

# Where measurements are kept; what is there is not measured again.
RESULTS ?= bench-results

.PHONY: all deps build workloads npbmz image demo bench bench-full test test-unit test-browser test-e2e test-tools lint fmt generate clean

all: build

deps:
	@scripts/deps.sh

build: $(BIN)/libvft-mpich.so
	@mkdir -p $(BIN)
	@for c in $(COMMANDS); do CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN)/$$c ./cmd/$$c || exit 1; done

# Preloaded into the ranks of MPICH programs; its first lines say why.
$(BIN)/libvft-mpich.so: guest/preload/src/mpich.c
	@mkdir -p $(BIN)
	@command -v gcc >/dev/null || { echo "gcc is missing: run \`make deps\`" >&2; exit 1; }
	gcc -shared -fPIC -O2 -Wall -Wextra -o $@ $<

workloads: deps $(BIN)/heat.openmpi $(BIN)/heat.mpich $(BIN)/alltoall.openmpi $(BIN)/datagrams.openmpi $(BIN)/sweep.openmpi

$(BIN)/%.openmpi: bench/workloads/%.c
	@mkdir -p $(BIN)
	mpicc.openmpi -O2 -Wall -Wextra -o $@ $< -lm

$(BIN)/%.mpich: bench/workloads/%.c
	@mkdir -p $(BIN)
	mpicc.mpich -O2 -Wall -Wextra -o $@ $< -lm

# BT-MZ, SP-MZ and LU-MZ (docs/NPBMZ.md): bin/bt-mz for Open MPI, bin/bt-mz.mpich for MPICH.
NPBMZ := bench/npbmz/src
NPBMZ_CFLAGS := -std=c11 -O3 -fopenmp -fno-math-errno -Wall -Wextra
NPBMZ_SOLVERS := bt sp lu
NPBMZ_SHARED := $(filter-out $(NPBMZ_SOLVERS),$(basename $(notdir $(wildcard $(NPBMZ)/*.c))))

npbmz: deps $(NPBMZ_SOLVERS:%=$(BIN)/%-mz) $(NPBMZ_SOLVERS:%=$(BIN)/%-mz.mpich)

$(NPBMZ_SOLVERS:%=$(BIN)/%-mz): $(BIN)/%-mz: $(BIN)/npbmz/openmpi/%.o $(NPBMZ_SHARED:%=$(BIN)/npbmz/openmpi/%.o)
	mpicc.openmpi -fopenmp -o $@ $^ -lm

$(NPBMZ_SOLVERS:%=$(BIN)/%-mz.mpich): $(BIN)/%-mz.mpich: $(BIN)/npbmz/mpich/%.o $(NPBMZ_SHARED:%=$(BIN)/npbmz/mpich/%.o)
	mpicc.mpich -fopenmp -o $@ $^ -lm

$(BIN)/npbmz/openmpi/%.o: $(NPBMZ)/%.c
	@mkdir -p $(@D)
	mpicc.openmpi $(NPBMZ_CFLAGS) -MMD -MP -c -o $@ $<

$(BIN)/npbmz/mpich/%.o: $(NPBMZ)/%.c
	@mkdir -p $(@D)
	mpicc.mpich $(NPBMZ_CFLAGS) -MMD -MP -c -o $@ $<

-include $(wildcard $(BIN)/npbmz/*/*.d)

image: deps build
	@$(BIN)/vft image build

demo: image workloads npbmz
	@$(BIN)/vft-bench demo --app $(APP) --mpi $(MPI)

# A few minutes: what guests cost and what protection costs, in short.
bench: image workloads npbmz
	$(BIN)/vft-bench run quick --out $(RESULTS)/quick
	$(BIN)/vft-bench report $(RESULTS)/quick

# Hours: every experiment. Can be interrupted and goes on where it was.
BENCH_FULL := overhead node-lost efficiency netpipe restart-memory failure-rate prediction faults
bench-full: image workloads npbmz
	@for x in $(BENCH_FULL); do $(BIN)/vft-bench run $$x --out $(RESULTS)/$$x || exit 1; done
	$(BIN)/vft-bench report $(RESULTS)

test: test-unit test-browser test-e2e

# Everything that needs no guest.
test-unit: deps test-tools
	$(GO) vet ./...
	$(GO) test -race ./...
	@# What the race detector is too slow for: the search, every point at which a disk can fail, costs.
	$(GO) test -run TestSearch ./quiesce/
	$(GO) test ./ckpt ./ckpt/object ./health/probeset

# The report of measurements, looked at in Chromium.
test-browser:
	@scripts/deps.sh browser
	$(GO) test -tags browser ./bench/report

# A real S3 server, for tests of checkpoints there.
test-tools: $(TOOLS)/versitygw

# Real QEMU, real Open MPI and MPICH.
test-e2e: image workloads
	$(GO) test -tags e2e -p 1 -timeout 40m ./vm/... ./guest/... ./e2e/...

lint: $(TOOLS)/golangci-lint
	$(TOOLS)/golangci-lint run ./...

fmt: $(TOOLS)/gofumpt
	$(TOOLS)/gofumpt -w $$(git ls-files '*.go' ':!api/gen')

$(TOOLS)/golangci-lint:
	GOBIN=$(TOOLS) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)

$(TOOLS)/gofumpt:
	GOBIN=$(TOOLS) $(GO) install mvdan.cc/gofumpt@$(GOFUMPT_VERSION)

$(TOOLS)/versitygw:
	CGO_ENABLED=0 GOBIN=$(TOOLS) $(GO) install github.com/versity/versitygw/cmd/versitygw@$(VERSITYGW_VERSION)

# Needs buf, protoc-gen-go and protoc-gen-connect-go on PATH.
generate:
	buf lint
	buf generate

clean:
	rm -rf $(BIN)
