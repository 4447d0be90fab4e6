package main

import (
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"vpccni/lab/ec2"
	"vpccni/pkg/awsutils"
)

// A dry run says what would become of each ENI, and changes nothing.
func TestCleanENIsDryRun(t *testing.T) {
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "") // the SDK takes empty for unset
		}
	}
	cloud := ec2.New(ec2.Options{})
	vpc, err := cloud.CreateVPC(netip.MustParsePrefix("10.0.0.0/16"))
	if err != nil {
		t.Fatal(err)
	}
	subnet, err := cloud.CreateSubnet(ec2.Subnet{VPCID: vpc.ID, Zone: "us-west-2a", CIDR: netip.MustParsePrefix("10.0.1.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(cloud.Handler())
	t.Cleanup(server.Close)
	key := cloud.OperatorCredentials()
	t.Setenv("AWS_ACCESS_KEY_ID", key.AccessKeyID)
	t.Setenv("AWS_SECRET_ACCESS_KEY", key.SecretAccessKey)
	t.Setenv("AWS_EC2_ENDPOINT", server.URL)
	client, err := awsutils.NewEC2(t.Context(), awsutils.EC2Options{Region: cloud.Region(), Endpoint: server.URL,
		Credentials: credentials.NewStaticCredentialsProvider(key.AccessKeyID, key.SecretAccessKey, "")})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, age := range []time.Duration{time.Hour, time.Second} {
		e, err := client.CreateENI(t.Context(), awsutils.NewENI{SubnetID: subnet.ID, Description: awsutils.DescriptionPrefix + "i-0123456789abcdef0",
			Tags: map[string]string{awsutils.TagCluster: "blue", awsutils.TagInstance: "i-0123456789abcdef0",
				awsutils.TagCreatedAt: time.Now().Add(-age).Format(time.RFC3339)}})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, e.ID)
	}
	code, out := printed(t, "clean-enis", "--dry-run", "--cluster", "blue", "--region", cloud.Region())
	if code != exitOK {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	for i, want := range []string{"delete   EC2 does not know its instance", "keep     younger than"} {
		line := ""
		for l := range strings.Lines(out) {
			if strings.HasPrefix(l, ids[i]) {
				line = l
			}
		}
		if !strings.Contains(line, want) {
			t.Errorf("%s: %q, want %q\n%s", ids[i], line, want, out)
		}
		if _, there := cloud.ENI(ids[i]); !there {
			t.Errorf("%s is gone", ids[i])
		}
	}
	if code, out := printed(t, "clean-enis", "--dry-run", "--cluster", "green", "--region", cloud.Region()); code != exitOK || strings.Count(out, "\n") != 1 {
		t.Errorf("another cluster: exit code %d\n%s", code, out)
	}
}

func TestCleanENIsUsage(t *testing.T) {
	t.Setenv("CLUSTER_NAME", "")
	for args, want := range map[string]int{
		"": exitUsage, "--help": exitOK, "--cluster=blue extra": exitUsage, "--no-such-flag": exitUsage,
		"--cluster=blue --min-age=0s --dry-run": exitUsage,
	} {
		if code := run(append([]string{"clean-enis"}, strings.Fields(args)...), time.Now()); code != want {
			t.Errorf("%q: exit code %d, want %d", args, code, want)
		}
	}
}

// printed runs the program and returns what it printed.
func printed(t *testing.T, args ...string) (code int, out string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "out")
	file, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	stdout := os.Stdout
	os.Stdout = file
	defer func() { os.Stdout = stdout }()
	code = run(args, time.Now())
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return code, string(text)
}
