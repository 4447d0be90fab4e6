package ec2

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

const (
	apiVersion = "2016-11-15"
	namespace  = "http://ec2.amazonaws.com/doc/" + apiVersion + "/"
	// bodyLimit is more than the largest call that EC2 takes.
	bodyLimit = 1 << 20
)

// call is one call over HTTP.
type call struct {
	*params
	action string
	caller string // instance id, "operator" or "unknown"
}

// response is the body of an answer.
type response interface{ stamp(requestID string) }

// reply is what all answers have in common.
type reply struct {
	RequestID string `xml:"requestId"`
}

func (r *reply) stamp(id string) { r.RequestID = id }

// done is the answer of actions that only report success.
type done struct {
	reply
	Return bool `xml:"return"`
}

// actions are all actions. An action reads its parameters, asks ready whether to go on, and acts.
var actions = map[string]func(*Cloud, *call) (response, error){
	"AssignIpv6Addresses":             (*Cloud).assignIPv6Addresses,
	"AssignPrivateIpAddresses":        (*Cloud).assignPrivateIPAddresses,
	"AttachNetworkInterface":          (*Cloud).attachNetworkInterface,
	"CreateNetworkInterface":          (*Cloud).createNetworkInterface,
	"CreateTags":                      (*Cloud).createTags,
	"DeleteNetworkInterface":          (*Cloud).deleteNetworkInterface,
	"DeleteTags":                      (*Cloud).deleteTags,
	"DescribeInstanceTypes":           (*Cloud).describeInstanceTypes,
	"DescribeInstances":               (*Cloud).describeInstances,
	"DescribeNetworkInterfaces":       (*Cloud).describeNetworkInterfaces,
	"DescribeSecurityGroups":          (*Cloud).describeSecurityGroups,
	"DescribeSubnets":                 (*Cloud).describeSubnets,
	"DescribeTags":                    (*Cloud).describeTags,
	"DescribeVpcs":                    (*Cloud).describeVPCs,
	"DetachNetworkInterface":          (*Cloud).detachNetworkInterface,
	"ModifyNetworkInterfaceAttribute": (*Cloud).modifyNetworkInterfaceAttribute,
	"RunInstances":                    (*Cloud).runInstances,
	"TerminateInstances":              (*Cloud).terminateInstances,
	"UnassignIpv6Addresses":           (*Cloud).unassignIPv6Addresses,
	"UnassignPrivateIpAddresses":      (*Cloud).unassignPrivateIPAddresses,
}

// ready says whether the action may act: its parameters were right and it was not only asked whether it could.
func (c *call) ready() error {
	dry := c.boolean("DryRun")
	if err := c.finish(); err != nil {
		return err
	}
	if dry {
		return errorf("DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
	}
	return nil
}

// Handler serves the EC2 Query API: form-encoded POST or GET in, XML out.
func (c *Cloud) Handler() http.Handler { return http.HandlerFunc(c.serve) }

func (c *Cloud) serve(w http.ResponseWriter, r *http.Request) {
	started := c.clock.Now()
	seq := c.requests.next()
	requestID := fmt.Sprintf("%08x-%04x-4000-8000-%012x", uint32(c.opts.Seed), uint16(seq>>48), seq&(1<<48-1))

	q := &call{params: newParams(nil), caller: callerUnknown}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyLimit))
	if err == nil {
		err = q.parse(r, body)
	}
	var v verdict
	var result response
	if err == nil {
		result, v, err = c.answer(r, q, body)
	}
	outcome := "ok"
	if err != nil {
		outcome = asError(err).Code
	}
	c.requests.add(Request{
		Seq: seq, Time: started, Action: q.action, Caller: q.caller, Outcome: outcome, Lost: v.lost,
		Duration: c.clock.Since(started), Params: q.small(),
	})
	if v.lost {
		// The way that net/http has to cut the connection without an answer.
		panic(http.ErrAbortHandler)
	}
	if err != nil {
		writeError(w, requestID, asError(err))
		return
	}
	result.stamp(requestID)
	writeXML(w, http.StatusOK, result, xml.StartElement{
		Name: xml.Name{Local: q.action + "Response"},
		Attr: []xml.Attr{{Name: xml.Name{Local: "xmlns"}, Value: namespace}},
	})
}

// parse reads the call's parameters from the body or, with GET, from the URL.
func (q *call) parse(r *http.Request, body []byte) error {
	text := r.URL.RawQuery
	switch r.Method {
	case http.MethodGet:
	case http.MethodPost:
		text = string(body)
	default:
		return errorf("InvalidRequest", "The HTTP method %s is not supported", r.Method)
	}
	values, err := url.ParseQuery(text)
	if err != nil {
		return errorf("MalformedQueryString", "The query string is malformed: %v", err)
	}
	q.params = newParams(values)
	q.action = q.text("Action")
	version := q.text("Version")
	switch _, known := actions[q.action]; {
	case q.action == "":
		return errorf("MissingAction", "The request must contain the parameter Action")
	case !known:
		return errorf("InvalidAction", "The action %s is not valid for this web service.", q.action)
	case version != apiVersion:
		return errorf("NoSuchVersion", "The requested version (%s) of service AmazonEC2 does not exist", version)
	}
	return nil
}

// answer takes the call through everything that stands before and around its action: latency, identity, throttling,
// faults.
func (c *Cloud) answer(r *http.Request, q *call, body []byte) (response, verdict, error) {
	var v verdict
	if err := c.wait(r.Context(), c.opts.APILatency); err != nil {
		return nil, v, err
	}
	var err error
	if q.caller, err = c.authenticate(r, body); err != nil {
		return nil, v, err
	}
	if !c.throttle.allow(q.action) {
		return nil, v, errorf("RequestLimitExceeded", "Request limit exceeded.")
	}
	v = c.faults.judge(q.action, c.subnetOf(q), q.caller)
	if _, tags := q.values["TagSpecification.1.Tag.1.Key"]; tags && v.err == nil {
		v.err = c.faults.authorize("CreateTags", c.subnetOf(q), q.caller)
	}
	if err := c.wait(r.Context(), v.latency); err != nil {
		return nil, v, err
	}
	if v.err != nil {
		return nil, v, v.err
	}
	// A change is due before it is asked about, also where only the Plane's timers would carry it out.
	c.settle()
	result, err := actions[q.action](c, q)
	return result, v, err
}

// subnetOf is the subnet that the call is about, empty if it is about none.
func (c *Cloud) subnetOf(q *call) string {
	if id := q.named("SubnetId", "SubnetId.1"); id != "" {
		return id
	}
	c.state.RLock()
	defer c.state.RUnlock()
	if e, ok := c.enis[q.named("NetworkInterfaceId", "NetworkInterfaceId.1")]; ok {
		return e.SubnetID
	}
	if e, ok := c.enis[c.index.attachments[q.named("AttachmentId")]]; ok {
		return e.SubnetID
	}
	return ""
}

// wait lets time pass on the clock, unless the caller goes away.
func (c *Cloud) wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := c.clock.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.Chan():
		return nil
	case <-ctx.Done():
		return internal(ctx.Err())
	}
}

func asError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return internal(err)
}

type errorBody struct {
	XMLName   xml.Name `xml:"Response"`
	Code      string   `xml:"Errors>Error>Code"`
	Message   string   `xml:"Errors>Error>Message"`
	RequestID string   `xml:"RequestID"`
}

func writeError(w http.ResponseWriter, requestID string, e *Error) {
	b := errorBody{Code: e.Code, Message: e.Message, RequestID: requestID}
	writeXML(w, e.Status(), b, xml.StartElement{Name: xml.Name{Local: "Response"}})
}

func writeXML(w http.ResponseWriter, status int, body any, start xml.StartElement) {
	b := bytes.NewBufferString(xml.Header)
	if err := xml.NewEncoder(b).EncodeElement(body, start); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/xml;charset=UTF-8")
	w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	w.Header().Set("Server", "AmazonEC2")
	w.WriteHeader(status)
	_, _ = b.WriteTo(w) // the caller may be gone
}
