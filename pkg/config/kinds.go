package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// reservedTagPart marks the tag keys that belong to Kubernetes' own controllers.
const reservedTagPart = "k8s.amazonaws.com"

// levelFatal is above everything that is logged before the process ends.
const levelFatal = slog.LevelError + 4

var (
	boolKind = kind[bool]{
		name: "boolean", values: "`true`, `false`",
		read: simple(func(text string) (bool, error) {
			// strconv's forms and no others: "yes" and "on" never were true.
			v, err := strconv.ParseBool(text)
			if err != nil {
				return false, errors.New("not a boolean (true, false, 1, 0, t, f)")
			}
			return v, nil
		}),
		show: strconv.FormatBool,
	}
	intKind = kind[int]{
		name: "integer",
		read: simple(parseInt),
		show: strconv.Itoa,
	}
	secondsKind = kind[time.Duration]{
		name: "integer, seconds",
		read: simple(func(text string) (time.Duration, error) {
			n, err := parseInt(text)
			if err == nil && (n > maxSeconds || n < -maxSeconds) {
				err = errors.New("out of range")
			}
			return time.Duration(n) * time.Second, err
		}),
		show: func(d time.Duration) string { return strconv.FormatInt(int64(d/time.Second), 10) },
	}
	stringKind = kind[string]{
		name: "string", values: "any",
		read: simple(func(text string) (string, error) { return text, nil }),
		show: func(s string) string { return s },
	}
	markKind = kind[uint32]{
		name: "integer, decimal, 0x… or 0…",
		read: simple(func(text string) (uint32, error) {
			v, err := strconv.ParseInt(text, 0, 64)
			if err != nil || v <= 0 || v > 1<<32-1 {
				return 0, errors.New("not an integer from 1 to 0xffffffff")
			}
			return uint32(v), nil
		}),
		show: func(v uint32) string { return fmt.Sprintf("%#x", v) },
	}
	levelKind = kind[slog.Level]{
		name: "string",
		read: simple(func(text string) (slog.Level, error) {
			level, ok := levels[strings.ToLower(text)]
			if !ok {
				return 0, errors.New("not a log level")
			}
			return level, nil
		}),
		show: func(l slog.Level) string {
			if l == levelFatal {
				return "fatal"
			}
			return strings.ToLower(l.String())
		},
	}
	cidrsKind = kind[[]netip.Prefix]{
		name: "list of IPv4 CIDRs, separated by commas",
		read: parseCIDRs,
		show: func(cidrs []netip.Prefix) string {
			text := make([]string, len(cidrs))
			for i, cidr := range cidrs {
				text[i] = cidr.String()
			}
			return strings.Join(text, ",")
		},
	}
	tagsKind = kind[map[string]string]{
		name: "JSON object of strings",
		read: parseTags,
		show: func(tags map[string]string) string {
			if len(tags) == 0 {
				return "{}"
			}
			text, err := json.Marshal(tags) // keys are sorted
			if err != nil {
				return err.Error()
			}
			return string(text)
		},
	}
)

var levels = map[string]slog.Level{
	"debug": slog.LevelDebug,
	"info":  slog.LevelInfo,
	"warn":  slog.LevelWarn,
	"error": slog.LevelError,
	"fatal": levelFatal,
}

// maxSeconds keeps a number of seconds well inside a time.Duration.
const maxSeconds = 1 << 31

// enumKind is a string out of a few. Upper case is as good as lower case if fold.
func enumKind[T ~string](fold bool, values ...T) kind[T] {
	return kind[T]{
		name: "string",
		read: simple(func(text string) (T, error) {
			for _, v := range values {
				if text == string(v) || fold && strings.EqualFold(text, string(v)) {
					return v, nil
				}
			}
			return "", fmt.Errorf("not one of %v", values)
		}),
		show: func(v T) string { return string(v) },
	}
}

// simple is a reader that leaves nothing out.
func simple[T any](parse func(string) (T, error)) func(string) (T, string, error) {
	return func(text string) (T, string, error) {
		v, err := parse(text)
		return v, "", err
	}
}

func parseInt(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, errors.New("not an integer")
	}
	return n, nil
}

// parseCIDRs reads what it can: a mistake in one entry has never cost the others.
func parseCIDRs(text string) ([]netip.Prefix, string, error) {
	var (
		cidrs []netip.Prefix
		left  []string
	)
	for entry := range strings.SplitSeq(text, ",") {
		entry = strings.TrimSpace(entry)
		cidr, err := netip.ParsePrefix(entry)
		switch {
		case entry == "":
		case err != nil || !cidr.Addr().Is4():
			left = append(left, strconv.Quote(entry))
		default:
			cidrs = append(cidrs, cidr.Masked())
		}
	}
	if len(left) > 0 {
		return cidrs, "left out, not an IPv4 CIDR: " + strings.Join(left, ", "), nil
	}
	return cidrs, "", nil
}

func parseTags(text string) (map[string]string, string, error) {
	var tags map[string]string
	if err := json.Unmarshal([]byte(text), &tags); err != nil {
		return nil, "", errors.New("not a JSON object of strings")
	}
	var left []string
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		if strings.Contains(key, reservedTagPart) {
			left = append(left, strconv.Quote(key))
			delete(tags, key)
		}
	}
	if len(left) > 0 {
		return tags, "left out, keys with " + reservedTagPart + " are reserved: " + strings.Join(left, ", "), nil
	}
	return tags, "", nil
}
