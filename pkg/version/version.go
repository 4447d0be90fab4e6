// Package version names the build.
package version

// Version is set by the linker. It is never sent as ClientVersion: peers compare that field with their own, which is
// empty in every official build.
var Version = "dev"
