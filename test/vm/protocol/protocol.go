// Package protocol is what test/vm and the first process of its virtual machine agree on.
package protocol

// PlanFile is the path of the Plan, in JSON, in the virtual machine.
const PlanFile = "/plan.json"

// Plan is what the virtual machine does.
type Plan struct {
	// Modules are paths of kernel modules, in the order to load them.
	Modules []string
	Suites  []Suite
}

// Suite is one test binary.
type Suite struct {
	Name    string
	Binary  string
	Dir     string
	Args    []string
	Seconds int // after which it is killed
}

// Beginnings of lines on the console.
const (
	Booted = "@vm booted " // and the kernel's release
	Begin  = "@vm begin "  // and the suite's name
	End    = "@vm end "    // and the suite's name, and an error or <nil>
	Broken = "@vm broken " // and why no test can run
	Done   = "@vm done"
)
