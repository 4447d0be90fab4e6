package ec2_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/smithy-go/middleware"
)

// capture is a transport that keeps the form of a request and answers nothing.
type capture struct{ form url.Values }

func (c *capture) Do(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if c.form, err = url.ParseQuery(string(body)); err != nil {
		return nil, err
	}
	return nil, errors.New("captured")
}

// fill sets everything in v that can be set; lists get one element.
func fill(v reflect.Value, depth int) {
	if depth > 8 || v.Type() == reflect.TypeFor[middleware.Metadata]() {
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth+1)
	case reflect.Struct:
		for n := range v.NumField() {
			if v.Field(n).CanSet() {
				fill(v.Field(n), depth+1)
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), depth+1)
	case reflect.String:
		v.SetString("x")
	case reflect.Int32, reflect.Int64:
		v.SetInt(1)
	case reflect.Bool:
		v.SetBool(true)
	}
}

// TestParameters sends every action with every parameter that the SDK has, and holds what is refused as unknown to a
// list: what the lab does not model is written down, and what it does model is spelt as the SDK spells it.
func TestParameters(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	kept := &capture{}
	client := l.clientOf(l.Credentials(l.instance.ID), func(o *sdk.Options) {
		o.HTTPClient = kept
		o.Retryer = aws.NopRetryer{}
	})
	unknown := regexp.MustCompile(`<Code>UnknownParameter</Code><Message>The parameter (\S+) is not recognized`)
	var refused []string
	for _, action := range []string{
		"AssignIpv6Addresses", "AssignPrivateIpAddresses", "AttachNetworkInterface", "CreateNetworkInterface", "CreateTags",
		"DeleteNetworkInterface", "DeleteTags", "DescribeInstanceTypes", "DescribeInstances", "DescribeNetworkInterfaces",
		"DescribeSecurityGroups", "DescribeSubnets", "DescribeTags", "DescribeVpcs", "DetachNetworkInterface",
		"ModifyNetworkInterfaceAttribute", "RunInstances", "TerminateInstances", "UnassignIpv6Addresses", "UnassignPrivateIpAddresses",
	} {
		method := reflect.ValueOf(client).MethodByName(action)
		in := reflect.New(method.Type().In(1).Elem())
		fill(in.Elem(), 0)
		kept.form = nil
		out := method.Call([]reflect.Value{reflect.ValueOf(l.ctx), in})
		if kept.form == nil {
			t.Fatalf("%s: nothing was sent: %v", action, out[1])
		}
		for len(kept.form) > 0 {
			_, body := l.do(l.request("POST", kept.form.Encode()))
			m := unknown.FindStringSubmatch(body)
			if m == nil {
				if strings.Contains(body, "InvalidAction") {
					t.Errorf("%s: %s", action, body)
				}
				break
			}
			refused = append(refused, action+" "+m[1])
			kept.form.Del(m[1])
		}
	}
	slices.Sort(refused)
	const file = "testdata/parameters-refused.txt"
	got := []byte(strings.Join(refused, "\n") + "\n")
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want := must(os.ReadFile(file))(t); !bytes.Equal(want, got) {
		t.Errorf("%s (run with -update if this is right): got\n%s", file, got)
	}
}
