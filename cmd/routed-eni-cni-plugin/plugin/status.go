package plugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"vpccni/cmd/routed-eni-cni-plugin/onecall"
	"vpccni/pkg/heartbeat"
	"vpccni/pkg/networkutils/names"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// CNI error codes of the specification that the library has no name for.
const codePluginNotAvailable = 50

// absence is for how long ipamd may be away before ADDs are not worth trying. It covers the rollout of a new version,
// image pull included; an ADD waits for most of it.
const absence = 120 * time.Second

// healthTimeout bounds the question whether an ipamd whose heartbeat stopped answers nevertheless.
const healthTimeout = 2 * time.Second

// Status says whether ADDs can be served. A node whose ipamd restarts or has no address left is ready nevertheless, for
// ADDs wait; only one on which ipamd has not run since it booted, or is gone for longer than an ADD waits, is not.
func (p *Plugin) Status(ctx context.Context, args *skel.CmdArgs) error {
	conf, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	if err := conf.wirable(); err != nil {
		return err
	}
	uptime, err := heartbeat.Uptime()
	if err != nil {
		return err
	}
	age, err := heartbeat.File(names.HeartbeatFile).Age(uptime)
	switch {
	case err == nil && age < absence:
		return nil
	case err == nil:
		err = p.askHealth(ctx)
		if err != nil {
			err = types.NewError(codePluginNotAvailable, fmt.Sprintf("ipamd was last seen %s ago", age.Round(time.Second)), err.Error())
		}
		return err
	}
	// An ipamd of another version keeps no heartbeat.
	for _, file := range []string{names.CheckpointFile, names.IPAMDSocket} {
		if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	return types.NewError(codePluginNotAvailable, "ipamd has not started since the node booted", "")
}

// askHealth is nil if ipamd answers at all: a full node is none that ADDs should not be sent to.
func (p *Plugin) askHealth(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	conn, err := onecall.Connect(ctx, names.IPAMDSocket)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Call(ctx, "/grpc.health.v1.Health/Check", nil, nil)
	if code := onecall.CodeOf(err); err != nil && (code == onecall.Unavailable || code == onecall.DeadlineExceeded) {
		return err
	}
	return nil
}
