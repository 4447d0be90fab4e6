package slice

import (
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"

	"vpccni/lab/cluster"
)

// operator is a client of EC2 that is none of the nodes.
func operator(l *cluster.Cluster) *sdk.Client {
	key := l.Cloud().OperatorCredentials()
	return sdk.New(sdk.Options{
		Region: l.Cloud().Region(), HTTPClient: &http.Client{Transport: l.Cloud().Transport()},
		Credentials: credentials.NewStaticCredentialsProvider(key.AccessKeyID, key.SecretAccessKey, key.SessionToken),
	})
}

// TestIMDSOnly: somebody else attaches ENIs and addresses, also while pods wait for them; ipamd learns of them from IMDS
// and never calls EC2.
func TestIMDSOnly(t *testing.T) {
	t.Parallel()
	l := lab(t, one(100*time.Millisecond, map[string]string{"ENABLE_IMDS_ONLY_MODE": "true", "ADD_WAIT_TIMEOUT": "60"}))
	n := l.Nodes()[0]
	l.Cloud().ResetRequests()
	ec2 := operator(l)
	primary := attachedENIs(l, n)[0]
	added := make(chan []error, 1)
	go func() { added <- burst(t.Context(), l, 5) }()
	_, err := ec2.AssignPrivateIpAddresses(t.Context(), &sdk.AssignPrivateIpAddressesInput{
		NetworkInterfaceId: &primary.ID, SecondaryPrivateIpAddressCount: aws.Int32(2)})
	if err != nil {
		t.Fatal(err)
	}
	created, err := ec2.CreateNetworkInterface(t.Context(), &sdk.CreateNetworkInterfaceInput{
		SubnetId: &primary.SubnetID, SecondaryPrivateIpAddressCount: aws.Int32(3)})
	if err == nil {
		_, err = ec2.AttachNetworkInterface(t.Context(), &sdk.AttachNetworkInterfaceInput{
			NetworkInterfaceId: created.NetworkInterface.NetworkInterfaceId, InstanceId: &n.InstanceID, DeviceIndex: aws.Int32(1)})
	}
	if err != nil {
		t.Fatal(err)
	}
	for i, err := range <-added {
		if err != nil {
			t.Fatalf("%s: %v", podName(i), err)
		}
	}
	checkHolders(t, l, n)
	checkReachable(t, l)
	checkDrops(t, l)
	if got := calls(l, n); total(got) > 0 {
		t.Errorf("ipamd called EC2: %v", got)
	}
}
