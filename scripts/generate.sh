#!/usr/bin/env bash
# Generates rpc/*.pb.go from rpc/rpc.proto. Needs Debian's protobuf-compiler and libprotobuf-dev; the two Go plugins come from the module proxy.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -e /usr/include/google/protobuf/empty.proto ] || apt-get install -y --no-install-recommends protobuf-compiler libprotobuf-dev
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
GOBIN=$bin go install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
GOBIN=$bin go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
PATH=$bin:$PATH protoc -I . \
  --go_out=. --go_opt=paths=source_relative \
  --go-grpc_out=. --go-grpc_opt=paths=source_relative,require_unimplemented_servers=true \
  rpc/rpc.proto
