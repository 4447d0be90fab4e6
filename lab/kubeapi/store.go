package kubeapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Put creates or replaces an object, whatever its version: what others than the clients under test do. The object needs
// metadata.name, and metadata.namespace for resources that have one.
func (s *Server) Put(resource string, o Object) Object {
	r, ok := s.find("", resource)
	if !ok {
		panic("kubeapi: no resource " + resource)
	}
	o = clone(o)
	m := meta(o)
	k := key{r.Group, r.Name, text(m, "namespace"), text(m, "name")}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.objects[k]; ok {
		m["resourceVersion"] = meta(old)["resourceVersion"]
		return clone(s.replace(r, k, old, o))
	}
	return clone(s.insert(r, k, o))
}

// Get returns an object; nil if it is not there.
func (s *Server) Get(resource, namespace, name string) Object {
	r, ok := s.find("", resource)
	if !ok {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return clone(s.objects[key{r.Group, r.Name, namespace, name}])
}

// List returns all objects of a resource, by namespace and name.
func (s *Server) List(resource string) []Object {
	r, ok := s.find("", resource)
	if !ok {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.list(r, "", selector{})
	for i := range found {
		found[i] = clone(found[i])
	}
	return found
}

// Remove deletes an object. One that is not there is success.
func (s *Server) Remove(resource, namespace, name string) {
	r, ok := s.find("", resource)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k := key{r.Group, r.Name, namespace, name}
	if old, ok := s.objects[k]; ok {
		s.drop(k, old)
	}
}

// find looks a resource up. "events" means those of events.k8s.io unless the group is said to be core; a resource of
// any group is found by its name alone.
func (s *Server) find(group, name string) (Resource, bool) {
	var found Resource
	ok := false
	for _, r := range s.resources {
		if r.Name == name && (group == "" || group == r.Group) {
			found, ok = r, true
		}
	}
	return found, ok
}

// insert stores a new object; mu must be held.
func (s *Server) insert(r Resource, k key, o Object) Object {
	s.lastID++
	m := meta(o)
	m["uid"] = fmt.Sprintf("00000000-0000-4000-8000-%012d", s.lastID)
	m["creationTimestamp"] = s.clock.Now().UTC().Format(time.RFC3339)
	if r.Namespaced {
		m["namespace"] = k.namespace
	}
	return s.store(r, k, nil, o)
}

// replace stores a new state of an object, which keeps what no client may change; mu must be held.
func (s *Server) replace(r Resource, k key, old, o Object) Object {
	m, was := meta(o), meta(old)
	for _, field := range []string{"uid", "creationTimestamp", "name", "namespace"} {
		if v, ok := was[field]; ok {
			m[field] = v
		}
	}
	m["resourceVersion"] = was["resourceVersion"]
	o["apiVersion"], o["kind"] = r.apiVersion(), r.Kind
	if reflect.DeepEqual(o, old) {
		return old // nothing changed, and nobody is told
	}
	return s.store(r, k, old, o)
}

func (s *Server) store(r Resource, k key, old, o Object) Object {
	s.version++
	o["apiVersion"], o["kind"] = r.apiVersion(), r.Kind
	meta(o)["resourceVersion"] = strconv.FormatUint(s.version, 10)
	s.objects[k] = o
	s.history = append(s.history, change{s.version, k, old, o})
	s.wake()
	return o
}

// drop deletes an object; mu must be held.
func (s *Server) drop(k key, old Object) {
	s.version++
	delete(s.objects, k)
	s.history = append(s.history, change{s.version, k, old, nil})
	s.wake()
}

// list returns the objects that a selector takes, by namespace and name; mu must be held.
func (s *Server) list(r Resource, namespace string, sel selector) (found []Object) {
	for k, o := range s.objects {
		if k.group == r.Group && k.resource == r.Name && (namespace == "" || namespace == k.namespace) && sel.takes(o) {
			found = append(found, o)
		}
	}
	slices.SortFunc(found, func(a, b Object) int {
		ma, mb := meta(a), meta(b)
		return strings.Compare(text(ma, "namespace")+"/"+text(ma, "name"), text(mb, "namespace")+"/"+text(mb, "name"))
	})
	return found
}

// checkVersion refuses a change of an object that the client saw at another version; mu must be held. An empty version
// is no condition.
func checkVersion(r Resource, old Object, version string) *status {
	if have := text(meta(old), "resourceVersion"); version != "" && version != have {
		return failure(http.StatusConflict, "Conflict", fmt.Sprintf(
			"Operation cannot be fulfilled on %s %q: the object has been modified; please apply your changes to the latest version and try again",
			r.qualified(), text(meta(old), "name")))
	}
	return nil
}

// merge is RFC 7396: null removes, objects are merged, everything else replaces.
func merge(into, patch Object) Object {
	out := maps.Clone(into)
	if out == nil {
		out = Object{}
	}
	for name, v := range patch {
		switch v := v.(type) {
		case nil:
			delete(out, name)
		case map[string]any:
			was, _ := out[name].(map[string]any)
			out[name] = merge(was, v)
		default:
			out[name] = v
		}
	}
	return out
}

// meta is an object's metadata, made if missing.
func meta(o Object) Object {
	m, ok := o["metadata"].(map[string]any)
	if !ok {
		m = Object{}
		o["metadata"] = m
	}
	return m
}

func text(o Object, field string) string {
	t, _ := o[field].(string)
	return t
}

func clone(o Object) Object {
	if o == nil {
		return nil
	}
	data, err := json.Marshal(o)
	if err != nil {
		panic("kubeapi: an object that is no JSON: " + err.Error())
	}
	var out Object
	if err := json.Unmarshal(data, &out); err != nil {
		panic("kubeapi: " + err.Error())
	}
	return out
}

func (r Resource) apiVersion() string {
	if r.Group == "" {
		return r.Version
	}
	return r.Group + "/" + r.Version
}

// qualified is the resource's name with its group.
func (r Resource) qualified() string {
	if r.Group == "" {
		return r.Name
	}
	return r.Name + "." + r.Group
}
