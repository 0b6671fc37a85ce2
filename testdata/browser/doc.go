// Package browser has a real browser hold a WebSocket through upgrades and a rollback. Chromium opens the page of wslive,
// served under a real daemon, and is asked over the DevTools protocol what it has noticed.
//
// Always true: the page counts for itself, never opens its connection again and never resets a counter; what DevTools reports of the
// network is counted beside it. The picture of the page goes to the folder BROWSER_SHOTS, so that a person can look at it.
//
// Read TestPage_ThreeUpgradesAndARollback_NothingNoticed first, then the script in testdata/apps/wslive/page.html.
package browser
