package api

// Outcome is how a verb ended. It is told apart in types, in --json and in the exit status.
type Outcome string

// The outcomes. Unknown means that the line was lost: the next command finds out what happened.
const (
	Done           Outcome = "done"
	Usage          Outcome = "usage"
	NothingChanged Outcome = "nothing changed"
	RolledBack     Outcome = "rolled back"
	Unknown        Outcome = "unknown"
	SomeHosts      Outcome = "some hosts only"
)

// ExitStatus is the command's exit status for o.
func (o Outcome) ExitStatus() int {
	switch o {
	case Done:
		return 0
	case Usage:
		return 2
	case NothingChanged:
		return 3
	case RolledBack:
		return 4
	case SomeHosts:
		return 6
	}
	return 5
}
