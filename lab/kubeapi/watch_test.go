package kubeapi

import (
	"net/url"
	"testing"
)

func TestSelector(t *testing.T) {
	t.Parallel()
	o := Object{
		"metadata": Object{"name": "web", "labels": Object{"app": "web", "tier": "front"}},
		"spec":     Object{"clusterIP": "10.0.0.1"},
	}
	for _, tc := range []struct {
		fields, labels string
		takes          bool
	}{
		{"", "", true},
		{"metadata.name=web", "app=web,tier==front", true},
		{"metadata.name=db", "", false},
		{"spec.clusterIP!=None", "", true},
		{"spec.clusterIP!=10.0.0.1", "", false},
		{"spec.nothing!=None", "", true},
		{"", "app!=web", false},
		{"", "app!=db,!headless", true},
		{"", "!app", false},
		{"", "none=web", false},
		{"", "none!=web", true},
	} {
		sel, err := selectorOf(url.Values{"fieldSelector": {tc.fields}, "labelSelector": {tc.labels}})
		if err != nil {
			t.Errorf("%q %q: %v", tc.fields, tc.labels, err)
		}
		if got := sel.takes(o); got != tc.takes {
			t.Errorf("%q %q: takes %t, want %t", tc.fields, tc.labels, got, tc.takes)
		}
	}
	for _, bad := range []url.Values{{"labelSelector": {"app in (web)"}}, {"labelSelector": {"app"}}, {"fieldSelector": {"!metadata.name"}}} {
		if _, err := selectorOf(bad); err == nil {
			t.Errorf("%v is no error", bad)
		}
	}
}
