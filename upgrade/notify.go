package upgrade

import (
	"fmt"
	"net"
	"os"
	"time"
)

// notify speaks sd_notify(3); without somebody who listens it does nothing.
func notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	if path[0] == '@' {
		path = "\x00" + path[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		defer c.Close()
		c.SetWriteDeadline(time.Now().Add(controlTime))
		_, err = c.Write([]byte(state))
	}
	if err != nil {
		return fmt.Errorf("upgrade: notify the service manager: %w", err)
	}
	return nil
}
