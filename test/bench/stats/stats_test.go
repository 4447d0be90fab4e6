package stats

import (
	"math"
	"slices"
	"testing"
)

func TestQuantile(t *testing.T) {
	t.Parallel()
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i)
	}
	for _, tt := range []struct {
		samples []float64
		q, want float64
	}{
		{hundred, 0.5, 50}, {hundred, 0.99, 99}, {hundred, 1, 100}, {hundred, 0, 1}, {[]float64{7}, 0.99, 7}, {[]float64{1, 2}, 0.5, 1},
	} {
		if got := Quantile(tt.samples, tt.q); got != tt.want {
			t.Errorf("Quantile(%d samples, %v) = %v, want %v", len(tt.samples), tt.q, got, tt.want)
		}
	}
	if !slices.IsSortedFunc(hundred, func(a, b float64) int { return int(b - a) }) {
		t.Error("the samples were sorted in place")
	}
	if !math.IsNaN(Quantile(nil, 0.5)) || !math.IsNaN(Median(nil)) {
		t.Error("a quantile of nothing")
	}
}

func TestFigures(t *testing.T) {
	t.Parallel()
	of := Over([]float64{10, 40, 20, 30})
	if of.Median != 25 || of.Min != 10 || of.Max != 40 {
		t.Errorf("%+v", of)
	}
	// A run that was disturbed on both sides does not disturb the ratio.
	ratio := Ratio(Over([]float64{10, 100, 12}), Over([]float64{5, 50, 6}))
	if ratio.Median != 2 || ratio.Min != 2 || ratio.Max != 2 {
		t.Errorf("%+v", ratio)
	}
}
