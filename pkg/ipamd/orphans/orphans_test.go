package orphans

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/jonboulle/clockwork"

	"vpccni/lab/ec2"
	"vpccni/pkg/awsutils"
	"vpccni/pkg/k8sapi"
)

const cluster = "blue"

// The SDK reads the environment; no test may depend on the developer's.
func TestMain(m *testing.M) {
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "AWS_") {
			os.Unsetenv(name)
		}
	}
	os.Setenv("AWS_CONFIG_FILE", os.DevNull)
	os.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	os.Exit(m.Run())
}

// account is a VPC with three instances: the one that cleans, one that lives, one that will end.
type account struct {
	*ec2.Cloud
	*awsutils.EC2
	t                *testing.T
	clock            clockwork.Clock
	vpc              ec2.VPC
	subnet           ec2.Subnet
	self, live, dead string
}

func newAccount(t *testing.T) *account {
	t.Helper()
	a := &account{t: t, clock: clockwork.NewRealClock()}
	a.Cloud = ec2.New(ec2.Options{Clock: a.clock})
	var err error
	if a.vpc, err = a.CreateVPC(netip.MustParsePrefix("10.0.0.0/16")); err != nil {
		t.Fatal(err)
	}
	if a.subnet, err = a.CreateSubnet(ec2.Subnet{VPCID: a.vpc.ID, Zone: "us-west-2a", CIDR: netip.MustParsePrefix("10.0.1.0/24")}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []*string{&a.self, &a.live, &a.dead} {
		i, err := a.RunInstance(ec2.InstanceSpec{Type: "t3.medium", SubnetID: a.subnet.ID})
		if err != nil {
			t.Fatal(err)
		}
		*id = i.ID
	}
	key := a.OperatorCredentials()
	a.EC2, err = awsutils.NewEC2(t.Context(), awsutils.EC2Options{Region: a.Region(), HTTPClient: &http.Client{Transport: a.Transport()},
		Credentials: credentials.NewStaticCredentialsProvider(key.AccessKeyID, key.SecretAccessKey, key.SessionToken)})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// eni makes a detached ENI as a node does, an hour old unless changed.
func (a *account) eni(instance string, change ...func(*awsutils.NewENI)) string {
	a.t.Helper()
	n := awsutils.NewENI{SubnetID: a.subnet.ID, Description: awsutils.DescriptionPrefix + instance, Tags: map[string]string{
		awsutils.TagInstance: instance, awsutils.TagCluster: cluster,
		awsutils.TagCreatedAt: a.clock.Now().Add(-time.Hour).Format(time.RFC3339),
	}}
	for _, f := range change {
		f(&n)
	}
	e, err := a.CreateENI(a.t.Context(), n)
	if err != nil {
		a.t.Fatal(err)
	}
	return e.ID
}

func tag(key, value string) func(*awsutils.NewENI) {
	return func(n *awsutils.NewENI) {
		n.Tags[key] = value
		if value == "" {
			delete(n.Tags, key)
		}
	}
}

func (a *account) attach(eni, instance string) {
	a.t.Helper()
	if _, err := a.AttachENI(a.t.Context(), eni, instance, 1, 0); err != nil {
		a.t.Fatal(err)
	}
}

func (a *account) cleaner(change ...func(*Options)) *Cleaner {
	o := Options{EC2: a.EC2, Cluster: cluster, VPCID: a.vpc.ID, Instance: a.self, Clock: a.clock}
	for _, f := range change {
		f(&o)
	}
	return New(o)
}

func (a *account) calls() string {
	count := map[string]int{}
	for _, r := range a.Requests() {
		count[r.Action]++
	}
	var lines []string
	for _, action := range slices.Sorted(maps.Keys(count)) {
		lines = append(lines, fmt.Sprintf("%s %d", action, count[action]))
	}
	return strings.Join(lines, ", ")
}

// kinds makes one ENI of each kind that there is; the values say what becomes of it once the instance has ended.
func (a *account) kinds() map[string]string {
	other, err := a.CreateVPC(netip.MustParsePrefix("10.9.0.0/16"))
	if err != nil {
		a.t.Fatal(err)
	}
	far, err := a.CreateSubnet(ec2.Subnet{VPCID: other.ID, Zone: "us-west-2a", CIDR: netip.MustParsePrefix("10.9.1.0/24")})
	if err != nil {
		a.t.Fatal(err)
	}
	inUse := a.eni(a.live)
	a.attach(inUse, a.live)
	return map[string]string{
		a.eni(a.dead):                "its instance is terminated",
		a.eni("i-0123456789abcdef0"): "EC2 does not know its instance",
		a.eni(a.live):                "its instance is running",
		inUse:                        "(not listed)",
		a.eni(a.dead, tag(awsutils.TagCluster, "green")):                                             "(not listed)",
		a.eni(a.dead, tag(awsutils.TagCluster, "")):                                                  "(not listed)",
		a.eni(a.dead, func(n *awsutils.NewENI) { n.SubnetID = far.ID }):                              "(not listed)",
		a.eni(a.dead, tag(awsutils.TagCreatedAt, a.clock.Now().Format(time.RFC3339))):                "younger than 10m0s",
		a.eni(a.dead, tag(awsutils.TagCreatedAt, a.clock.Now().Add(time.Hour).Format(time.RFC3339))): "younger than 10m0s",
		a.eni(a.dead, tag(awsutils.TagCreatedAt, "yesterday")):                                       "its age is not known: no good tag node.k8s.amazonaws.com/createdAt",
		a.eni(a.dead, tag(awsutils.TagNoManage, "true")):                                             "tagged node.k8s.amazonaws.com/no_manage",
		a.eni(a.dead, func(n *awsutils.NewENI) { n.Description = "mine" }):                           `not made by a node: its description is "mine"`,
		a.eni(a.dead, tag(awsutils.TagInstance, "")):                                                 "its tag names no instance",
		a.eni(a.dead, tag(awsutils.TagInstance, "somebody")):                                         "its tag names no instance",
	}
}

// One pass deletes what the ended instance left, and nothing else.
func TestClean(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAccount(t)
		fate := a.kinds()
		if err := a.TerminateInstance(a.dead); err != nil {
			t.Fatal(err)
		}
		c := a.cleaner()

		a.ResetRequests()
		verdicts, err := c.Look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got, want := a.calls(), "DescribeInstances 1, DescribeNetworkInterfaces 1"; got != want {
			t.Errorf("a look costs %s, want %s", got, want)
		}
		seen := map[string]string{}
		for _, v := range verdicts {
			seen[v.ENI] = v.Reason
			if want := strings.HasPrefix(fate[v.ENI], "EC2 does not know") || strings.HasSuffix(fate[v.ENI], "terminated"); v.Delete != want {
				t.Errorf("%s: delete %t, because %s", v.ENI, v.Delete, v.Reason)
			}
		}
		for id, want := range fate {
			if got, ok := seen[id]; got != want && (ok || want != "(not listed)") {
				t.Errorf("%s: %q, want %q", id, got, want)
			}
			if _, ok := a.ENI(id); !ok {
				t.Errorf("a look deleted %s", id)
			}
		}

		if _, err := c.Clean(t.Context()); err != nil {
			t.Fatal(err)
		}
		for id, reason := range fate {
			want := !strings.HasPrefix(reason, "EC2 does not know") && !strings.HasSuffix(reason, "terminated")
			if _, ok := a.ENI(id); ok != want {
				t.Errorf("%s (%s): there %t, want %t", id, reason, ok, want)
			}
		}
		if got := c.Counts(); got != (Counts{Passes: 1, Found: 2, Deleted: 2}) {
			t.Errorf("counts %+v", got)
		}
	})
}

// While nothing is left behind, a pass is one call.
func TestNothingToClean(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAccount(t)
		a.ResetRequests()
		if verdicts, err := a.cleaner().Clean(t.Context()); err != nil || len(verdicts) > 0 {
			t.Errorf("%v, %v", verdicts, err)
		}
		if got, want := a.calls(), "DescribeNetworkInterfaces 1"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	})
}

// hooked is EC2 with something that happens just before a call.
type hooked struct {
	EC2
	before func(call string)
}

func (h hooked) DetachedENIs(ctx context.Context, vpc string, tags map[string]string) ([]awsutils.ENI, error) {
	h.before("look")
	return h.EC2.DetachedENIs(ctx, vpc, tags)
}

func (h hooked) DeleteENI(ctx context.Context, id string) error {
	h.before("delete")
	return h.EC2.DeleteENI(ctx, id)
}

// An ENI that is attached after it was found stays, whenever that happens.
func TestAttachedMeanwhile(t *testing.T) {
	t.Parallel()
	for when, want := range map[string]string{
		"look 2": "gone, or attached, at the second look", "delete 1": "attached at the last moment",
	} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				a := newAccount(t)
				eni := a.eni(a.dead)
				if err := a.TerminateInstance(a.dead); err != nil {
					t.Fatal(err)
				}
				calls := map[string]int{}
				verdicts, err := a.cleaner(func(o *Options) {
					o.EC2 = hooked{a.EC2, func(call string) {
						calls[call]++
						if fmt.Sprint(call, " ", calls[call]) == when {
							a.attach(eni, a.live)
						}
					}}
				}).Clean(t.Context())
				if err != nil || len(verdicts) != 1 || verdicts[0].Delete || verdicts[0].Reason != want {
					t.Errorf("%+v, %v", verdicts, err)
				}
				if e, ok := a.ENI(eni); !ok || e.Attachment == nil {
					t.Errorf("the ENI is not attached: %+v", e)
				}
			})
		})
	}
}

// blind is EC2 whose list of instances lacks everything, as with hidden or foreign instances.
type blind struct{ EC2 }

func (blind) InstanceStates(context.Context, ...string) (map[string]string, error) { return nil, nil }

func TestMissingInstancesProveNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAccount(t)
		eni := a.eni(a.live)
		_, err := a.cleaner(func(o *Options) { o.EC2 = blind{a.EC2} }).Clean(t.Context())
		if err == nil || !strings.Contains(err.Error(), "this very instance") {
			t.Errorf("got %v", err)
		}
		if _, ok := a.ENI(eni); !ok {
			t.Error("the ENI of a running instance was deleted")
		}
		if _, err := a.cleaner(func(o *Options) { o.Cluster = "" }).Look(t.Context()); err == nil {
			t.Error("it looks without a cluster's name")
		}
	})
}

func TestDeniedDeletion(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAccount(t)
		for range 3 {
			a.eni("i-0123456789abcdef0")
		}
		a.AddFault(ec2.Fault{Action: "DeleteNetworkInterface", Deny: true})
		a.ResetRequests()
		c := a.cleaner()
		verdicts, err := c.Clean(t.Context())
		if awsutils.Classify(err) != awsutils.Denied || len(verdicts) != 3 {
			t.Errorf("%v, %v", verdicts, err)
		}
		if got := c.Counts(); got != (Counts{Passes: 1, Found: 3, Failed: 1}) {
			t.Errorf("counts %+v", got)
		}
		if got := a.calls(); !strings.Contains(got, "DeleteNetworkInterface 1,") {
			t.Errorf("a denied call was repeated: %s", got)
		}
	})
}

// The tag's value is compared, not matched: a cluster called "*" is not every cluster.
func TestClusterNameIsNoPattern(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAccount(t)
		a.eni("i-0123456789abcdef0")
		verdicts, err := a.cleaner(func(o *Options) { o.Cluster = "bl*" }).Look(t.Context())
		if err != nil || len(verdicts) > 0 {
			t.Errorf("%+v, %v", verdicts, err)
		}
	})
}

func TestTable(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	err := WriteTable(&out, []Verdict{
		{ENI: "eni-1", Instance: "i-1", Age: 90 * time.Minute, Delete: true, Reason: "its instance is terminated"},
		{ENI: "eni-22", Reason: "its tag names no instance"},
	})
	const want = `ENI     INSTANCE  AGE      VERDICT  REASON
eni-1   i-1       1h30m0s  delete   its instance is terminated
eni-22  -         -        keep     its tag names no instance
`
	if err != nil || out.String() != want {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// table is a Lease in memory.
type table struct {
	mu     sync.Mutex
	lease  k8sapi.Lease
	denied bool
}

func (l *table) deny() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.denied = true
}

func (l *table) now() k8sapi.Lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lease
}

func (l *table) Get(context.Context) (k8sapi.Lease, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.denied {
		return k8sapi.Lease{}, errors.New("403 Forbidden")
	}
	return l.lease, nil
}

func (l *table) Put(_ context.Context, lease k8sapi.Lease) (taken bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if lease.Version != l.lease.Version {
		return true, nil
	}
	lease.Version += "i"
	l.lease = lease
	return false, nil
}

// Two nodes take part for a day: one cleans, and when it ends, or has no right to, the other one does.
func TestElected(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAccount(t)
		leases := &table{}
		var ill atomic.Value
		run := func(name string) (c *Cleaner, stop func()) {
			ctx, cancel := context.WithCancel(t.Context())
			c = a.cleaner()
			go c.Run(ctx, &k8sapi.Election{Leases: leases, Identity: name, Duration: LeaseDuration, Clock: a.clock},
				func(reason string) { ill.Store(reason) })
			return c, func() { cancel(); synctest.Wait() }
		}
		one, stopOne := run("one")
		two, stopTwo := run("two")
		defer stopTwo()
		defer stopOne()
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		first, second, stopFirst := one, two, stopOne
		if two.Counts().Passes > 0 {
			first, second, stopFirst = two, one, stopTwo
		}
		// Half an hour apart, give or take a quarter of it.
		if n, m := first.Counts().Passes, second.Counts().Passes; n < 38 || n > 64 || m > 0 {
			t.Errorf("%d and %d passes in a day, want about 48 and none", n, m)
		}
		if leases.now().Transitions > 0 {
			t.Errorf("the lease changed hands %d times", leases.now().Transitions)
		}
		holder := leases.now().Holder

		stopFirst()
		eni := a.eni("i-0123456789abcdef0")
		time.Sleep(LeaseDuration + 2*Every)
		synctest.Wait()
		if _, there := a.ENI(eni); there || leases.now().Holder == holder {
			t.Errorf("the orphan is there: %t, the lease is %s's", there, leases.now().Holder)
		}

		leases.deny()
		time.Sleep(2 * Every)
		synctest.Wait()
		if !strings.Contains(fmt.Sprint(ill.Load()), "Forbidden") {
			t.Errorf("nobody says that there is no right to the lease: %v", ill.Load())
		}
	})
}

// A node that may not delete lets another one try.
func TestElectedWithoutRights(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAccount(t)
		leases := &table{}
		a.eni("i-0123456789abcdef0")
		a.AddFault(ec2.Fault{Action: "DeleteNetworkInterface", Deny: true})
		ctx, cancel := context.WithCancel(t.Context())
		cleaners := map[string]*Cleaner{}
		for _, name := range []string{"one", "two"} {
			cleaners[name] = a.cleaner()
			go cleaners[name].Run(ctx, &k8sapi.Election{Leases: leases, Identity: name, Duration: LeaseDuration, Clock: a.clock},
				func(string) {})
		}
		time.Sleep(6 * time.Hour)
		cancel()
		synctest.Wait()
		for name, c := range cleaners {
			if n := c.Counts().Passes; n < 1 || n > 3 {
				t.Errorf("%s: %d passes, want one or two while each sits out in turn", name, n)
			}
		}
		if leases.now().Transitions == 0 {
			t.Error("the lease did not change hands")
		}
	})
}
