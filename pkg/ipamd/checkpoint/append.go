package checkpoint

import (
	"encoding/json"
	"strconv"
	"time"
)

// appendString appends s as a JSON string, exactly as encoding/json writes it.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			quoted, err := json.Marshal(s)
			if err != nil { // does not happen: invalid UTF-8 is replaced
				return append(b, `""`...)
			}
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

func appendInt(b []byte, n int64) []byte { return strconv.AppendInt(b, n, 10) }

// appendNanos appends t as Unix time in ns; the zero time is 0, as UnixNano is not defined for it.
func appendNanos(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(b, '0')
	}
	return appendInt(b, t.UnixNano())
}

// nanos is the reverse of appendNanos.
func nanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}
