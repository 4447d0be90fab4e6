// aws-k8s-agent is ipamd, the daemon that holds a node's ENIs and addresses and gives them to pods. This folder has no
// logic: it reads the configuration, puts the parts together, and turns what happens into an exit code.
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"vpccni/pkg/config"
	"vpccni/pkg/logging"
	"vpccni/pkg/version"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // something did not work that a restart may mend
	exitUsage  = 2 // flags or environment are wrong
	exitStuck  = 3 // did not end in time
)

// stopTimeout is how long the whole process may take to end. Kubelet gives it 10 s, of which the entrypoint takes some.
const stopTimeout = 2 * time.Second

func main() { os.Exit(run(os.Args[1:], time.Now())) }

func run(args []string, started time.Time) int {
	if len(args) > 0 && args[0] == "handback" {
		return handback(args[1:])
	}
	if len(args) > 0 && args[0] == "clean-enis" {
		return cleanENIs(args[1:])
	}
	flags := flag.NewFlagSet("aws-k8s-agent", flag.ContinueOnError)
	showVersion := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		return exitUsage
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "aws-k8s-agent: unexpected argument %q; it is configured by its environment\n", flags.Arg(0))
		return exitUsage
	}
	if *showVersion {
		fmt.Println(version.Version)
		return exitOK
	}
	cfg, err := config.Load(os.LookupEnv)
	if err != nil {
		fmt.Fprintf(os.Stderr, "aws-k8s-agent: configuration:\n%v\n", err)
		return exitUsage
	}
	log, closer := logging.Open(logging.Options{File: cfg.LogFile, Level: cfg.LogLevel, Stdout: os.Stdout, Stderr: os.Stderr})
	defer closer.Close()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, func() {
		time.AfterFunc(stopTimeout, func() {
			log.Error("did not end in time", "timeout", stopTimeout)
			os.Exit(exitStuck)
		})
	})
	log.Info("starting", "version", version.Version, "pid", os.Getpid())
	logConfig(log, cfg)
	if err := serve(ctx, cfg, started, log); err != nil {
		log.Error("ended", "error", err)
		return exitFailed
	}
	log.Info("ended")
	return exitOK
}

// logConfig writes down what somebody has set, and what of it does not do what it says.
func logConfig(log *slog.Logger, cfg config.Config) {
	var set []any
	for _, v := range cfg.Effective() {
		if v.Origin != config.FromDefault && v.Origin != config.FromOthers {
			set = append(set, slog.String(v.Name, v.Value))
		}
		if v.Note != "" {
			log.Warn("configuration", "variable", v.Name, "value", v.Value, "note", v.Note)
		}
	}
	log.Info("configuration", set...)
}
