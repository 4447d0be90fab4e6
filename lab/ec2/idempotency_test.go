package ec2

import (
	"strconv"
	"testing"
	"time"
)

func TestTokensAreForgotten(t *testing.T) {
	t.Parallel()
	now := time.Date(2025, 3, 1, 12, 0, 0, 0, time.UTC)
	tk := newTokens()
	for n := range 5 * tokensKept {
		now = now.Add(time.Minute)
		tk.keep(map[string]issued{strconv.Itoa(n): {id: "eni-1", at: now}}, now)
		if day := int(tokenLife / time.Minute); len(tk.known) > max(tokensKept, 2*day) {
			t.Fatalf("%d tokens are kept after %d calls", len(tk.known), n)
		}
	}
	if _, ok := tk.known[strconv.Itoa(5*tokensKept-1)]; !ok {
		t.Error("the last token is forgotten")
	}
}
