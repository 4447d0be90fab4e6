# Everything here sets itself up: on a bare Debian machine, as root, each target installs what it needs with apt and
# through the Go module proxy, builds, and runs. As an ordinary user the packages must be there already.

SHELL := /bin/bash
BIN := bin
GO := scripts/go

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# grpcnotrace keeps golang.org/x/net/trace, html/template and reflection out of the binaries: less to load per pod.
TAGS := grpcnotrace
LDFLAGS := -s -w -X vpccni/pkg/version.Version=$(VERSION)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

# The release of test/kubeproxy/go.mod, which kube-proxy is to name as its own.
KUBE_VERSION = $(shell awk '$$1 == "k8s.io/kubernetes" { print $$2 }' test/kubeproxy/go.mod)

# One package per line of work: the packages whose tests need a kernel network run in namespaces of their own.
TEST_TIMEOUT ?= 10m

.PHONY: all build demo test vm check fmt chaos fuzz bench repair matrix fleet waste generate docs clean help

all: build

help: ## what the targets do
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: ## the main job, end to end: a VPC, three nodes, pods, every path checked with real packets
	@scripts/deps.sh build net
	@$(MAKE) --no-print-directory build
	$(BIN)/vpclab demo

build: ## all binaries into bin/
	@scripts/deps.sh build
	@mkdir -p $(BIN)
	CGO_ENABLED=0 $(GO) build -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS)' -o $(BIN)/aws-cni ./cmd/routed-eni-cni-plugin
	CGO_ENABLED=0 $(GO) build -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS)' -o $(BIN)/egress-cni ./cmd/egress-cni-plugin
	CGO_ENABLED=0 $(GO) build -trimpath -tags $(TAGS) -ldflags '$(LDFLAGS)' -o $(BIN)/ \
		./cmd/aws-k8s-agent ./cmd/grpc-health-probe ./cmd/max-pods-calculator ./cmd/vpclab
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(BIN)/portmap \
		github.com/containernetworking/plugins/plugins/meta/portmap

test: ## every test, with the race detector, in shuffled order
	@scripts/deps.sh build net race awscli
	@$(MAKE) --no-print-directory build
	$(GO) test -race -shuffle=on -timeout $(TEST_TIMEOUT) -tags $(TAGS) ./...

vm: ## on Debian's kernel 6.1 in QEMU: the node's rules, and pods on branch ENIs (VLANs) with real packets
	@scripts/deps.sh build net vm
	$(GO) run -tags $(TAGS) ./test/vm -kernel "$$(scripts/deps.sh --kernel)" $(VM_FLAGS)

chaos: ## the long versions of the randomised tests; seeds are printed (about 20 minutes)
	@scripts/deps.sh build net race
	@$(MAKE) --no-print-directory build
	CHAOS=1 $(GO) test -count=1 -timeout 30m -tags $(TAGS) -v -run Chaos ./test/slice
	$(GO) test -count=1 -timeout 30m -tags $(TAGS) -v -run RandomSteps ./test/slice -args -steps 10000
	$(GO) test -count=1 -timeout 30m -tags $(TAGS) -v -run ReuseBeside ./test/slice -args -stuck-clients 1000
	$(GO) test -race -count=1 -timeout 30m -tags $(TAGS) ./pkg/ipamd -run 'RandomWorlds|DeathBetween|CrashPoints|LyingIMDS' -args -worlds 4000 -deaths 2 -lies 500000 -crashes
	$(GO) test -race -count=1 -timeout 30m -tags $(TAGS) -v -run 'AgainstModel|RandomPrefixes' ./pkg/ipamd/datastore -args -operations 1000000
	$(GO) test -count=1 -timeout 30m -tags $(TAGS) -v -run Properties ./pkg/ipamd/warmpool -args -sequences 100000
	$(GO) test -race -count=5 -timeout 30m -tags $(TAGS) -run 'Properties|AgainstModel|Invariants|ManyAtOnce|Transition' \
		./pkg/ipamd/datastore ./lab/ec2 ./pkg/networkutils/hostnet
	$(GO) test -race -count=1 -timeout 30m -tags $(TAGS) -v -run 'NoConnectionIsLost' ./pkg/networkutils/hostnet -args -updates 100

FUZZTIME ?= 10m

fuzz: ## every fuzz target in turn, each for FUZZTIME (10m)
	@scripts/deps.sh build
	@set -e; for target in $$(grep -roE --include=*_test.go '^func Fuzz[A-Za-z0-9_]+' cmd pkg lab | sed 's|/[^/]*:func |=|'); do \
		echo "== $$target"; \
		$(GO) test -run '^$$' -fuzz "^$${target#*=}\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x -tags $(TAGS) "./$${target%%=*}"; done

bench: ## what ADD, DEL, ipamd and a packet cost, beside their floors (BENCH_JSON=FILE writes the figures as JSON)
	@scripts/deps.sh build net
	@$(MAKE) --no-print-directory build
	$(GO) run -tags $(TAGS) ./test/bench $(BENCH_FLAGS)
	$(if $(findstring -only,$(BENCH_FLAGS)),,$(GO) test -run '^$$' -bench 'AssignRelease|AddDelCommit' -benchtime 4000x -count 3 -tags $(TAGS) ./pkg/ipamd/datastore ./pkg/ipamd)

matrix: ## every path with real packets beside a real kube-proxy in each mode (docs/matrix.md; MATRIX_FLAGS, MATRIX_JSON=FILE)
	@scripts/deps.sh build net
	@$(MAKE) --no-print-directory build $(BIN)/kube-proxy
	$(GO) build -tags $(TAGS) -o $(BIN)/matrix ./test/matrix
	$(BIN)/matrix $(MATRIX_FLAGS)

# kube-proxy as it is released, of a module of its own. Without -trimpath: the first build takes minutes, and so would one
# that shares nothing with what others have built in Go's cache.
$(BIN)/kube-proxy: test/kubeproxy/go.mod test/kubeproxy/go.sum
	@echo "building kube-proxy (about 5 minutes the first time)"
	CGO_ENABLED=0 $(GO) build -C test/kubeproxy -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$(KUBE_VERSION)" \
		-o $(CURDIR)/$@ k8s.io/kubernetes/cmd/kube-proxy

REPAIR_ROUNDS ?= 20

repair: ## how fast a node's network comes back: 21 kinds of damage, REPAIR_ROUNDS times each, 100 pods on 4 ENIs (about 10 minutes)
	@scripts/deps.sh build net
	@$(MAKE) --no-print-directory build
	$(GO) test -count=1 -timeout 60m -tags $(TAGS) -v -run RepairTimes ./test/slice -args -repair $(REPAIR_ROUNDS)

fleet: ## 5,000 nodes with pods on virtual time, and 500 that restart at once (some minutes; docs/fleet.md)
	@$(MAKE) --no-print-directory build
	$(BIN)/vpclab fleet --nodes 5000 --duration 40m --boot-within 5m --bucket 100:20
	$(GO) test -count=1 -tags $(TAGS) -v -run Restarts ./lab/fleet -args -nodes 500

waste: ## unused addresses, EC2 calls and waits: ours and upstream's algorithm, four traces on eight instance types
	@$(MAKE) --no-print-directory build
	$(BIN)/vpclab fleet compare

check: ## formatting, vet, staticcheck, documentation that is printed from code
	@scripts/deps.sh build
	@unformatted=$$($$($(GO) env GOROOT)/bin/gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || { echo "not gofmt'ed:"; echo "$$unformatted"; exit 1; }
	$(GO) vet -tags $(TAGS) ./...
	$(GO) vet -tags $(TAGS),vlan ./cmd/routed-eni-cni-plugin
	$(GO) run $(STATICCHECK) -tags $(TAGS) ./...
	$(GO) mod tidy -diff

fmt: ## format the code
	$$($(GO) env GOROOT)/bin/gofmt -w $$(git ls-files '*.go')

generate: ## rpc/*.pb.go from rpc/rpc.proto
	scripts/generate.sh

docs: ## docs/configuration.md from the table in pkg/config
	$(GO) test ./pkg/config -run Markdown -update

clean:
	rm -rf $(BIN)
