package orphans

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jonboulle/clockwork"

	"vpccni/pkg/awsutils"
)

// Defaults of Options.
const (
	// DefaultMinAge is how long an ENI is left alone whatever EC2 says of its instance: an instance that was just
	// started may not be known everywhere.
	DefaultMinAge = 10 * time.Minute
	// DefaultConfirm is the time between the two looks at an orphan.
	DefaultConfirm = time.Minute
)

// maxDeletes bounds what one pass deletes, so that it ends before its time is over. The rest is the next one's.
const maxDeletes = 200

// EC2 is what a Cleaner asks of EC2. *awsutils.EC2 has it.
type EC2 interface {
	DetachedENIs(ctx context.Context, vpcID string, tags map[string]string) ([]awsutils.ENI, error)
	InstanceStates(ctx context.Context, ids ...string) (map[string]string, error)
	DeleteENI(ctx context.Context, eniID string) error
}

var _ EC2 = (*awsutils.EC2)(nil)

// Options are what a Cleaner needs. EC2 and Cluster are required.
type Options struct {
	EC2     EC2
	Cluster string // CLUSTER_NAME
	VPCID   string // empty: any
	// Instance is the one that this runs on; empty if on none. EC2 has to know it, or its other answers prove nothing.
	Instance string
	MinAge   time.Duration // DefaultMinAge if 0
	Confirm  time.Duration // DefaultConfirm if 0
	// Counted, if set, is told what is added to the Counts.
	Counted func(Counts)
	Clock   clockwork.Clock
	Log     *slog.Logger
}

// Counts count since the start.
type Counts struct {
	Passes  uint64 // that this node made
	Found   uint64 // orphans, in each pass that found them
	Deleted uint64
	Failed  uint64 // deletions that EC2 refused
}

// Cleaner finds and deletes orphans. It is safe for concurrent use.
type Cleaner struct {
	o Options

	mu     sync.Mutex
	counts Counts // guarded by mu
}

// New returns a Cleaner.
func New(o Options) *Cleaner {
	if o.MinAge == 0 {
		o.MinAge = DefaultMinAge
	}
	if o.Confirm == 0 {
		o.Confirm = DefaultConfirm
	}
	if o.Clock == nil {
		o.Clock = clockwork.NewRealClock()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Cleaner{o: o}
}

// Counts are the figures so far.
func (c *Cleaner) Counts() Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts
}

func (c *Cleaner) count(step Counts) {
	c.mu.Lock()
	c.counts.Passes += step.Passes
	c.counts.Found += step.Found
	c.counts.Deleted += step.Deleted
	c.counts.Failed += step.Failed
	c.mu.Unlock()
	if c.o.Counted != nil {
		c.o.Counted(step)
	}
}

// Look says of each detached ENI of the cluster what would become of it. It costs one DescribeNetworkInterfaces and,
// if any of them may be an orphan, one DescribeInstances, and changes nothing.
func (c *Cleaner) Look(ctx context.Context) ([]Verdict, error) {
	if c.o.Cluster == "" {
		return nil, errors.New("orphans: the cluster's name is not known (CLUSTER_NAME)")
	}
	enis, err := c.o.EC2.DetachedENIs(ctx, c.o.VPCID, map[string]string{awsutils.TagCluster: c.o.Cluster})
	if err != nil {
		return nil, fmt.Errorf("orphans: %w", err)
	}
	criteria := Criteria{Cluster: c.o.Cluster, MinAge: c.o.MinAge}
	now := c.o.Clock.Now()
	var ids []string
	seen := map[string]bool{}
	for _, e := range enis {
		id := e.Tags[awsutils.TagInstance]
		if keep(e, criteria, now) == "" && !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return Decide(enis, nil, criteria, now), nil
	}
	if c.o.Instance != "" && !seen[c.o.Instance] {
		ids = append(ids, c.o.Instance)
	}
	instances, err := c.o.EC2.InstanceStates(ctx, ids...)
	if err != nil {
		return nil, fmt.Errorf("orphans: %w", err)
	}
	if state := instances[c.o.Instance]; c.o.Instance != "" && (state == "" || state == terminated) {
		return nil, fmt.Errorf("orphans: EC2 does not list this very instance (%s), so that others are missing proves nothing", c.o.Instance)
	}
	return Decide(enis, instances, criteria, now), nil
}

// Clean deletes the ENIs that are orphans in two looks, Options.Confirm apart, and returns what became of each that was
// one in the first: Delete says that it was deleted. An ENI that EC2 does not let go of, because it was attached meanwhile, stays.
func (c *Cleaner) Clean(ctx context.Context) ([]Verdict, error) {
	first, err := c.Look(ctx)
	if err != nil {
		return nil, err
	}
	var found []Verdict
	for _, v := range first {
		if v.Delete {
			found = append(found, v)
		}
	}
	c.count(Counts{Passes: 1, Found: uint64(len(found))})
	if len(found) == 0 {
		return nil, nil
	}
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("orphans: %w", context.Cause(ctx))
	case <-c.o.Clock.After(c.o.Confirm + rand.N(c.o.Confirm/4+1)):
	}
	second, err := c.Look(ctx)
	if err != nil {
		return nil, err
	}
	now := map[string]Verdict{}
	for _, v := range second {
		now[v.ENI] = v
	}
	var errs []error
	given := "" // why no more is tried
	for i, v := range found {
		again, there := now[v.ENI]
		switch {
		case given != "":
			found[i] = v.kept(given)
		case !there:
			found[i] = v.kept("gone, or attached, at the second look")
		case !again.Delete:
			found[i] = v.kept("at the second look: " + again.Reason)
		case i >= maxDeletes:
			found[i] = v.kept("left to the next pass")
		default:
			err := c.remove(ctx, &found[i])
			if err != nil {
				errs = append(errs, err)
			}
			if err != nil && (awsutils.Classify(err) == awsutils.Denied || ctx.Err() != nil) {
				given = "not tried after: " + err.Error()
			}
		}
	}
	return found, errors.Join(errs...)
}

// remove deletes one orphan.
func (c *Cleaner) remove(ctx context.Context, v *Verdict) error {
	err := c.o.EC2.DeleteENI(ctx, v.ENI)
	switch {
	case err == nil:
		c.count(Counts{Deleted: 1})
		c.o.Log.Info("orphan deleted", "eni", v.ENI, "instance", v.Instance, "age", v.Age, "reason", v.Reason)
		return nil
	case awsutils.Classify(err) == awsutils.InUse:
		*v = v.kept("attached at the last moment")
		c.o.Log.Warn("orphan is in use", "eni", v.ENI, "instance", v.Instance)
		return nil
	}
	*v = v.kept(err.Error())
	c.count(Counts{Failed: 1})
	return fmt.Errorf("orphans: %w", err)
}

// kept is a verdict that was not carried out.
func (v Verdict) kept(why string) Verdict {
	v.Delete, v.Reason = false, why
	return v
}
