package ec2

import (
	"encoding/base64"
	"slices"
	"strings"
)

// page is what a Describe call says about paging.
type page struct {
	max   int // 0: all
	after string
}

const (
	minResults = 5
	maxResults = 1000
)

// paging reads MaxResults, at most most, and NextToken. ids is the parameter of explicit ids, which EC2 does not let
// be combined with MaxResults.
func (p *params) paging(ids string, most int) page {
	var pg page
	if p.has("MaxResults") {
		pg.max = p.integer("MaxResults", minResults, most)
		if ids != "" && p.has(ids) {
			p.fail(invalidCombination("The parameter %ss cannot be used with the parameter maxResults", lowerFirst(ids)))
		}
	}
	if token, ok := p.get("NextToken"); ok && token != "" {
		raw, err := base64.URLEncoding.DecodeString(token)
		after, found := strings.CutPrefix(string(raw), tokenPrefix)
		if err != nil || !found {
			p.fail(errorf("InvalidNextToken", "The specified NextToken (%s) is not valid.", token))
		}
		pg.after = after
	}
	return pg
}

// A token names the last thing that was shown, so that pages stay right while things come and go between them.
const tokenPrefix = "after:"

// cut gives one page of the things, which are sorted by id, and the token for the next one, empty after the last.
func cut[T any](pg page, things []T, id func(T) string) (shown []T, next string) {
	if pg.after != "" {
		n, found := slices.BinarySearchFunc(things, pg.after, func(t T, after string) int { return strings.Compare(id(t), after) })
		if found {
			n++
		}
		things = things[n:]
	}
	if pg.max == 0 || len(things) <= pg.max {
		return things, ""
	}
	shown = things[:pg.max]
	return shown, base64.URLEncoding.EncodeToString([]byte(tokenPrefix + id(shown[len(shown)-1])))
}
