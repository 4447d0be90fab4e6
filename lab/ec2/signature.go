package ec2

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	algorithm = "AWS4-HMAC-SHA256"
	amzTime   = "20060102T150405Z"
	// signatureSkew is how far a signature's time may be off.
	signatureSkew = 5 * time.Minute
)

var errAuth = errorf("AuthFailure", "AWS was not able to validate the provided access credentials")

// authenticate finds the caller by the key in the SigV4 Authorization header and verifies the signature.
func (c *Cloud) authenticate(r *http.Request, body []byte) (caller string, err error) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return callerUnknown, errorf("MissingAuthenticationToken", "Request is missing Authentication Token")
	}
	s, ok := parseSignature(header)
	if !ok {
		return callerUnknown, errorf("IncompleteSignature", "The Authorization header is not a complete %s signature", algorithm)
	}
	k, ok := c.keys.find(s.accessKeyID)
	if !ok || k.SessionToken != r.Header.Get("X-Amz-Security-Token") {
		return callerUnknown, errAuth
	}
	signed, err := time.Parse(amzTime, r.Header.Get("X-Amz-Date"))
	if err != nil {
		return k.caller, errorf("IncompleteSignature", "Date must be in ISO-8601 'basic format'. Got '%s'", r.Header.Get("X-Amz-Date"))
	}
	// Clients sign with the time of the machine, whatever clock the cloud runs on.
	if skew := c.wall.Since(signed).Abs(); skew > signatureSkew {
		return k.caller, errorf("RequestExpired", "Request has expired.")
	}
	if s.date != signed.Format("20060102") || s.region != c.opts.Region || s.service != "ec2" {
		return k.caller, errorf("SignatureDoesNotMatch", "Credential should be scoped to %s/%s/ec2", signed.Format("20060102"), c.opts.Region)
	}
	want := s.sign(k.SecretAccessKey, signed, canonicalRequest(r, s.headers, body))
	if !hmac.Equal([]byte(want), []byte(s.signature)) {
		return k.caller, errorf("SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. Consult the service documentation for details.")
	}
	return k.caller, nil
}

// signature is what a SigV4 Authorization header says.
type signature struct {
	accessKeyID, date, region, service string
	headers                            []string
	signature                          string
}

func parseSignature(header string) (s signature, ok bool) {
	rest, ok := strings.CutPrefix(header, algorithm+" ")
	if !ok {
		return s, false
	}
	var scope []string
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		switch name {
		case "Credential":
			scope = strings.Split(value, "/")
		case "SignedHeaders":
			s.headers = strings.Split(value, ";")
		case "Signature":
			s.signature = value
		}
	}
	if len(scope) != 5 || scope[4] != "aws4_request" || !slices.Contains(s.headers, "host") || s.signature == "" {
		return s, false
	}
	s.accessKeyID, s.date, s.region, s.service = scope[0], scope[1], scope[2], scope[3]
	return s, true
}

// sign is the signature that the holder of the secret makes.
func (s signature) sign(secret string, at time.Time, canonical string) string {
	scope := strings.Join([]string{s.date, s.region, s.service, "aws4_request"}, "/")
	digest := sha256.Sum256([]byte(canonical))
	text := strings.Join([]string{algorithm, at.Format(amzTime), scope, hex.EncodeToString(digest[:])}, "\n")
	k := []byte("AWS4" + secret)
	for _, part := range []string{s.date, s.region, s.service, "aws4_request", text} {
		h := hmac.New(sha256.New, k)
		h.Write([]byte(part))
		k = h.Sum(nil)
	}
	return hex.EncodeToString(k)
}

// canonicalRequest is the form of the request that is signed.
func canonicalRequest(r *http.Request, headers []string, body []byte) string {
	var b strings.Builder
	path := r.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	b.WriteString(r.Method + "\n" + escape(path, true) + "\n" + canonicalQuery(r.URL.RawQuery) + "\n")
	for _, name := range headers {
		b.WriteString(name + ":" + headerValue(r, name) + "\n")
	}
	digest := sha256.Sum256(body)
	b.WriteString("\n" + strings.Join(headers, ";") + "\n" + hex.EncodeToString(digest[:]))
	return b.String()
}

func headerValue(r *http.Request, name string) string {
	switch name {
	case "host":
		return r.Host
	case "content-length":
		return strconv.FormatInt(r.ContentLength, 10)
	}
	values := slices.Clone(r.Header.Values(name))
	for i, v := range values {
		values[i] = strings.Join(strings.Fields(v), " ")
	}
	return strings.Join(values, ",")
}

func canonicalQuery(raw string) string {
	values, err := url.ParseQuery(raw)
	if err != nil {
		return raw
	}
	var pairs []string
	for _, name := range sortedKeys(values) { // by name and then by value, not by "name=value"
		vs := slices.Clone(values[name])
		slices.Sort(vs)
		for _, v := range vs {
			pairs = append(pairs, escape(name, false)+"="+escape(v, false))
		}
	}
	return strings.Join(pairs, "&")
}

// escape is SigV4's percent-encoding: all but letters, digits and "-._~".
func escape(s string, keepSlash bool) string {
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~", c) >= 0, keepSlash && c == '/':
			b.WriteByte(c)
		default:
			b.WriteByte('%')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	return b.String()
}
