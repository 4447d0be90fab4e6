package ec2

import (
	"maps"
	"time"
)

// issued is what a call with a client token made.
type issued struct {
	id     string
	params map[string]string
	at     time.Time
}

const (
	// tokenLife is how long EC2 remembers a client token; tokensKept is how many are kept before old ones are looked
	// for.
	tokenLife  = 24 * time.Hour
	tokensKept = 4096
)

// tokens remembers client tokens.
type tokens struct {
	known map[string]issued
	purge int // how many there must be before old ones are looked for again
}

func newTokens() tokens { return tokens{known: map[string]issued{}, purge: tokensKept} }

// keep adds tokens and now and then forgets old ones, so seldom that it does not matter how many there are.
func (t *tokens) keep(more map[string]issued, now time.Time) {
	maps.Copy(t.known, more)
	if len(t.known) < t.purge {
		return
	}
	maps.DeleteFunc(t.known, func(_ string, was issued) bool { return now.Sub(was.at) >= tokenLife })
	t.purge = max(tokensKept, 2*len(t.known))
}

// once makes something, or gives the id of what a call with the same token made before. The same token with other
// parameters is an error.
func (ch *change) once(token string, q *call, make func() (string, error)) (string, error) {
	if token == "" {
		return make()
	}
	key := q.action + "/" + token
	if was, ok := ch.c.tokens.known[key]; ok && ch.now.Sub(was.at) < tokenLife {
		if !maps.Equal(was.params, q.values) {
			return "", errorf("IdempotentParameterMismatch", "The client token '%s' was used with other parameters", token)
		}
		return was.id, nil
	}
	id, err := make()
	if err != nil {
		return "", err
	}
	ch.created[key] = issued{id, q.values, ch.now}
	return id, nil
}
