package orphans

import (
	"cmp"
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// WriteTable prints verdicts for people.
func WriteTable(w io.Writer, verdicts []Verdict) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ENI\tINSTANCE\tAGE\tVERDICT\tREASON")
	for _, v := range verdicts {
		verdict, age := "keep", "-"
		if v.Delete {
			verdict = "delete"
		}
		if v.Age > 0 {
			age = v.Age.Truncate(time.Second).String()
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", v.ENI, cmp.Or(v.Instance, "-"), age, verdict, v.Reason)
	}
	return t.Flush()
}
