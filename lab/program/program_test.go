package program

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Programs are written and started while other programs are started: none of them is busy.
func TestStartsRightAway(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// A large file takes long to write; the shell reads its first line only.
	text := "#!/bin/sh\nexit 0\n" + strings.Repeat("#\n", 1<<19)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 12 {
				path := filepath.Join(dir, fmt.Sprintf("%d/%d", i, j%3))
				if err := Write(path, strings.NewReader(text)); err != nil {
					t.Error(err)
					return
				}
				if err := exec.CommandContext(t.Context(), path).Run(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}
