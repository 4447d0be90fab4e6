package kubeapi

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// maxBody is the largest request body; the real server's limit is 3 MiB.
const maxBody = 3 << 20

// status is what the API says of a failure.
type status struct {
	Kind       string `json:"kind"`
	APIVersion string `json:"apiVersion"`
	Status     string `json:"status"`
	Reason     string `json:"reason"`
	Message    string `json:"message"`
	Code       int    `json:"code"`
}

func failure(code int, reason, message string) *status {
	return &status{"Status", "v1", "Failure", reason, message, code}
}

// target is what a request's path names.
type target struct {
	Resource
	namespace, name, sub string
}

func (t target) key() key { return key{t.Group, t.Name, t.namespace, t.name} }

// parse reads /api/v1/… and /apis/group/version/….
func (s *Server) parse(path string) (t target, ok bool) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	var group, version string
	switch {
	case len(parts) >= 3 && parts[0] == "api":
		version, parts = parts[1], parts[2:]
	case len(parts) >= 4 && parts[0] == "apis":
		group, version, parts = parts[1], parts[2], parts[3:]
	default:
		return t, false
	}
	if len(parts) >= 3 && parts[0] == "namespaces" {
		t.namespace, parts = parts[1], parts[2:]
	}
	for _, r := range s.resources {
		if r.Group == group && r.Version == version && r.Name == parts[0] {
			t.Resource, ok = r, true
		}
	}
	if len(parts) > 1 {
		t.name = parts[1]
	}
	if len(parts) > 2 {
		t.sub = parts[2]
	}
	return t, ok && len(parts) <= 3 && (t.sub == "" || t.sub == "status")
}

// verb is what authorization calls a request.
func (t target) verb(r *http.Request) string {
	switch r.Method {
	case http.MethodGet:
		if w := r.URL.Query().Get("watch"); w == "true" || w == "1" {
			return "watch"
		}
		if t.name == "" {
			return "list"
		}
		return "get"
	case http.MethodPost:
		return "create"
	case http.MethodPut:
		return "update"
	}
	return strings.ToLower(r.Method)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/version" {
		s.record(Request{Verb: "get", Path: r.URL.Path})
		reply(w, http.StatusOK, map[string]string{"major": "1", "minor": "34", "gitVersion": "v1.34.0-lab"})
		return
	}
	t, ok := s.parse(r.URL.Path)
	verb := t.verb(r)
	s.record(Request{Verb: verb, Resource: t.Name, Name: t.name, Path: r.URL.Path})
	if !s.injected(w, r, verb, t, ok) {
		s.fulfil(w, r, verb, t, ok)
	}
}

// fulfil does what a request asks for; known tells whether its path means anything.
func (s *Server) fulfil(w http.ResponseWriter, r *http.Request, verb string, t target, known bool) {
	s.mu.Lock()
	token := s.token
	s.mu.Unlock()
	switch {
	case token != "" && r.Header.Get("Authorization") != "Bearer "+token:
		fail(w, failure(http.StatusUnauthorized, "Unauthorized", "Unauthorized"))
		return
	case !known:
		fail(w, failure(http.StatusNotFound, "NotFound", "the server could not find the requested resource"))
		return
	}
	if verb == "watch" {
		s.watch(w, r, t)
		return
	}
	var body Object
	if r.Method != http.MethodGet && r.Method != http.MethodDelete {
		data, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
		if err == nil {
			err = json.Unmarshal(data, &body)
		}
		if err != nil || body == nil {
			fail(w, failure(http.StatusBadRequest, "BadRequest", fmt.Sprintf("the body is no object: %v", err)))
			return
		}
	}
	answer, code, st := s.answer(r, t, verb, body)
	if st != nil {
		fail(w, st)
		return
	}
	reply(w, code, answer)
}

// answer does what a request that is no watch asks for.
func (s *Server) answer(r *http.Request, t target, verb string, body Object) (answer any, code int, st *status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, there := s.objects[t.key()]
	if t.name != "" && !there {
		return nil, 0, failure(http.StatusNotFound, "NotFound", fmt.Sprintf("%s %q not found", t.qualified(), t.name))
	}
	switch {
	case verb == "get":
		return old, http.StatusOK, nil
	case verb == "list":
		sel, err := selectorOf(r.URL.Query())
		if err != nil {
			return nil, 0, failure(http.StatusBadRequest, "BadRequest", err.Error())
		}
		items := s.list(t.Resource, t.namespace, sel)
		return Object{
			"apiVersion": t.apiVersion(), "kind": t.Kind + "List",
			"metadata": Object{"resourceVersion": strconv.FormatUint(s.version, 10)},
			"items":    slices.Concat([]Object{}, items),
		}, http.StatusOK, nil
	case verb == "create" && t.name == "":
		return s.create(t, body)
	case verb == "update" && there:
		version := text(meta(body), "resourceVersion")
		if version == "" {
			return nil, 0, failure(http.StatusUnprocessableEntity, "Invalid", "metadata.resourceVersion: Invalid value: 0x0: must be specified for an update")
		}
		if st := checkVersion(t.Resource, old, version); st != nil {
			return nil, 0, st
		}
		return s.replace(t.Resource, t.key(), old, t.part(old, body)), http.StatusOK, nil
	case verb == "patch" && there:
		switch kind := r.Header.Get("Content-Type"); kind {
		// The two differ in lists only, of which a strategic patch knows the keys.
		case "application/merge-patch+json", "application/strategic-merge-patch+json":
		default:
			return nil, 0, failure(http.StatusUnsupportedMediaType, "UnsupportedMediaType", "the lab takes merge patches, not "+kind)
		}
		if st := checkVersion(t.Resource, old, text(meta(body), "resourceVersion")); st != nil {
			return nil, 0, st
		}
		return s.replace(t.Resource, t.key(), old, t.part(old, clone(merge(old, body)))), http.StatusOK, nil
	case verb == "delete" && there:
		s.drop(t.key(), old)
		return old, http.StatusOK, nil
	}
	return nil, 0, failure(http.StatusMethodNotAllowed, "MethodNotAllowed", "the server does not allow this method on the requested resource")
}

// part is what of a new state a request may change: by the status subresource the status, else everything but it.
func (t target) part(old, o Object) Object {
	if t.sub != "status" {
		return o
	}
	out := clone(old)
	out["status"] = o["status"]
	return out
}

func (s *Server) create(t target, body Object) (answer any, code int, st *status) {
	m := meta(body)
	t.name = text(m, "name")
	if prefix := text(m, "generateName"); t.name == "" && prefix != "" {
		t.name = fmt.Sprintf("%s%05d", prefix, s.lastID+1)
		m["name"] = t.name
	}
	namespace := text(m, "namespace")
	switch {
	case t.name == "":
		return nil, 0, failure(http.StatusUnprocessableEntity, "Invalid", "metadata.name: Required value: name or generateName is required")
	case t.Namespaced && cmp.Or(namespace, t.namespace) != t.namespace || t.Namespaced && t.namespace == "":
		return nil, 0, failure(http.StatusBadRequest, "BadRequest", "the namespace of the object does not match the namespace on the request")
	}
	if _, ok := s.objects[t.key()]; ok {
		return nil, 0, failure(http.StatusConflict, "AlreadyExists", fmt.Sprintf("%s %q already exists", t.qualified(), t.name))
	}
	return s.insert(t.Resource, t.key(), body), http.StatusCreated, nil
}

func reply(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the client went away
}

func fail(w http.ResponseWriter, st *status) { reply(w, st.Code, st) }
