package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

// noAWS keeps the SDK from everything outside: without it a test would ask the machine's own files, or its network.
func noAWS(t *testing.T) {
	t.Helper()
	missing := filepath.Join(t.TempDir(), "none")
	for key, value := range map[string]string{
		"AWS_CONFIG_FILE": missing, "AWS_SHARED_CREDENTIALS_FILE": missing, "AWS_PROFILE": "", "AWS_REGION": "", "AWS_DEFAULT_REGION": "",
		"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_SESSION_TOKEN": "",
		"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_EC2": "http://127.0.0.1:1",
		"AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1",
	} {
		t.Setenv(key, value)
	}
}

// serveIMDS answers like IMDSv2 on an instance of a type.
func serveIMDS(t *testing.T, instanceType string) {
	t.Helper()
	const mac = "02:00:00:00:00:01"
	tree := map[string]string{
		"/latest/dynamic/instance-identity/document":                         `{"region":"eu-test-1"}`,
		"/latest/meta-data/mac":                                              mac,
		"/latest/meta-data/instance-type":                                    instanceType,
		"/latest/meta-data/instance-id":                                      "i-1",
		"/latest/meta-data/local-ipv4":                                       "10.0.0.1",
		"/latest/meta-data/placement/availability-zone":                      "eu-test-1a",
		"/latest/meta-data/network/interfaces/macs/" + mac + "/vpc-id":       "vpc-1",
		"/latest/meta-data/network/interfaces/macs/" + mac + "/subnet-id":    "subnet-1",
		"/latest/meta-data/network/interfaces/macs/" + mac + "/interface-id": "eni-1",
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "21600")
			fmt.Fprint(w, "token")
			return
		}
		text, ok := tree[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		fmt.Fprint(w, text)
	}))
	t.Cleanup(server.Close)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "")
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.URL)
}

// serveEC2 knows one type, with 32 vCPUs, and notes the region that the last request was signed for.
func serveEC2(t *testing.T) (region *atomic.Value) {
	t.Helper()
	region = new(atomic.Value)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if scope := strings.Split(r.Header.Get("Authorization"), "/"); len(scope) > 2 {
			region.Store(scope[2])
		}
		fmt.Fprint(w, `<DescribeInstanceTypesResponse><instanceTypeSet><item><instanceType>x99.8xlarge</instanceType>
<hypervisor>nitro</hypervisor><vCpuInfo><defaultVCpus>32</defaultVCpus></vCpuInfo>
<networkInfo><maximumNetworkInterfaces>8</maximumNetworkInterfaces><ipv4AddressesPerInterface>30</ipv4AddressesPerInterface>
</networkInfo></item></instanceTypeSet></DescribeInstanceTypesResponse>`)
	}))
	t.Cleanup(server.Close)
	t.Setenv("AWS_ENDPOINT_URL_EC2", server.URL)
	return region
}

func TestCloud(t *testing.T) {
	const unknownType = "--instance-type x99.8xlarge --cni-version 1.18.0"
	t.Run("type and region from imds", func(t *testing.T) {
		noAWS(t)
		serveIMDS(t, "x99.8xlarge")
		region := serveEC2(t)
		t.Setenv("AWS_REGION", "us-test-2") // the instance's own region goes before it
		code, out, errOut := calculator(t, new(awsCloud), "--instance-type-from-imds --cni-version 1.18.0")
		if code != 0 || out != "234\n" || region.Load() != "eu-test-1" {
			t.Errorf("exit %d, %q, region %v\n%s", code, out, region.Load(), errOut)
		}
	})
	t.Run("region from the environment, no imds", func(t *testing.T) {
		noAWS(t)
		region := serveEC2(t)
		t.Setenv("AWS_REGION", "us-test-2")
		code, out, errOut := calculator(t, new(awsCloud), unknownType)
		if code != 0 || out != "234\n" || region.Load() != "us-test-2" {
			t.Errorf("exit %d, %q, region %v\n%s", code, out, region.Load(), errOut)
		}
	})
	t.Run("region from imds", func(t *testing.T) {
		noAWS(t)
		serveIMDS(t, "t3.medium")
		region := serveEC2(t)
		code, out, errOut := calculator(t, new(awsCloud), unknownType)
		if code != 0 || out != "234\n" || region.Load() != "eu-test-1" {
			t.Errorf("exit %d, %q, region %v\n%s", code, out, region.Load(), errOut)
		}
	})
	t.Run("no region", func(t *testing.T) {
		noAWS(t)
		code, out, errOut := calculator(t, new(awsCloud), unknownType)
		if code != 1 || out != "" || !strings.Contains(errOut, "AWS_REGION is not set") {
			t.Errorf("exit %d, %q\n%s", code, out, errOut)
		}
	})
	t.Run("no ec2", func(t *testing.T) {
		noAWS(t)
		t.Setenv("AWS_REGION", "us-test-2")
		code, out, errOut := calculator(t, new(awsCloud), unknownType)
		if code != 1 || out != "" || !strings.Contains(errOut, "x99.8xlarge is not in the built-in table: limits of x99.8xlarge:") {
			t.Errorf("exit %d, %q\n%s", code, out, errOut)
		}
	})
}
