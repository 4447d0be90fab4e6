// Package stats sums up measurements: quantiles of samples, and medians over repeated runs with their spread.
package stats

import (
	"math"
	"slices"
)

// Quantile is the smallest sample that at least the share q of all samples does not exceed; NaN without samples.
func Quantile(samples []float64, q float64) float64 {
	if len(samples) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(samples))
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// Median is the middle sample, or the mean of the middle two.
func Median(samples []float64) float64 {
	if len(samples) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(samples))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// Mean is the arithmetic mean; NaN without samples.
func Mean(samples []float64) float64 {
	sum := 0.0
	for _, s := range samples {
		sum += s
	}
	return sum / float64(len(samples))
}

// Figure is one figure over several runs: their median, and the quartiles and the smallest and largest run as its spread.
type Figure struct {
	Median float64   `json:"median"`
	Q1     float64   `json:"q1"`
	Q3     float64   `json:"q3"`
	Min    float64   `json:"min"`
	Max    float64   `json:"max"`
	Runs   []float64 `json:"runs"`
}

// Over sums up runs, of which there must be one at least.
func Over(runs []float64) Figure {
	return Figure{Median: Median(runs), Q1: Quantile(runs, 0.25), Q3: Quantile(runs, 0.75), Min: slices.Min(runs), Max: slices.Max(runs), Runs: runs}
}

// Ratio divides run by run, so that what disturbed a run disturbs both sides.
func Ratio(of, by Figure) Figure {
	runs := make([]float64, len(of.Runs))
	for i := range runs {
		runs[i] = of.Runs[i] / by.Runs[i]
	}
	return Over(runs)
}
