// Package awscli drives the simulated EC2 with the AWS CLI: a client that shares no code with the one that the project
// itself uses.
package awscli

import (
	"bufio"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"vpccni/lab/ec2"
)

const cli = "/usr/bin/aws" // of Debian's package awscli

func TestAWSCLI(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat(cli); err != nil {
		if os.Getenv("AWSCLI_UNAVAILABLE") == "1" {
			t.Skipf("the AWS CLI is not installed, and AWSCLI_UNAVAILABLE=1 says that it cannot be: %v", err)
		}
		t.Fatalf("the AWS CLI is not installed (apt-get install awscli; where that is impossible set AWSCLI_UNAVAILABLE=1): %v", err)
	}
	cloud := ec2.New(ec2.Options{AttachDelay: 100 * time.Millisecond, DetachDelay: 100 * time.Millisecond})
	vpc, err := cloud.CreateVPC(netip.MustParsePrefix("10.0.0.0/16"))
	if err != nil {
		t.Fatal(err)
	}
	subnet, err := cloud.CreateSubnet(ec2.Subnet{VPCID: vpc.ID, CIDR: netip.MustParsePrefix("10.0.1.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	instance, err := cloud.RunInstance(ec2.InstanceSpec{Type: "t3.medium", SubnetID: subnet.ID})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(cloud.Handler())
	defer server.Close()

	key := cloud.OperatorCredentials()
	cmd := exec.CommandContext(t.Context(), "./run.sh")
	cmd.Env = append(os.Environ(),
		"AWS_CLI="+cli,
		"EC2_ENDPOINT="+server.URL,
		"AWS_ACCESS_KEY_ID="+key.AccessKeyID,
		"AWS_SECRET_ACCESS_KEY="+key.SecretAccessKey,
		"AWS_DEFAULT_REGION="+cloud.Region(),
		"INSTANCE_ID="+instance.ID,
		"SUBNET_ID="+subnet.ID,
	)
	out, err := cmd.CombinedOutput()
	for lines := bufio.NewScanner(strings.NewReader(string(out))); lines.Scan(); {
		t.Log(lines.Text())
	}
	if err != nil {
		t.Error(err)
	}
	if enis := cloud.ENIs(); len(enis) != 1 {
		t.Errorf("the script left %d ENIs behind", len(enis)-1)
	}
	for _, r := range cloud.Requests() {
		if r.Caller != "operator" {
			t.Errorf("%s was called by %s", r.Action, r.Caller)
		}
	}
}
