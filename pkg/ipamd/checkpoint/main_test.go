package checkpoint

import (
	"testing"

	"vpccni/pkg/networkutils/nstest"
)

// In a mount namespace of their own the tests can have file systems of their own.
func TestMain(m *testing.M) { nstest.Main(m) }
