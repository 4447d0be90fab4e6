package pairs

import (
	"reflect"
	"testing"
)

func TestCoverHasEveryPair(t *testing.T) {
	t.Parallel()
	for _, sizes := range [][]int{{3}, {2, 2}, {2, 2, 2}, {4, 3, 3, 3, 3, 2}, {1, 5, 2}, {3, 3, 3, 3}} {
		rows := Cover(sizes...)
		met := map[pair]bool{}
		for _, row := range rows {
			if len(row) != len(sizes) {
				t.Fatalf("%v: combination %v", sizes, row)
			}
			for i, v := range row {
				if v < 0 || v >= sizes[i] {
					t.Fatalf("%v: combination %v", sizes, row)
				}
			}
			for _, p := range pairsOf(row) {
				met[p] = true
			}
		}
		for j := range sizes {
			for i := range j {
				for x := range sizes[i] {
					for y := range sizes[j] {
						if !met[pair{i, x, j, y}] {
							t.Errorf("%v: value %d of setting %d never meets value %d of setting %d", sizes, x, i, y, j)
						}
					}
				}
			}
		}
		if !reflect.DeepEqual(rows, Cover(sizes...)) {
			t.Errorf("%v: another result the second time", sizes)
		}
	}
}

// TestCoverIsSmall: the largest two settings alone need the product of their sizes; the rest should come at little more.
func TestCoverIsSmall(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		sizes []int
		most  int
	}{
		{[]int{3}, 3}, {[]int{2, 2, 2}, 4}, {[]int{4, 3, 3, 3, 3, 2}, 16}, {[]int{3, 3, 3, 3}, 11},
	} {
		if n := len(Cover(tc.sizes...)); n > tc.most {
			t.Errorf("%v: %d combinations, want at most %d", tc.sizes, n, tc.most)
		}
	}
}
