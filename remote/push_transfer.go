package remote

import (
	"context"
	"errors"
	"fmt"

	"github.com/hotdeploy/hotdeploy/internal/api"
	"github.com/hotdeploy/hotdeploy/internal/release"
)

// transfer uploads what the plan asks for and tells the reporter how far it is.
func (d *Deployment) transfer(ctx context.Context, rel *release.Packed, plan api.UploadPlan, t Transfer) (Transfer, error) {
	if d.line.Session == nil {
		return t, errors.New("no SSH session to upload through")
	}
	parts := make([]Part, len(plan.Missing))
	for i, b := range plan.Missing {
		parts[i] = Part{Name: b.SHA256, Size: b.Size, Offset: b.Offset,
			Open: func() (Source, error) { return rel.Open(b.SHA256) }}
	}
	d.transferred(t)
	if len(parts) == 0 {
		return t, nil
	}
	err := Upload(ctx, d.line.Session, plan.Dir, parts, func(n int64) { // calls do not overlap
		t.Done += n
		d.transferred(t)
	})
	if err != nil {
		return t, fmt.Errorf("upload, after %d of %d bytes: %w", t.Done, t.Total, err)
	}
	t.Done, t.Ended = t.Total, true
	d.transferred(t)
	return t, nil
}

func (d *Deployment) transferred(t Transfer) {
	if d.Report.Transfer != nil {
		d.Report.Transfer(t)
	}
}
