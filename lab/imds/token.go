package imds

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"strconv"
	"time"
)

const (
	tokenPath      = "api/token"
	tokenHeader    = "X-Aws-Ec2-Metadata-Token"
	tokenTTLHeader = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
	maxTokenTTL    = 21600 // seconds
)

// issueToken answers PUT /latest/api/token.
func (s *Server) issueToken(r *http.Request, instanceID string) response {
	if r.Method != http.MethodPut {
		return failure(http.StatusMethodNotAllowed)
	}
	ttl, err := strconv.Atoi(r.Header.Get(tokenTTLHeader))
	if err != nil || ttl < 1 || ttl > maxTokenTTL {
		return failure(http.StatusBadRequest)
	}
	life := time.Duration(ttl) * time.Second
	return response{
		status:    http.StatusOK,
		body:      s.token(instanceID, s.clock.Now().Add(life)),
		tokenLeft: life,
	}
}

// token makes a token: its end, and a signature over that and the instance. So tokens need not be remembered, and are
// void in any other instance and after a restart of the server.
func (s *Server) token(instanceID string, end time.Time) string {
	text := binary.BigEndian.AppendUint64(nil, uint64(end.UnixNano()))
	mac := hmac.New(sha256.New, s.key[:])
	mac.Write(text)
	mac.Write([]byte(instanceID))
	return base64.URLEncoding.EncodeToString(mac.Sum(text))
}

// checkToken returns the time that a request's token has left, or the HTTP status to refuse the request with.
func (s *Server) checkToken(r *http.Request, instanceID string) (left time.Duration, status int) {
	token := r.Header.Get(tokenHeader)
	if token == "" {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.v1[instanceID] {
			return 0, 0
		}
		return 0, http.StatusUnauthorized
	}
	// A wrong token is refused even where none is needed.
	text, err := base64.URLEncoding.DecodeString(token)
	if err != nil || len(text) != 8+sha256.Size {
		return 0, http.StatusUnauthorized
	}
	end := time.Unix(0, int64(binary.BigEndian.Uint64(text)))
	if !hmac.Equal([]byte(s.token(instanceID, end)), []byte(token)) {
		return 0, http.StatusUnauthorized
	}
	if left = end.Sub(s.clock.Now()); left <= 0 {
		return 0, http.StatusUnauthorized
	}
	return left, 0
}

// seconds rounds up, so that what has not ended is never 0.
func seconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}
