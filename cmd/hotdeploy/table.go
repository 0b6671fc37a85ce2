package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// table prints rows in columns. What comes from a host stays in its cell, whatever it is.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer, heads ...any) table {
	t := table{tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)}
	t.row(heads...)
	return t
}

func (t table) row(cells ...any) {
	line := make([]string, len(cells))
	for i, c := range cells {
		line[i] = strings.ReplaceAll(inLine(fmt.Sprint(c)), "\t", " ")
	}
	fmt.Fprintln(t.w, strings.Join(line, "\t"))
}

// end prints it; nobody can be told that standard output is closed.
func (t table) end() { t.w.Flush() }

// shortened is enough of a digest to tell it from others.
func shortened(digest string) string { return fmt.Sprintf("%.12s", digest) }
