package ec2

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"
)

// Credentials are a key that calls are signed with.
type Credentials struct {
	AccessKeyID     string    `json:"accessKeyId"`
	SecretAccessKey string    `json:"secretAccessKey"`
	SessionToken    string    `json:"sessionToken,omitempty"`
	Expiration      time.Time `json:"expiration,omitzero"` // zero: never
}

const (
	callerOperator = "operator"
	callerUnknown  = "unknown"

	// keyLife is how long an instance's key is valid, and keyRenewal how long before its end the instance gets the
	// next one. Clients renew theirs some minutes before the end, and must find a new one by then.
	keyLife    = 6 * time.Hour
	keyRenewal = time.Hour
)

// keyring has the keys of all callers.
type keyring struct {
	clock  clockwork.Clock
	seed   uint64
	mu     sync.Mutex
	owners map[string]key // by access key id
	latest map[string]Credentials
	issues map[string]int // how many keys a caller has had
}

type key struct {
	Credentials
	caller string
}

func newKeyring(clock clockwork.Clock, seed uint64) *keyring {
	return &keyring{
		clock: clock, seed: seed,
		owners: map[string]key{}, latest: map[string]Credentials{}, issues: map[string]int{},
	}
}

// Credentials gives the instance's key, a new one if the last is about to expire. Those before it stay valid until
// they expire.
func (c *Cloud) Credentials(instanceID string) Credentials {
	return c.keys.get(instanceID, keyLife)
}

// OperatorCredentials gives a person's key, which does not expire. Its calls are the "operator"'s.
func (c *Cloud) OperatorCredentials() Credentials {
	return c.keys.get(callerOperator, 0)
}

// get gives the caller's key; a life of 0 is without end.
func (k *keyring) get(caller string, life time.Duration) Credentials {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.clock.Now()
	last, ok := k.latest[caller]
	if ok && (life == 0 || now.Before(last.Expiration.Add(-keyRenewal))) {
		return last
	}
	for id, old := range k.owners {
		if !old.Expiration.IsZero() && !now.Before(old.Expiration) {
			delete(k.owners, id)
		}
	}
	k.issues[caller]++
	made := k.make(caller, k.issues[caller])
	if life > 0 {
		made.Expiration = now.Add(life).UTC().Truncate(time.Second)
	}
	k.latest[caller] = made
	k.owners[made.AccessKeyID] = key{made, caller}
	return made
}

// make derives a key from the seed, so that a lab's keys can be reproduced.
func (k *keyring) make(caller string, issue int) Credentials {
	derive := func(what string) []byte {
		h := hmac.New(sha256.New, binary.BigEndian.AppendUint64(nil, k.seed))
		fmt.Fprintf(h, "%s/%s/%d", what, caller, issue)
		return h.Sum(nil)
	}
	id := base32.StdEncoding.EncodeToString(derive("id"))[:16]
	cr := Credentials{
		AccessKeyID:     "AKIA" + id,
		SecretAccessKey: base64.StdEncoding.EncodeToString(derive("secret"))[:40],
	}
	if caller != callerOperator {
		cr.AccessKeyID = "ASIA" + id
		cr.SessionToken = base64.StdEncoding.EncodeToString(append(derive("token"), derive("token2")...))
	}
	return cr
}

// find gives the key of the id; false if there is none or it has expired.
func (k *keyring) find(accessKeyID string) (key, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	found, ok := k.owners[accessKeyID]
	return found, ok && (found.Expiration.IsZero() || k.clock.Now().Before(found.Expiration))
}
