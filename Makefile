# make alone builds and tests. Each target is what CI calls; CI calls only `make test`.
GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X github.com/hotdeploy/hotdeploy/internal/version.number=$(VERSION)
GOBUILD := CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)'
# A module of its own: what a broker needs is heavy. Its go.mod follows ours by -mod=mod.
BROKER  := testdata/apps/mqttbroker
# The go command's ... passes by testdata, so its packages are named one by one.
OURS    := ./... $(sort $(patsubst %/,./%,$(dir $(shell find testdata -name '*.go' -not -path '$(BROKER)/*'))))
E2E     := ./testdata/lab ./testdata/e2e ./systemd
UNIT    := $(GO) list $(OURS) | grep -v -e /testdata/lab$$ -e /testdata/e2e$$ -e /systemd$$
# The race detector needs a C compiler; without one the tests still run, and say so.
RACE    := $(shell command -v $${CC:-gcc} >/dev/null 2>&1 && echo -race)
FUZZTIME ?= 60s

.PHONY: all build release-builds test tools lint vet unit crash memory race e2e bench soak soak-e2e fuzz demo clean

all: build test

build: ## the command and the daemon for this machine, and the daemon for hosts
	$(GOBUILD) -o bin/hotdeploy ./cmd/hotdeploy
	GOOS=linux GOARCH=amd64 $(GOBUILD) -o bin/hotdeployd-linux-amd64 ./cmd/hotdeployd
	GOOS=linux GOARCH=arm64 $(GOBUILD) -o bin/hotdeployd-linux-arm64 ./cmd/hotdeployd

release-builds: build ## the command for every system it supports
	for os in linux darwin; do for arch in amd64 arm64; do GOOS=$$os GOARCH=$$arch $(GOBUILD) -o bin/hotdeploy-$$os-$$arch ./cmd/hotdeploy || exit 1; done; done

test: tools lint unit memory crash e2e ## everything

tools: ## what the tests need of the host; fetched by itself as root on Debian
	sh testdata/packages.sh

lint: vet
	$(GO) tool staticcheck $(OURS)
	linter=$$($(GO) tool -n staticcheck) && cd $(BROKER) && $(GO) vet -mod=mod ./... && "$$linter" ./...
	test -z "$$(gofmt -l .)"

vet:
	$(GO) vet $(OURS)
	GOOS=darwin $(GO) vet ./cmd/hotdeploy

unit:
	@# Without the cache: it does not know what the apps are made of that the tests build.
	@[ -n "$(RACE)" ] || echo '##### NO C COMPILER: the tests run without the race detector #####'
	$(GO) test $(RACE) -count=1 -timeout 20m -skip '^TestCrashMatrix$$' $$($(UNIT))
	cd $(BROKER) && $(GO) test -mod=mod $(RACE) -count=1 -timeout 10m ./...

memory: ## what the race detector would falsify: unit leaves it out
	$(GO) test -count=1 -timeout 10m -run Memory ./supervisor/store ./internal/delta

crash: ## kills everybody at every step, and prints the table (go test does that only in the package's own folder)
	cd supervisor && $(GO) test $(RACE) -count=1 -timeout 10m -run '^TestCrashMatrix$$'

race: ## the unit tests again and again, to find what happens seldom
	$(GO) test -race -count=3 -timeout 30m $$($(UNIT))

e2e: build ## on machines with real systemd and sshd
	$(GO) test -count=1 -v -timeout 25m $(E2E)

bench: build ## figures as ratios and medians in one run
	$(GO) test -run "^$$" -bench . -benchtime 10x -timeout 60m ./supervisor ./remote ./upgrade
	$(GO) test -v -tags bench -count=1 -run "^TestBenchTransfer$$" -timeout 60m ./testdata/e2e

# What make test does with libtest in a minute and a half (100,000 messages and 24 handoffs for each WebSocket library) this does for some hours.
# A failure names its seed; SOAK="-seed N" tells the same story again, -messages N and -handoffs N make it longer or shorter.
# Then as many upgrades of one service in a row as UPGRADES says; make test makes 15.
UPGRADES ?= 1000
soak: ## the SDK between real processes, millions of messages through hundreds of handoffs; then a thousand upgrades in a row
	$(GO) test $(RACE) -count=1 -timeout 24h -v -run 'Deploys|Hub|HTTP' ./upgrade/internal/libtest -messages 3000000 -handoffs 500 $(SOAK)
	$(GO) test -count=1 -timeout 24h -v -run '^TestSoak_' ./supervisor -upgrades $(UPGRADES)

soak-e2e: build ## 1,000 WebSockets and 200 connections a second while the supervisor is killed 50 times; a power cut at every step
	$(GO) test -count=1 -timeout 60m -v -run 'Killed|PowerCut' ./testdata/e2e -soak

fuzz: ## every target for FUZZTIME
	sh testdata/fuzz.sh $(FUZZTIME)

demo: build ## the main job, without root, sshd and systemd
	$(GO) run ./testdata/demo

clean:
	rm -rf bin
