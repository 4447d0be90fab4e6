// Package introspect shows people and their tools what the daemon knows: upstream's paths with upstream's field names,
// which log collectors fetch by name, and beside them paths that explain.
//
// A sandbox's container id and interface name are what a DEL names it by, so they are left out wherever anybody on the
// node may ask.
package introspect

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"strings"

	"vpccni/pkg/config"
	"vpccni/pkg/ipamd"
	"vpccni/pkg/ipamd/warmpool"
	"vpccni/pkg/version"
)

// Options are what the handler shows.
type Options struct {
	View   func() ipamd.View
	Config config.Config
	// Plan is what the planner would do at this moment.
	Plan func() warmpool.Decision
	// PluginVersion is what the plugin that called last says of itself; may be nil.
	PluginVersion func() string
	// Private: only root can ask, so that nothing has to be left out.
	Private bool
	Log     *slog.Logger
}

// Socket is where root asks, and is told everything, whatever INTROSPECTION_BIND_ADDRESS says.
const Socket = "unix:/var/run/aws-node/introspection.sock"

// commands are the paths that are answered.
var commands = []string{
	"/v1/config",
	"/v1/eni-configs",
	"/v1/enis",
	"/v1/ipamd-env-settings",
	"/v1/networkutils-env-settings",
	"/v1/plan",
	"/v1/state",
}

// Private tells whether only root can reach a bind address.
func Private(address string) bool { return strings.HasPrefix(address, "unix:") }

// NewHandler returns the endpoint. Like upstream's it takes any method, and answers a path that it does not know with
// those that it does.
func NewHandler(o Options) http.Handler {
	show := shower{private: o.Private, versions: func() versionsJSON {
		v := versionsJSON{IPAMD: version.Version}
		if o.PluginVersion != nil {
			v.Plugin = o.PluginVersion()
		}
		return v
	}}
	mux := http.NewServeMux()
	answer := func(path string, value func() any) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			o.Log.Debug("introspection", "path", r.URL.Path, "from", r.RemoteAddr)
			body, err := json.Marshal(value())
			if err != nil {
				o.Log.Error("introspection", "path", r.URL.Path, "error", err)
				http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			if _, err := w.Write(body); err != nil {
				o.Log.Debug("introspection: caller gone", "error", err)
			}
		})
	}
	answer("/", func() any { return map[string][]string{"AvailableCommands": commands} })
	answer("/v1/enis", func() any { return show.enis(o.View()) })
	// Without custom networking every node uses the ENIConfig of this name, whether it exists or not.
	answer("/v1/eni-configs", func() any { return "default" })
	answer("/v1/networkutils-env-settings", func() any { return networkSettings(o.Config) })
	answer("/v1/ipamd-env-settings", func() any { return ipamdSettings(o.Config) })
	answer("/v1/config", func() any { return o.Config.Effective() })
	answer("/v1/state", func() any { return show.state(o.View()) })
	answer("/v1/plan", func() any { return plan(o.View(), o.Plan()) })
	return mux
}
