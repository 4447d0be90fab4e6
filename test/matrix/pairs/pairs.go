// Package pairs samples the combinations of several settings so that every value of each meets every value of every
// other one. Faults that need three particular values at once are missed; those are rare, and what is left of the full
// product is small enough to be run with real packets.
package pairs

// Cover returns combinations, each with one value (0 to size-1) per setting, such that any two values of two different
// settings are together in at least one of them. The result depends on the sizes only. Every size must be at least 1.
//
// It is greedy: of all combinations it takes the one that brings most new pairs, the first of these if there are several.
// The full product is gone through for each combination taken, so it is for a few settings with a few values.
func Cover(sizes ...int) [][]int {
	open := map[pair]bool{}
	for i, a := range sizes {
		for j, b := range sizes[:i] {
			for x := range a {
				for y := range b {
					open[pair{j, y, i, x}] = true
				}
			}
		}
	}
	if len(sizes) == 1 {
		return product(sizes)
	}
	var chosen [][]int
	all := product(sizes)
	for len(open) > 0 {
		var best []int
		most := 0
		for _, row := range all {
			if n := news(row, open); n > most {
				best, most = row, n
			}
		}
		for _, p := range pairsOf(best) {
			delete(open, p)
		}
		chosen = append(chosen, best)
	}
	return chosen
}

// pair is value x of setting i together with value y of setting j, i < j.
type pair struct{ i, x, j, y int }

func pairsOf(row []int) []pair {
	var list []pair
	for j := range row {
		for i := range j {
			list = append(list, pair{i, row[i], j, row[j]})
		}
	}
	return list
}

func news(row []int, open map[pair]bool) int {
	n := 0
	for j := range row {
		for i := range j {
			if open[pair{i, row[i], j, row[j]}] {
				n++
			}
		}
	}
	return n
}

// product lists all combinations in the order of counting, the last setting fastest.
func product(sizes []int) [][]int {
	rows := [][]int{{}}
	for _, size := range sizes {
		var longer [][]int
		for _, row := range rows {
			for v := range size {
				longer = append(longer, append(append([]int(nil), row...), v))
			}
		}
		rows = longer
	}
	return rows
}
